"""Runs with --lambda-distill auto."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import metrics
from rich.console import Console
from safetensors.torch import load_file
from small_run import Train
from test_update import CPU, batch_of, update_of
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from zoominnet.config import PROFILES, ConfigError, TrainConfig
from zoominnet.distill import Distiller, DistillOptions
from zoominnet.distill.weight import HeldWeight
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import MODEL, list_checkpoints, load_model, load_state, newest_checkpoint
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.log import NoLog
from zoominnet.engine.watchers import StepReport, Watched
from zoominnet.engine.watchers.gradient_ratio import GradientRatio
from zoominnet.train import parse

AUTO = ("--lambda-distill", "auto")


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(list_checkpoints(run / "student" / "checkpoints")[-1] / MODEL)


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if line["kind"] == "train"]


def test_the_options() -> None:
    config = parse([*AUTO])
    assert config.lambda_distill == "auto"
    config.check()
    assert config.distils
    assert config.distill_options() == dataclasses.replace(DistillOptions(), weight="auto", gradient_ratio=0.5)
    config = parse([*AUTO, "--distill-gradient-ratio", "2"])
    config.check()
    assert config.distill_options().gradient_ratio == 2.0
    assert TrainConfig(**config.as_dict()) == config
    assert parse(["--lambda-distill", "0.02"]).distill_options().weight == 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill_gradient_ratio": 0.5}, "--distill-gradient-ratio 0.5: --lambda-distill 0.01 is held whatever"),
        ({"lambda_distill": "auto", "distill_gradient_ratio": 0.0}, "--distill-gradient-ratio: 0.0 is not positive"),
        ({"lambda_distill": "auto", "distill_gradient_ratio": -1.0}, "--distill-gradient-ratio: -1.0 is not positive"),
        ({"lambda_distill": -1.0}, "--lambda-distill: -1.0 is negative"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PROFILES["paper"], **change).check()


def report_of(step: int, ratio_weight: float, measured: bool = True) -> StepReport:
    return StepReport(step, {"lambda_distill": ratio_weight}, measured, True, 1.0, list, NoLog())


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_the_watcher_tells_what_a_step_measured(scale: float) -> None:
    """Gradients by hand: of the distillation 3 and 4 times the weight, of the task 1 and 0. In fp16 a weight of 1e-6 would
    leave nothing of a gradient of 3e-2, were it not scaled as the loss is."""
    held = HeldWeight(2.0)
    config = PROFILES["paper"]
    phase = Watched("student", config, None, 100, Ranks(CPU), Console(quiet=True), held)  # type: ignore[arg-type]
    watcher = GradientRatio(phase)
    for step in (0, 1, 11, 20):
        features = [torch.ones(2, requires_grad=True)]
        with watcher.around_step(step, None):  # type: ignore[arg-type]
            halves = features[0] if scale == 1 else features[0].half()
            weighted = (halves * torch.tensor([0.03, 0.04]).to(halves.dtype)).float().sum() * 1e-6
            task = features[0][0] * 0.01
            with watcher.around_backward(False, weighted, features, torch.tensor(scale)):
                ((weighted + task) * scale).backward()
        report = report_of(step + 1, 1e-6, measured=False)
        watcher.after_step(report)
        assert ("distill_gradient_ratio" in report.values) == (step != 11)
        if step != 11:
            assert report.values["distill_gradient_ratio"] == pytest.approx(5e-6, rel=5e-3)  # float16 has 11 bits
    assert [each[0] for each in held.state()] == [1, 20]
    assert held.at(22) == pytest.approx(2 / 5, rel=5e-3)


@pytest.mark.parametrize(
    ("target", "ratio", "warned"), [(None, 1.1, True), (0.5, 1.1, True), (0.5, 0.9, False), (3.0, 5.0, False)]
)
def test_a_task_is_drowned_by_more_than_was_asked_for(
    target: float | None, ratio: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    held = None if target is None else HeldWeight(target)
    phase = Watched("student", PROFILES["paper"], None, 9, Ranks(CPU), Console(), held)  # type: ignore[arg-type]
    watcher = GradientRatio(phase)
    watcher.ratios.extend([ratio] * 5)
    watcher.end(9)
    said = capsys.readouterr().out
    assert ("the task may be drowned" in said) is warned
    assert (f"a lower --{'lambda-distill' if target is None else 'distill-gradient-ratio'}," in said) is warned


def test_an_update_takes_the_weight_of_its_step() -> None:
    update, module = update_of(TrainConfig(lr=1e-6))
    assert update.distiller is not None
    options = DistillOptions(weight="auto", gradient_ratio=0.25, warmup_steps=4)
    module.distiller = distiller = Distiller(module.model, update.distiller.teacher, options)
    phase = Watched("student", update.config, module.model, 100, Ranks(CPU), Console(quiet=True), distiller.held)
    watcher = GradientRatio(phase)
    update = dataclasses.replace(update, distiller=distiller, watchers=[watcher])
    batch, ratios = batch_of(), []
    for step in range(6):
        weight = distiller.weight_at(step)
        with watcher.around_step(step, batch):
            done = update(module, step, batch, False, [])()
        values = done.values
        report = StepReport(step + 1, values, False, done.applied, done.loss_scale, list, NoLog())
        watcher.after_step(report)
        assert values["lambda_distill"] == weight
        task = values["classification"] + values["bbox_regression"]
        assert values["loss"] == pytest.approx(task + values["lambda_distill"] * values["distill"])
        ratios.append(values["distill_gradient_ratio"])
    # The weights of the model all but stand still, and so does the batch: the ratio is the target, times the warm-up's share.
    assert ratios[2:] == pytest.approx([0.25 * 3 / 4, 0.25, 0.25, 0.25], rel=0.01)


def test_no_value_is_read_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that have shapes only; the step is measured though nothing of it is logged."""
    monkeypatch.setattr("zoominnet.models.losses.knows_sizes", lambda _: False)  # as on a GPU
    config = TrainConfig()
    update, module = update_of(config)
    assert update.distiller is not None
    module.distiller = Distiller(module.model, update.distiller.teacher, DistillOptions(weight="auto"))
    held = module.distiller.held
    watcher = GradientRatio(Watched("student", config, module.model, 9, Ranks(CPU), Console(quiet=True), held))
    update = dataclasses.replace(update, distiller=module.distiller, watchers=[watcher])
    batch = batch_of()
    with FakeTensorMode(allow_non_fake_inputs=True), watcher.around_step(0, batch):
        outcome = update(module, 0, batch, False, [])
        assert watcher._arriving[0] is not None
        with pytest.raises(DataDependentOutputException):
            outcome()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_holds_the_ratio_whatever_it_logs(tiny_train: Train, tiny_teacher: str, tmp_path: Path) -> None:
    """Within a factor of 1.5, in the geometric mean of the second half: gradients of 2 images differ from batch to batch, and
    the weight is of earlier measurements, while the model learns."""
    options = (
        *AUTO, "--teacher", tiny_teacher, "--no-check-teacher", "--val-every", "99", "--epochs", "99",
        "--distill-gradient-ratio", "0.2", "--max-steps", "60", "--lr", "0.002",
    )  # fmt: skip
    assert tiny_train(*options, out="all") == 0
    assert tiny_train(*options, "--log-every", "7", out="some") == 0
    steps = steps_of(tmp_path / "all")
    assert [step["lambda_distill"] for step in steps[:2]] == [1e-6, 1e-6]
    ratios = [step["distill_gradient_ratio"] for step in steps[30:]]
    found = math.exp(statistics.mean(map(math.log, ratios)))
    assert 0.2 / 1.5 < found < 0.2 * 1.5
    # A weight holds from two steps behind a measurement to one behind the next.
    weights = [step["lambda_distill"] for step in steps]
    changes = [step for step in range(1, 60) if weights[step] != weights[step - 1]]
    assert changes == [*range(2, 12), 12, 22, 32, 42, 52]
    assert_same_bits(tmp_path / "all", tmp_path / "some")
    by_step = {step["step"]: step for step in steps}
    assert all(step == by_step[step["step"]] for step in steps_of(tmp_path / "some"))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stop", [1, 3, 12])
def test_a_resumed_run_is_the_same_and_so_is_one_that_reads_later(
    tiny_train: Train, tiny_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    options = (*AUTO, "--teacher", tiny_teacher, "--no-check-teacher", "--epochs", "9", "--val-every", "9")
    options += ("--max-steps", "14", "--log-every", "2")
    assert tiny_train(*options, out="whole") == 0
    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> Any:
        if self.step == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, *args)

    init = trainer.Phase.__init__

    def later(self: trainer.Phase, *args: Any) -> None:
        init(self, *args)
        self.steps_ahead = 1

    monkeypatch.setattr(trainer.Phase, "__init__", later)
    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train(*options, "--resume", out="parts") == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    path, _ = newest_checkpoint(tmp_path / "parts" / "student" / "checkpoints")
    assert path is not None
    _, _, values = load_state(path)
    assert [each[0] for each in values["held_weight"]] == [9, 10]
    assert load_model(path)[1].config["lambda_distill"] == "auto"
