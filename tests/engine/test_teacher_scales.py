"""Teachers of two sizes, --teacher-scales both and --teacher-model teacher-fused: their steps by hand, and their runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_runs import metrics
from safetensors.torch import load_file
from small_run import Train
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import zoominnet
from zoominnet.config import ConfigError, TrainConfig
from zoominnet.data import Batch, ResizeGeometry, student_images
from zoominnet.data.batch import pack
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import list_checkpoints, load_model
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.losses import combine_losses, read_losses
from zoominnet.engine.optim import Schedule, build_optimizer
from zoominnet.engine.step import StepLosses, TrainingModule
from zoominnet.engine.update import Update
from zoominnet.models import RetinaNet, build_model

CPU = torch.device("cpu")
SIZE = 128
OPTIONS: dict[str, Any] = {"backbone": "resnet10-quarter", "num_classes": 3, "channels": 16, "norm_eval": True}
IMAGES = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGETS = [
    {
        "boxes": torch.tensor([[20.0, 30.0, 60.0, 76.0], [90.0, 4.0, 104.0, 20.0]]),
        "labels": torch.tensor([1, 2]),
        "ignored": torch.tensor([[0.0, 80.0, 60.0, 128.0]]),
    },
    {
        "boxes": torch.tensor([[64.0, 64.0, 120.0, 100.0]]),
        "labels": torch.tensor([0]),
        "ignored": torch.zeros(0, 4),
    },
]
HALVED = [{**target, "boxes": target["boxes"] / 2, "ignored": target["ignored"] / 2} for target in TARGETS]


def teacher(name: str = "teacher") -> RetinaNet:
    torch.manual_seed(0)
    model = build_model(name, image_size=SIZE, **OPTIONS)
    model.set_kernel_backend("reference")
    return model


def test_losses_of_both_sizes_are_those_of_two_models() -> None:
    """A teacher and a plain RetinaNet of half its size with the same weights; losses and gradients add up."""
    model = teacher().double()
    small = build_model("snet", image_size=SIZE // 2, **OPTIONS).double().train()
    small.load_state_dict(model.state_dict())
    module = TrainingModule(model, None, half_size=True).train()
    losses = module(IMAGES, TARGETS)
    whole = combine_losses(losses, None, 0.0, Ranks(CPU), [])
    gradients = torch.autograd.grad(whole.loss, list(model.parameters()))

    full = IMAGES.float() / 255
    one = model(list(full), TARGETS)
    two = small(list(student_images(full)), HALVED)
    wanted = torch.autograd.grad(sum(one.values()), list(model.parameters()))
    others = torch.autograd.grad(sum(two.values()), list(small.parameters()))
    for a, b, c in zip(gradients, wanted, others, strict=True):
        assert bool(c.any())
        torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-6 * float(a.abs().max()))  # losses are float32
    values, stop = read_losses(whole.sums, None, 0.0, Ranks(CPU), whole.half)
    expected = {**one, **{f"{name}_half": value for name, value in two.items()}}
    assert stop is None
    assert values.keys() == {*expected, "loss"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value.item(), rel=1e-6)
    assert values["loss"] == pytest.approx(whole.loss.item(), rel=1e-6)
    assert losses.half.positives != losses.positives  # each size has its own

    # One size is what it was: nothing of the half size anywhere.
    alone = TrainingModule(model, None).train()(IMAGES, TARGETS)
    assert alone.half is None
    assert torch.equal(alone.task["classification"], losses.task["classification"])


class TwoRanks(Ranks):
    """One of two ranks; the sums of the other are told."""

    def __init__(self, other: Tensor | None) -> None:
        super().__init__(CPU, size=2)
        object.__setattr__(self, "other", other)

    def sum(self, values: Tensor) -> Tensor:
        return values if self.other is None else values + self.other  # type: ignore[attr-defined]


def test_two_ranks_add_up_to_one() -> None:
    """Of images with different numbers of boxes: the mean of the ranks' losses, as DDP takes it, is the whole batch's."""
    module = TrainingModule(teacher(), None, half_size=True).train()
    whole = combine_losses(module(IMAGES, TARGETS), None, 0.0, Ranks(CPU), [])
    shares: list[StepLosses] = [module(IMAGES[i : i + 1], TARGETS[i : i + 1]) for i in range(2)]
    own = [combine_losses(share, None, 0.0, TwoRanks(None), []).sums for share in shares]
    parts = [combine_losses(shares[i], None, 0.0, TwoRanks(own[1 - i]), []) for i in range(2)]
    assert torch.equal(parts[0].sums, parts[1].sums)
    torch.testing.assert_close(parts[0].sums, whole.sums, rtol=1e-5, atol=0)  # of float32 sums in another order
    torch.testing.assert_close((parts[0].loss + parts[1].loss) / 2, whole.loss, rtol=1e-5, atol=0)
    first, _ = read_losses(parts[0].sums, None, 0.0, TwoRanks(None), True)
    assert first["loss"] == pytest.approx(whole.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "half_size"), [("teacher", True), ("teacher-fused", False)])
def test_no_value_is_read_before_somebody_asks_for_it(
    name: str, half_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of other models in test_update.py: on tensors that have shapes only."""
    monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: False)  # as on a GPU
    config = TrainConfig(clip_grad_norm=1.0, ignored="honour", amp="bf16")
    module = TrainingModule(teacher(name).place(CPU), None, half_size=half_size).train()
    optimizer = build_optimizer(module, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update = Update(config, Schedule(0.1, 0.1, 0, (), 1.0, 10), optimizer, scaler, None, [], Ranks(CPU))
    with FakeTensorMode(allow_non_fake_inputs=True):
        outcome = update(module, 0, batch(), True, [])
        with pytest.raises(DataDependentOutputException):
            outcome()


def batch() -> Batch:
    more = {"image_id": 1, "index": 1, "geometry": ResizeGeometry.fit(SIZE, SIZE, SIZE, "squash")}
    return pack(IMAGES, [{**target, **more} for target in TARGETS], [0, 1])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "there"}, "--teacher-scales both: the teacher there is trained already; leave one of the two out"),
        (
            {"teacher_model": "teacher-fused"},
            "--teacher-scales both: --teacher-model teacher-fused learns from both sizes",
        ),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], message: str) -> None:
    config = TrainConfig(teacher_scales="both")
    config.check()
    with pytest.raises(ConfigError, match=message):
        replace(config, **change).check()


