"""What a watcher is told, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.data import Batch
from zoominnet.distill.weight import HeldWeight
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.log import RunLog
from zoominnet.models import RetinaNet


@dataclass(frozen=True)
class Watched:
    """The phase that is watched.

    Attributes:
        name: "teacher" or "student", for people.
        config: of the run.
        model: on its device.
        total_steps: of the phase.
        ranks: the processes that train it together.
        console: where to write.
        held_weight: of the distillation loss, to be told the ratios of gradients; None where there is none or it is given.
    """

    name: str
    config: TrainConfig
    model: RetinaNet
    total_steps: int
    ranks: Ranks
    console: Console
    held_weight: HeldWeight | None = None

    def warn(self, text: str) -> None:
        """One line, behind the phase's name."""
        self.console.print(f"[yellow]{escape(f'{self.name}{text}')}[/]", highlight=False, soft_wrap=True)


@dataclass
class StepReport:
    """A step that is done; the same on every rank.

    Attributes:
        step: how many optimiser steps are done with it.
        values: the global batch's losses and rates, JSON-ready; what a watcher adds is logged.
        measured: whether the values are logged.
        applied: False where it was skipped, for loss or gradient were not finite.
        loss_scale: of the gradients, where fp16 scales them.
        images: the ids of the global batch's images; to be called by all ranks.
        log: of the phase.
    """

    step: int
    values: dict[str, Any]
    measured: bool
    applied: bool
    loss_scale: float
    images: Callable[[], list[int]]
    log: RunLog


def whole_number(state: Mapping[str, Any], name: str) -> int:
    """`state[name]`, a count.

    Raises:
        KeyError, ValueError: there is none, or it is not one.
    """
    value = state[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


class Watcher:
    """Sees every step; this one does nothing. On all ranks the same is called with the same."""

    def __init__(self, phase: Watched) -> None:
        self.phase = phase

    def around_step(self, step: int, batch: Batch) -> AbstractContextManager[None]:
        """Entered before step `step` (0 is the first) on this rank's `batch`, left when it is done."""
        return nullcontext()

    def around_backward(
        self, measured: bool, weighted_distill: Tensor | None, features: list[Tensor], loss_scale: Tensor
    ) -> AbstractContextManager[None]:
        """Entered before the backward pass and left after it.

        Args:
            measured: whether the step's values are logged.
            weighted_distill: the distillation's part of the loss, in the graph; None without a teacher.
            features: the model's pyramid outputs, in the graph.
            loss_scale: of the gradients, where fp16 scales them, else 1; a scalar on the device.
        """
        return nullcontext()

    def after_update(self, skipped: Tensor) -> None:
        """The weights and statistics of a step are made, as far as the device is told; `skipped`, bool[] on the device, is
        True where the step left all as it was. No tensor is to be read."""

    def after_step(self, report: StepReport) -> None:
        """The step's values are known, and not logged yet. On a GPU the next step may have begun: what is to be done with
        the weights that this one has made is done in :meth:`after_update`."""

    def around_validation(self) -> AbstractContextManager[None]:
        """Entered before the model is measured on the validation split, left after it."""
        return nullcontext()

    def model_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a checkpoint's model file is to hold in the place of `tensors`, the model's state dict."""
        return tensors

    def end(self, step: int) -> None:
        """No more steps come in this process; `step` are done."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, JSON-ready; names are those of all watchers together."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave, among more.

        Raises:
            KeyError, ValueError, TypeError: it cannot have been given by it.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, by names of this watcher alone."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`tensors` gave; the model holds what its file does.

        Raises:
            KeyError, ValueError, RuntimeError: they do not fit.
        """
