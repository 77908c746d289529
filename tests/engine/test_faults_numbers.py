"""RELIABILITY.md F13 and F14: numbers that are not finite, and losses that jump."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices import on_gpu
from fault_runs import TINY, metrics
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.distill import Distiller
from zoominnet.engine import step
from zoominnet.engine.checkpoint import list_checkpoints, load_state
from zoominnet.engine.state import TrainingState
from zoominnet.engine.trainer import Phase
from zoominnet.engine.update import StepOutcome
from zoominnet.engine.watchers import WATCHERS
from zoominnet.models import Outputs, RetinaNet
from zoominnet.train import main as train_main

POINTS = ("images", "features", "teacher maps", "loss", "gradient")
VALUES = (math.nan, math.inf)
SCALE = 256.0


pytestmark = pytest.mark.usefixtures("small")


class Injector:
    """Puts `value` into one number at `point` of the student's steps while these are set."""

    point: str | None = None
    value = math.nan

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def spoil(point: str, x: Tensor) -> Tensor:
            if self.point == point:
                x = x.clone()
                x[tuple(size // 2 for size in x.shape)] = self.value
            return x

        def wrap(owner: Any, name: str, spoilt: Callable[[Any], Any]) -> None:
            original = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *a: spoilt(original(*a)))

        def spoilt_teacher(outputs: Outputs) -> Outputs:
            first, *rest = outputs.features
            return replace(outputs, features=[spoil("teacher maps", first), *rest])

        wrap(step, "student_images", lambda x: spoil("images", x))
        wrap(Distiller, "teacher_outputs", spoilt_teacher)
        features, loss_sums = RetinaNet.features, RetinaNet.loss_sums

        def spoilt_features(model: RetinaNet, images: Tensor) -> list[Tensor]:
            maps = features(model, images)
            return maps if model.name == "teacher" else [spoil("features", maps[0]), *maps[1:]]

        def spoilt_sums(model: RetinaNet, *args: Any) -> tuple[dict[str, Tensor], Tensor]:
            found, positives = loss_sums(model, *args)
            if model.name != "teacher" and self.point == "loss":
                found["classification"] = found["classification"] + self.value
            if model.name != "teacher" and self.point == "gradient":
                loss = found["bbox_regression"]
                found["bbox_regression"] = loss + 0 * loss.detach()
                found["bbox_regression"].register_hook(lambda gradient: gradient * self.value)
            return found, positives

        monkeypatch.setattr(RetinaNet, "features", spoilt_features)
        monkeypatch.setattr(RetinaNet, "loss_sums", spoilt_sums)


def everything(phase: Phase) -> dict[str, Tensor]:
    """Copies of weights, BatchNorm's statistics and counters, and momentum."""
    state = {name: tensor.clone() for name, tensor in phase.model.state_dict().items()}
    for i, values in enumerate(phase.optimizer.state.values()):
        state[f"momentum {i}"] = values["momentum_buffer"].clone()
    return state


@pytest.mark.slow
@pytest.mark.parametrize(("device", "amp"), [("cpu", "off"), *(on_gpu("cuda", amp) for amp in ("off", "bf16", "fp16"))])
def test_f13_a_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, amp: str
) -> None:
    """Every point and value in one run, in every second step: weights, momentum and statistics stay, bit for bit.

    In float16 each skipped step halves the loss' scale. It begins low, so that nothing else halves it.
    """
    inject = Injector(monkeypatch)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=SCALE))
    scales: list[float] = []
    cases = [(point, value) for point in POINTS for value in VALUES]
    step_of = {2 * i + 1: case for i, case in enumerate(cases)}
    train_step = Phase._train_step
    changed: dict[int, list[str]] = {}
    poisoned: list[str] = []

    def watched_step(phase: Phase, batch: Any, measure: bool) -> Callable[[], StepOutcome]:
        if phase.name != "student":
            return train_step(phase, batch, measure)
        inject.point, inject.value = step_of.get(phase.step, (None, 0.0))
        before = everything(phase)
        try:
            return train_step(phase, batch, measure)
        finally:
            scales.append(phase.scaler.get_scale())
            after = everything(phase)
            changed[phase.step] = [name for name in before if not torch.equal(before[name], after[name])]
            poisoned.extend(name for name, tensor in after.items() if not bool(torch.isfinite(tensor).all()))

    monkeypatch.setattr(Phase, "_train_step", watched_step)
    steps = 2 * len(cases) + 1
    options = ["--teacher-epochs", "1", "--max-steps", str(steps), "--no-check-teacher", "--epochs", "4"]
    assert train_main([*TINY, *options, "--device", device, "--amp", amp, "--out", str(tmp_path / "run")]) == 0
    assert len(changed) == steps
    out = " ".join(capsys.readouterr().out.split())
    for number, names in changed.items():
        if number in step_of:
            assert names == [], (step_of[number], names)
            assert f"student step {number + 1}: loss" in out
        else:
            assert any("running_mean" in name for name in names)
            assert any("conv" in name for name in names)
            assert number == 0 or any("momentum" in name for name in names)
    assert not poisoned
    assert out.count("step skipped (images [") == len(cases)
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [(i + 1) // 2 for i in range(steps)]
    assert lines[1]["loss"] is None  # valid JSON, which knows no NaN
    assert "NaN" not in (tmp_path / "run" / "student" / "metrics.jsonl").read_text()
    _, _, state = load_state(list_checkpoints(tmp_path / "run" / "student" / "checkpoints")[-1])
    assert (state["step"], state["skipped"], state["skipped_in_a_row"]) == (steps, len(cases), 0)
    skipped = [i in step_of for i in range(steps)]  # also where a loss that is not finite has a gradient all the same
    expected = [SCALE / 2**n for n in itertools.accumulate(skipped)] if amp == "fp16" else [1.0] * steps
    assert scales == expected
    assert state["scaler"].get("scale", 1.0) == expected[-1]
    print(f"F13: {len(cases)} injections, {out.count('step skipped')} steps skipped, nothing changed")


@pytest.mark.slow
def test_f13_ten_in_a_row_end_the_run_and_the_count_survives_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inject = Injector(monkeypatch)
    inject.point = "loss"
    command = [*TINY, "--no-distill", "--out", str(tmp_path / "run")]
    assert train_main([*command, "--max-steps", "9"]) == 0  # nine do not
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_steps": None}))
    capsys.readouterr()
    assert train_main(["--resume", "--out", str(tmp_path / "run")]) == 65
    captured = capsys.readouterr()
    assert captured.err.startswith("zoominnet.train: student: loss or gradient were not finite in 10 steps in a row")
    assert "(the last at step 10, images [" in captured.err
    assert captured.err.endswith("; lower --lr, or look at these images\n")
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_f14_a_loss_spike_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss_sums = RetinaNet.loss_sums
    calls = 0

    def jump(model: RetinaNet, *args: Any) -> tuple[dict[str, Tensor], Tensor]:
        nonlocal calls
        calls += 1
        factor = 1e4 if calls in (5, 16) else 1  # the fifth has too little before it to compare with
        sums, positives = loss_sums(model, *args)
        return {name: factor * loss for name, loss in sums.items()}, positives

    monkeypatch.setattr(RetinaNet, "loss_sums", jump)
    assert train_main([*TINY, "--no-distill", "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    (event,) = [line for line in metrics(tmp_path / "run") if line["kind"] == "event"]
    lines = {line["step"]: line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"}
    before = sorted(lines[step] for step in range(1, 16))
    assert event["event"] == "loss spike"
    assert event["step"] == 16
    assert event["loss"] == lines[16]
    assert event["usual"] == before[7]  # the median
    assert len(event["images"]) == 2
    assert "student: step 16: loss" in capsys.readouterr().out
    assert len(lines) == 18  # it goes on


STATE = {"step": 9, "skipped": 4, "skipped_in_a_row": 2, "log_bytes": 7, "validation_due": True, "losses": [1.0, 2.0]}


def bare_state(model: torch.nn.Module | None = None, scale: float = 8.0) -> TrainingState:
    """The state of a phase of any module."""
    model = model or torch.nn.Linear(1, 1)
    watched = SimpleNamespace(config=TrainConfig(), held_weight=None)
    return TrainingState(
        model,  # type: ignore[arg-type]
        torch.optim.SGD(model.parameters(), 0.1),
        torch.amp.GradScaler("cpu", init_scale=scale),
        [watcher(watched) for watcher in WATCHERS],  # type: ignore[arg-type]
        total_steps=10,
    )


def test_counts_and_loss_scale_come_back_with_a_checkpoint() -> None:
    state, other = bare_state(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    other.scale(torch.ones(1))
    state.load(state.model.state_dict(), {}, {**STATE, "scaler": other.state_dict()})
    assert state.scaler.state_dict()["scale"] == 1024
    assert state.log_bytes == STATE["log_bytes"]
    assert {**state.values(7), "scaler": None} == {**STATE, "scaler": None}


def test_momentum_comes_back_in_the_layout_of_its_weights() -> None:
    """A checkpoint has all tensors contiguous; the weights of convolutions are channels_last."""
    state = bare_state(torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    saved = {f"momentum.{i}": torch.randn(p.shape) for i, p in enumerate(state.model.parameters())}
    state.load(state.model.state_dict(), saved, {**STATE, "scaler": state.scaler.state_dict()})
    for (parameter, kept), momentum in zip(state.optimizer.state.items(), saved.values(), strict=True):
        assert torch.equal(kept["momentum_buffer"], momentum)
        assert kept["momentum_buffer"].stride() == parameter.stride()
        assert not kept["momentum_buffer"].requires_grad


@pytest.mark.parametrize(
    "damage",
    [
        *({name: value} for name in ("step", "skipped", "log_bytes") for value in (-1, 1e999, "1", None, 10**30, True)),
        {"step": 11},
        *({"losses": value} for value in ([math.inf], [math.nan], [-1.0], [10**400], ["a"], "ab", 3)),
    ],
    ids=lambda damage: str(damage)[:30],
)
def test_a_state_that_makes_no_sense_is_refused(damage: dict[str, Any]) -> None:
    state = bare_state()
    values = {**STATE, "scaler": state.scaler.state_dict(), **damage}
    with pytest.raises((ValueError, TypeError)):
        state.load(state.model.state_dict(), {}, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.complex64])
def test_tensors_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    state = bare_state()
    whole, values = state.model.state_dict(), {**STATE, "scaler": state.scaler.state_dict()}
    with pytest.raises(ValueError, match=f"bias is {dtype}, not torch.float32"):
        state.load({**whole, "bias": whole["bias"].to(dtype)}, {}, values)
    momentum = {f"momentum.{i}": torch.zeros_like(p, dtype=dtype) for i, p in enumerate(state.model.parameters())}
    with pytest.raises(ValueError, match=rf"momentum\.0 is {dtype}"):
        state.load(whole, momentum, values)
