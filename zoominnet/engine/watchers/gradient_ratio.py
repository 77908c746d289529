"""How much of the gradient is the distillation's: measured where values are logged or the weight depends on it, and said
where it drowns the task."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zoominnet.data import Batch
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.host_copy import HostCopy
from zoominnet.engine.watchers.interface import StepReport, Watched, Watcher

GRADIENT_RATIO_WINDOW = 5
"""The warning that distillation outweighs the task looks at the mean of so many measurements, or of all there are at the
end."""


class GradientRatio(Watcher):
    """Adds "distill_gradient_ratio" to the values that are logged, where a teacher is learnt from, and tells it to the weight
    that is to hold it."""

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.ratios: deque[float] = deque(maxlen=GRADIENT_RATIO_WINDOW)
        self.warned = False
        self._step_wants_it = False
        self._arriving: deque[HostCopy | None] = (
            deque()
        )  # of the steps whose values are not known yet; None: not measured

    @contextmanager
    def around_step(self, step: int, batch: Batch) -> Iterator[None]:
        self._step_wants_it = self.phase.held_weight is not None and self.phase.held_weight.measures(step)
        yield

    @contextmanager
    def around_backward(
        self, measured: bool, weighted_distill: Tensor | None, features: list[Tensor], loss_scale: Tensor
    ) -> Iterator[None]:
        if not (measured or self._step_wants_it) or weighted_distill is None:
            yield
            self._arriving.append(None)
            return
        # Scaled, lest in fp16 a small weight leave nothing of it.
        distill = torch.autograd.grad(weighted_distill * loss_scale, features, retain_graph=True, allow_unused=True)
        with captured_gradients(features) as totals:
            yield
        self._arriving.append(HostCopy(gradient_squares(distill, totals, loss_scale, self.phase.ranks)))

    def after_step(self, report: StepReport) -> None:
        arrived = self._arriving.popleft()
        if arrived is None:
            return
        distill, task = arrived.read().tolist()
        if report.applied:
            ratio = math.sqrt(distill / task) if task > 0 else math.inf
            report.values["distill_gradient_ratio"] = ratio
            if (held := self.phase.held_weight) is not None and held.measures(report.step - 1):  # logged or not
                held.tell(report.step - 1, report.values["lambda_distill"], ratio)
            self.ratios.append(ratio)
            if len(self.ratios) == GRADIENT_RATIO_WINDOW:
                self._judge(report.step)

    def end(self, step: int) -> None:
        self._judge(step)  # a short run may have few

    def _judge(self, step: int) -> None:
        mean = sum(self.ratios) / max(len(self.ratios), 1)
        held = self.phase.held_weight
        limit = 1.0 if held is None else max(1.0, 2 * held.target)  # what is held was asked for
        if mean > limit and not self.warned:
            self.warned = True
            lower = "--lambda-distill" if held is None else "--distill-gradient-ratio"
            self.phase.warn(
                f" step {step}: the distillation gradient is {mean:.1f} times the task's on the pyramid's outputs; the "
                f"task may be drowned: consider a lower {lower}, or --distill-warmup-steps"
            )

    def state(self) -> dict[str, Any]:
        held = self.phase.held_weight
        return {} if held is None else {"held_weight": held.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.phase.held_weight is not None:
            self.phase.held_weight.load_state(state["held_weight"])


def gradient_squares(
    distill: tuple[Tensor | None, ...], totals: list[Tensor | None], scale: Tensor, ranks: Ranks
) -> Tensor:
    """Squared norms of the distillation's and of the task's gradient, float64 [2], on the pyramid's outputs of all ranks.

    Args:
        distill: gradient of the scaled weighted distillation loss, None where a level has none.
        totals: gradient of the scaled whole loss.
        scale: of the loss scaler.
        ranks: all processes.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for part, total in zip(distill, totals, strict=True):
        whole = torch.zeros_like(scale) if total is None else total.float() / scale
        share = torch.zeros_like(scale) if part is None else part.float() / scale
        squares[0] += share.square().sum()
        squares[1] += (whole - share).square().sum()
    return ranks.sum(squares)


@contextmanager
def captured_gradients(tensors: list[Tensor]) -> Iterator[list[Tensor | None]]:
    """A list that the next backward pass fills with the gradients of `tensors`."""
    gradients: list[Tensor | None] = [None] * len(tensors)

    def keeper(i: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            gradients[i] = gradient

        return keep

    handles = [tensor.register_hook(keeper(i)) for i, tensor in enumerate(tensors)]
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()
