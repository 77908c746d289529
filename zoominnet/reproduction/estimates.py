"""How long runs take, from those that are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from zoominnet.data import Split
from zoominnet.engine.inference import cost_of
from zoominnet.models import build_model
from zoominnet.reproduction.runs import Run

BACKWARD = 2
"""A backward pass computes about twice what the forward pass does."""


@cache
def gflops(architecture: str, backbone: str, channels: int, neck: str, classes: int, image_size: int) -> float:
    """Of one image's forward pass."""
    model = build_model(architecture, backbone, classes, image_size, channels=channels, neck=neck)
    return float(cost_of(model.eval())["gflops"])


class Estimates:
    """Time from work: the multiply-adds of a run's images, at the rate of the runs that are done here.

    Args:
        runs: all.
        data: gives the split that they train on.
    """

    def __init__(self, runs: Sequence[Run], data: Callable[[], Split]) -> None:
        self.runs, self.data = runs, data

    def work(self, run: Run) -> float:
        """Multiply-adds in 1e9: forward and backward pass of the model, forward pass of its teacher."""
        config = run.config

        def one(architecture: str, share: int = 1) -> float:
            made_of = config.made_of(architecture)
            size = config.input_size(architecture) // share
            return gflops(
                architecture, made_of.backbone, made_of.channels, config.neck, len(self.data().class_names), size
            )

        each = (1 + BACKWARD) * one(run.architecture)
        if run.architecture == config.teacher_model and config.teacher_scales == "both":
            each += (1 + BACKWARD) * one(run.architecture, share=2)
        if config.distils and run.teacher is not None:
            each += one(run.teacher.architecture)
        images = run.epochs * len(self.data().records)
        if config.max_steps is not None:
            images = min(images, config.max_steps * config.batch_size)
        return each * images

    def seconds(self, run: Run) -> float | None:
        """Of the whole run; None where nothing is known yet."""
        finished = [each for each in self.runs if each.done() and each.seconds]
        alike = [each for each in finished if each.training.name == run.training.name]
        if alike:
            return sum(each.seconds for each in alike) / len(alike)
        if not finished:
            return None
        return self.work(run) * sum(each.seconds for each in finished) / sum(map(self.work, finished))

    def seconds_left(self, run: Run) -> float | None:
        """Of what is left of a run that was stopped, at least a tenth of the whole."""
        seconds = self.seconds(run)
        return None if seconds is None else max(seconds - run.seconds, seconds / 10)


def duration(seconds: float) -> str:
    """For people: "45 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
