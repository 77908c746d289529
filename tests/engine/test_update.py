"""One optimiser step: nothing of it is read before it is done, and a skipped one leaves nothing behind."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_autocast import cuda_autocast_on_cpu
from fault_runs import metrics
from small_run import Train
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from zoominnet.config import TrainConfig
from zoominnet.data import Batch, ResizeGeometry
from zoominnet.data.batch import pack
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import load_state, newest_checkpoint
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.precision import choose_amp
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.update import Update
from zoominnet.models import build_model

CPU = torch.device("cpu")


def batch_of(size: int = 256) -> Batch:
    """Two images, of which one has no objects."""
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = [
        {
            "boxes": torch.tensor([[20.0, 30.0, 60.0, 90.0], [100.0, 100.0, 190.0, 180.0]])[:count],
            "labels": torch.tensor([0, 2])[:count],
            "ignored": torch.tensor([[0.0, 0.0, 60.0, 40.0]])[:count],
            "image_id": 1,
            "index": 1,
            "geometry": ResizeGeometry.fit(size, size, size, "squash"),
        }
        for count in (2, 0)
    ]
    return pack(images, targets, [0, 1])  # type: ignore[arg-type]


def update_of(config: TrainConfig, student: str = "la") -> tuple[Update, TrainingModule]:
    torch.manual_seed(0)
    options = {"backbone": "resnet10-quarter", "num_classes": 3, "channels": 8}
    model, teacher = build_model(student, image_size=128, **options), build_model("teacher", image_size=256, **options)
    for each in (model, teacher):
        each.set_kernel_backend("reference")
    distiller = Distiller(model, teacher, DistillOptions())
    module = TrainingModule(model.place(CPU), distiller).train()
    schedule = Schedule(config.lr, config.lr, 0, (), 1.0, 10)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(module, config)
    return Update(config, schedule, optimizer, scaler, distiller, [], Ranks(CPU)), module


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_no_value_is_read_before_somebody_asks_for_it(
    optimizer: Any, amp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that have shapes only, where whatever depends on a value raises; clipping and BatchNorm's statistics too."""
    monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: False)  # as on a GPU
    config = TrainConfig(optimizer=optimizer, amp=amp, clip_grad_norm=1.0, ignored="honour")
    update, module = update_of(config)
    batch = batch_of()
    with FakeTensorMode(allow_non_fake_inputs=True):
        outcome = update(module, 0, batch, True, [])
        with pytest.raises(DataDependentOutputException):
            outcome()


@pytest.mark.parametrize("student", ["snet", "la", "fa-thin", "fa"])
def test_a_step_under_cudas_autocast_is_that_under_the_cpus(student: str) -> None:
    """Which computes fewer operations in float32; the reference kernels, whose operations autocast could see."""
    found = {}
    for like_cuda in (False, True):
        update, module = update_of(TrainConfig(amp="bf16", clip_grad_norm=1.0, ignored="honour"), student)
        with cuda_autocast_on_cpu() if like_cuda else nullcontext():
            found[like_cuda] = update(module, 0, batch_of(), True, [])().values
    assert found[True].keys() == found[False].keys()
    for name, value in found[True].items():
        assert np.allclose(value, found[False][name], rtol=0.02), name  # a few roundings to bfloat16