def last_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(list_checkpoints(folder / "checkpoints")[-1] / "model.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [("--teacher-scales", "both"), ("--teacher-model", "teacher-fused")])
def test_a_stopped_teacher_resumes_bit_for_bit(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    options = (*options, "--student", "none")
    assert tiny_train(*options, out="whole") == 0
    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> Callable[[], Any]:
        outcome = train_step(self, *args)
        if self.step == 2:  # the third of the first epoch's four
            os.kill(os.getpid(), signal.SIGINT)
        return outcome

    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train(*options, "--resume", out="parts") == 0
    whole, parts = tmp_path / "whole" / "teacher", tmp_path / "parts" / "teacher"
    weights, others = last_weights(whole), last_weights(parts)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_teacher_of_both_sizes_is_measured_at_both(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_train("--teacher-scales", "both", "--max-steps", "2") == 0
    run = tmp_path / "run"
    said = capsys.readouterr().out
    assert "teacher at half size" in said
    rows = json.loads((run / "result.json").read_text())["models"]
    assert [(name, row["image_size"]) for name, row in rows.items()] == [
        ("teacher", 128),
        ("teacher_half", 64),
        ("student", 64),
    ]
    assert rows["teacher_half"]["parameters"] == rows["teacher"]["parameters"]
    assert rows["teacher_half"]["gflops"] == pytest.approx(
        rows["teacher"]["gflops"] / 4, rel=0.02
    )  # P7 has 1 cell of 1
    first = metrics(run, "teacher")[0]
    assert first["loss"] == pytest.approx(
        sum(first[f"{name}{size}"] for name in ("classification", "bbox_regression") for size in ("", "_half"))
    )
    assert not any("_half" in name for name in metrics(run, "student")[0])
    model, info = load_model(run / "teacher")
    assert (model.name, model.image_size, info.name) == ("teacher", 128, "teacher")

    # With nothing to distil it is said that the option has no effect.
    assert tiny_train("--teacher-scales", "both", "--max-steps", "1", "--no-distill", out="plain") == 0
    assert "--teacher-scales both: not used, for nothing is distilled" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_fused_teacher_through_the_commands(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, distilled from, loaded, used, measured; and given to another run, which knows it by its file."""
    options = ["--student", "fa", "--max-steps", "2"]
    assert tiny_train(*options, "--teacher-model", "teacher-fused") == 0
    run = tmp_path / "run"
    assert "teacher-fused trained first, at 128 px" in capsys.readouterr().out
    rows = json.loads((run / "result.json").read_text())["models"]
    assert rows["teacher"]["label"] == "teacher-fused"
    assert "distill" in metrics(run, "student")[0]
    model = zoominnet.load(run / "teacher")
    assert (model.info.name, model.model.fusion is not None) == ("teacher-fused", True)
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    assert model.predict(image, conf=0.0, max_det=3).boxes.shape == (3, 4)
    result = zoominnet.evaluate(model, "synthetic", synthetic_images=1, latency_repeats=1, workers=0)
    assert (result["model"], result["cost"]["gflops"]) == ("teacher-fused", rows["teacher"]["gflops"])

    assert tiny_train(*options, "--teacher", str(run / "teacher"), out="second") == 0
    first, second = last_weights(run / "student"), last_weights(tmp_path / "second" / "student")
    assert all(torch.equal(first[name], second[name]) for name in first)
