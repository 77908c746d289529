"""``--ema``: the average against float64, in what a run measures, saves and goes on from."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import digest
from rich.console import Console
from safetensors.torch import load_file
from small_run import Train
from test_update import batch_of, spoil, update_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoominnet.config import TrainConfig
from zoominnet.engine import run, trainer
from zoominnet.engine.checkpoint import list_checkpoints
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.state import TrainingState
from zoominnet.engine.step import TrainingModule
from zoominnet.engine.update import Update
from zoominnet.engine.watchers import Watched
from zoominnet.engine.watchers.weight_average import WeightAverage
from zoominnet.models import RetinaNet

State = dict[str, Tensor]
DECAY = 0.75


def averaged(decay: float | None = DECAY) -> tuple[Update, TrainingModule, WeightAverage]:
    """A step with an average of its weights."""
    config = TrainConfig(ema=decay, amp="off", lr=0.01)
    update, module = update_of(config)
    watcher = WeightAverage(Watched("student", config, module.model, 10, update.ranks, Console()))
    return dataclasses.replace(update, watchers=[watcher]), module, watcher


def copied(tensors: dict[str, Tensor]) -> State:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def mean_by_hand(begin: State, steps: list[State], decay: float = DECAY) -> State:
    """In float64; counters are those of the last step."""
    mean = {name: tensor.double() for name, tensor in begin.items()}
    for t, step in enumerate(steps):
        d = min(decay, (1 + t) / (10 + t))
        for name, tensor in step.items():
            mean[name] = d * mean[name] + (1 - d) * tensor.double() if tensor.is_floating_point() else tensor
    return mean


def assert_mean(found: dict[str, Tensor], expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            # three roundings of float32 a step, of values that may cancel
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7, msg=name)
        else:
            assert torch.equal(tensor, expected[name]), name


def test_the_average_by_hand_passes_over_a_skipped_step() -> None:
    """Over 30 steps, of which the 27 th has the first decay that is not of the warm-up: (1 + 26) / (10 + 26) = 0.75."""
    update, module, watcher = averaged()
    begin, steps = copied(module.model.state_dict()), []
    for step in range(31):
        mend = spoil(module, math.nan) if step == 3 else None
        before = copied(watcher.average)
        assert update(module, step % 10, batch_of(), False, [])().applied == (mend is None)
        if mend is None:
            steps.append(copied(module.model.state_dict()))
        else:
            assert all(torch.equal(tensor, before[name]) for name, tensor in watcher.average.items())
            mend()
    assert watcher.updates.item() == len(steps) == 30
    assert any("running_var" in name for name in begin)
    assert any("num_batches_tracked" in name for name in begin)
    assert_mean(watcher.average, mean_by_hand(begin, steps))
    moved = [name for name in begin if not torch.equal(watcher.average[name], steps[-1][name])]
    assert {"backbone.conv1.weight", "backbone.bn1.running_mean"} <= set(moved)


def test_training_does_not_depend_on_it_and_nothing_is_read_on_the_host() -> None:
    ends = []
    for decay in (None, DECAY):
        update, module, _ = averaged(decay)
        for step in range(2):
            update(module, step, batch_of(), False, [])()
        ends.append(copied(module.state_dict()))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    _, _, watcher = averaged()
    with FakeTensorMode(allow_non_fake_inputs=True):  # whatever depends on a value raises
        watcher.after_update(torch.zeros((), dtype=torch.bool))


def test_the_model_is_the_average_while_it_is_measured() -> None:
    update, module, watcher = averaged()
    update(module, 0, batch_of(), False, [])()
    own, average = copied(module.model.state_dict()), copied(watcher.average)
    with watcher.around_validation():
        assert all(torch.equal(tensor, average[name]) for name, tensor in module.model.state_dict().items())
        module.model.get_buffer("backbone.bn1.running_mean").fill_(5)  # as another rank's
    assert all(torch.equal(tensor, own[name]) for name, tensor in module.model.state_dict().items())
    changed = [name for name in average if not torch.equal(watcher.average[name], average[name])]
    assert changed == ["backbone.bn1.running_mean"]
    assert (watcher.average["backbone.bn1.running_mean"] == 5).all()


def state_of(decay: float | None) -> TrainingState:
    update, module, watcher = averaged(decay)
    return TrainingState(module.model, update.optimizer, update.scaler, [watcher], 10)


def without(name: str) -> Callable[[State], State]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


UPDATES, WEIGHT = "WeightAverage.updates", "WeightAverage.weights.backbone.conv1.weight"


@pytest.mark.parametrize(
    ("change", "decay", "message"),
    [
        (without(UPDATES), DECAY, "tensors of the average of the weights"),
        (without(WEIGHT), DECAY, "tensors of the average of the weights"),
        (lambda tensors: {**tensors, UPDATES: torch.tensor(1.0)}, DECAY, r"updates is torch\.float32 \(\)"),
        (lambda tensors: {**tensors, WEIGHT: torch.zeros(1)}, DECAY, r"weights\.backbone\.conv1\.weight is .* \(1,\)"),
        (lambda tensors: tensors, None, "tensors of the average of the weights, 0 are needed"),
        (lambda tensors: {}, DECAY, "^0 tensors of the average of the weights"),
    ],
    ids=["without the count", "without a weight", "dtype", "shape", "none wanted", "none there"],
)
def test_an_average_that_does_not_fit_is_refused(
    change: Callable[[State], State], decay: float | None, message: str
) -> None:
    state, other = state_of(DECAY), state_of(decay)
    momentum = {name: tensor for name, tensor in state.tensors().items() if not name.startswith("WeightAverage.")}
    own = {name: tensor for name, tensor in state.tensors().items() if name not in momentum}
    with pytest.raises(ValueError, match=message):
        other.load(state.model_tensors(), {**momentum, **change(own)}, state.values(0))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_measures_saves_and_teaches_the_average(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and student; stopped in the student's second epoch it ends bit for bit as without a stop."""
    options = ("--ema", str(DECAY), "--val-images", "4", "--deterministic", "--keep-checkpoints", "9")
    weights: dict[str, list[State]] = {"teacher": [], "student": []}
    train_step = trainer.Phase._train_step

    def watched(self: trainer.Phase, *args: Any) -> Any:
        if self.step == 0:
            weights[self.name].append(copied(self.model.state_dict()))
        found = train_step(self, *args)
        weights[self.name].append(copied(self.model.state_dict()))
        return found

    validate, seen = trainer.Phase._run_validation, {"teacher": [], "student": []}

    def seen_model(self: trainer.Phase, *args: Any) -> None:
        """Notes the weights when buffers are shared among ranks, and when they are measured."""
        predict, share = run.predict_split, Ranks.share_buffers

        def note(then: Any, model: RetinaNet, *rest: Any, **options: Any) -> Any:
            seen[self.name].append(copied(model.state_dict()))
            return then(model, *rest, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "predict_split", partial(note, predict))
            patch.setattr(Ranks, "share_buffers", lambda ranks, model: note(partial(share, ranks), model))
            validate(self, *args)

    monkeypatch.setattr(trainer.Phase, "_train_step", watched)
    monkeypatch.setattr(trainer.Phase, "_run_validation", seen_model)
    assert tiny_train(*options, out="whole") == 0
    for phase, (begin, *steps) in weights.items():
        checkpoints = list_checkpoints(tmp_path / "whole" / phase / "checkpoints")
        for checkpoint, done in zip(checkpoints, (4, 8), strict=True):
            assert_mean(load_file(checkpoint / "model.safetensors"), mean_by_hand(begin, steps[:done]))
            kept = load_file(checkpoint / "optimizer.safetensors")
            for name, tensor in steps[done - 1].items():
                assert torch.equal(kept[f"WeightAverage.weights.{name}"], tensor)
        for checkpoint, measured, shared in zip(checkpoints, seen[phase][1::2], seen[phase][::2], strict=True):
            file = load_file(checkpoint / "model.safetensors")
            assert all(torch.equal(tensor, measured[name]) for name, tensor in file.items())
            assert all(torch.equal(tensor, shared[name]) for name, tensor in file.items())

    def interrupted(self: trainer.Phase, *args: Any) -> Any:
        if self.name == "student" and self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, *args)

    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train("--resume", out="parts") == 0
    assert digest(tmp_path / "whole") == digest(tmp_path / "parts")