def spoil(module: TrainingModule, value: float) -> Callable[[], None]:
    """Adds `value` to the classification loss until what is returned is called."""
    loss_sums = module.model.loss_sums

    def spoilt(*args: Any) -> tuple[dict[str, Tensor], Tensor]:
        found, positives = loss_sums(*args)
        return {**found, "classification": found["classification"] + value}, positives

    module.model.loss_sums = spoilt  # type: ignore[method-assign]
    return lambda: setattr(module.model, "loss_sums", loss_sums)


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_skipped_first_step_is_as_if_it_had_not_been(optimizer: Any, amp: Any) -> None:
    """Weights, statistics and the optimiser's state after a skipped and a good step are those of the good one alone.

    The loss is infinite, its gradient finite: with fp16 the scaler must learn of it, whose scale is then halved.
    """
    config = TrainConfig(optimizer=optimizer, amp="off", lr=1e-3)
    ends = []
    for skip in (False, True):
        update, module = update_of(config)
        if amp == "fp16":  # its arithmetic is of GPUs; its scaler works here
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            update = Update(config, update.schedule, update.optimizer, scaler, update.distiller, [], update.ranks)
        if skip:
            before = {name: value.clone() for name, value in module.state_dict().items()}
            mend = spoil(module, math.inf)
            done = update(module, 0, batch_of(), False, [])()
            assert not done.applied
            assert done.values["loss"] == math.inf
            assert math.isfinite(done.values["grad_norm"])
            assert update.scaler.get_scale() == (4.0 if amp == "fp16" else 1.0)
            assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
            mend()
        done = update(module, 0, batch_of(), False, [])()
        assert done.applied
        state = update.optimizer.state_dict()["state"]
        momentum = {f"{i} {name}": value for i, each in state.items() for name, value in each.items()}
        ends.append({**{name: value.clone() for name, value in module.state_dict().items()}, **momentum})
    assert len(ends[0]) > len(module.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name  # powers of two scale the gradients without rounding


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_the_optimiser_by_its_formulas(optimizer: Any, clip: float | None) -> None:
    """Two steps in float64, for weights that are channels_last as those of convolutions are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2)).to(memory_format=torch.channels_last)
    config = TrainConfig(optimizer=optimizer, lr=0.1, weight_decay=0.02, momentum=0.8, clip_grad_norm=clip)
    update, _ = update_of(config)
    update = Update(config, update.schedule, build_optimizer(model, config), update.scaler, None, [], update.ranks)
    weights = [p.detach().double() for p in model.parameters()]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in (1, 2):
        gradients = [torch.randn_like(w) for w in weights]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = torch.empty_like(p).copy_(g)
        update.optimizer.param_groups[0]["lr"] = 0.1
        found, skipped = update._apply(list(model.parameters()), torch.zeros(1), torch.ones(()))
        assert float(found) == pytest.approx(norm, rel=1e-6)
        assert not skipped
        factor = min(1.0, clip / norm) if clip else 1.0
        for i, g in enumerate(factor * each for each in gradients):
            if optimizer == "sgd":
                first[i] = 0.8 * first[i] + g + 0.02 * weights[i]
                weights[i] = weights[i] - 0.1 * first[i]
            else:
                first[i], second[i] = 0.8 * first[i] + 0.2 * g, 0.999 * second[i] + 0.001 * g**2
                weights[i] = weights[i] * (1 - 0.1 * 0.02)
                root = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
                weights[i] = weights[i] - 0.1 * first[i] / (1 - 0.8**step) / root
        for p, w in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)  # float32, some ten roundings


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_reading_a_step_later_changes_nothing(
    tiny_train: Train, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: logs, checkpoints and weights are those of a run that waits for every step."""
    options = ("--teacher", tiny_teacher, "--no-check-teacher", "--checkpoint-every", "3", "--max-steps", "7")
    assert tiny_train(*options, out="now") == 0
    init, most = trainer.Phase.__init__, 0

    def later(self: trainer.Phase, *args: Any) -> None:
        init(self, *args)
        self.steps_ahead = 1

    settle = trainer.Phase._settle

    def counted(self: trainer.Phase, *args: Any) -> None:
        nonlocal most
        most = max(most, len(self.launched))
        settle(self, *args)

    monkeypatch.setattr(trainer.Phase, "__init__", later)
    monkeypatch.setattr(trainer.Phase, "_settle", counted)
    assert tiny_train(*options, out="later") == 0
    assert most == 2
    said = (tmp_path / "later" / "train.log").read_text()
    rates = [float(rate) for rate in re.findall(r"^student .* ([0-9.]+) images/s", said, re.MULTILINE)]
    assert len(rates) == 7
    assert max(rates) < 20 * statistics.median(rates)  # a thousand times by the time between two steps done at once
    assert metrics(tmp_path / "now") == metrics(tmp_path / "later")
    assert any("distill_gradient_ratio" in line for line in metrics(tmp_path / "now"))
    states = []
    for name in ("now", "later"):
        path, _ = newest_checkpoint(tmp_path / name / "student" / "checkpoints")
        assert path is not None
        states.append(load_state(path))
    (model, tensors, values), (other_model, other_tensors, other_values) = states
    assert all(torch.equal(value, other_model[name]) for name, value in model.items())
    assert all(torch.equal(value, other_tensors[name]) for name, value in tensors.items())
    assert values == other_values


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, "bf16"),
        ({"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": False}, "off"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "off"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({}, "off"),
    ],
)
def test_amp_auto_is_what_the_processor_is_fastest_in(
    features: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert choose_amp("auto", CPU) == expected
    assert choose_amp("off", CPU) == "off"
    assert choose_amp("fp16", CPU) == "fp16"
