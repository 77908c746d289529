"""A watcher is one file: weight averaging in a few lines, which sees every step and goes on over a resume."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import metrics
from safetensors.torch import load_file
from small_run import Train
from torch import Tensor

from zoominnet.data import Batch
from zoominnet.engine import trainer
from zoominnet.engine.checkpoint import OPTIMIZER, list_checkpoints
from zoominnet.engine.watchers import WATCHERS, StepReport, Watched, Watcher

pytestmark = pytest.mark.usefixtures("small")


class Averaging(Watcher):
    """The mean of the weights over all steps; the model is measured with it."""

    calls: list[str]

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.steps = 0
        self.mean = {name: torch.zeros_like(p) for name, p in phase.model.named_parameters()}
        self.calls = []

    @contextmanager
    def around_step(self, step: int, batch: Batch) -> Iterator[None]:
        self.calls.append(f"before {step}")
        yield
        self.calls.append(f"after {step}")
        self.steps += 1
        for name, parameter in self.phase.model.named_parameters():
            self.mean[name] += (parameter.detach() - self.mean[name]) / self.steps

    @contextmanager
    def around_backward(
        self, measured: bool, weighted_distill: Tensor | None, features: list[Tensor], loss_scale: Tensor
    ) -> Iterator[None]:
        assert all(feature.requires_grad for feature in features)
        yield

    def after_step(self, report: StepReport) -> None:
        self.calls.append(f"report {report.step}")
        assert len(report.images()) == self.phase.config.batch_size
        report.values["averaged"] = report.step

    @contextmanager
    def around_validation(self) -> Iterator[None]:
        self.calls.append("validation")
        own = {name: p.detach().clone() for name, p in self.phase.model.named_parameters()}
        self.phase.model.load_state_dict(self.mean, strict=False)
        yield
        self.phase.model.load_state_dict(own, strict=False)

    def end(self, step: int) -> None:
        self.calls.append(f"end {step}")

    def state(self) -> dict[str, Any]:
        return {"averaged": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.steps = state["averaged"]

    def tensors(self) -> dict[str, Tensor]:
        return self.mean

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = {name: tensors[name].clone() for name in self.mean}


@pytest.mark.slow
def test_a_watcher_sees_every_step_and_goes_on_over_a_resume(
    tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Averaging] = []

    def make(phase: Watched) -> Averaging:
        made.append(Averaging(phase))
        return made[-1]

    monkeypatch.setattr(trainer, "WATCHERS", [*WATCHERS, make])
    options = ("--no-distill", "--max-steps", "5")
    assert tiny_train(*options, out="whole") == 0
    (watcher,) = made
    steps = [(f"before {step}", f"after {step}", f"report {step + 1}") for step in range(5)]
    epochs = (*itertools.chain(*steps[:4]), "validation"), (*steps[4], "validation")
    assert watcher.calls == [*epochs[0], *epochs[1], "end 5"]
    train_lines = [line for line in metrics(tmp_path / "whole") if line["kind"] == "train"]
    assert [line["averaged"] for line in train_lines] == [1, 2, 3, 4, 5]

    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> Any:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, *args)

    monkeypatch.setattr(trainer.Phase, "_train_step", interrupted)
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train("--resume", out="parts") == 0
    whole, parts = (
        load_file(list_checkpoints(tmp_path / name / "student" / "checkpoints")[-1] / OPTIMIZER)
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert sum(name.startswith("Averaging.") for name in whole) == len(watcher.mean)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")  # the scores too: of the averaged weights
