"""How much of the gradient is the distillation's: measured where values are logged, and said where it drowns the task."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zoominnet.engine.distributed import Ranks
from zoominnet.engine.host_copy import HostCopy
from zoominnet.engine.watchers.interface import StepReport, Watched, Watcher

GRADIENT_RATIO_WINDOW = 5
"""The warning that distillation outweighs the task looks at the mean of so many measurements, or of all there are at the
end."""


class GradientRatio(Watcher):
    """Adds "distill_gradient_ratio" to the values that are logged, where a teacher is learnt from."""

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.ratios: deque[float] = deque(maxlen=GRADIENT_RATIO_WINDOW)
        self.warned = False
        self._arriving: deque[HostCopy] = deque()  # of the measured steps whose values are not known yet

    @contextmanager
    def around_backward(
        self, measured: bool, weighted_distill: Tensor | None, features: list[Tensor], loss_scale: Tensor
    ) -> Iterator[None]:
        if not measured or weighted_distill is None:
            yield
            return
        distill = torch.autograd.grad(weighted_distill, features, retain_graph=True, allow_unused=True)
        with captured_gradients(features) as totals:
            yield
        self._arriving.append(HostCopy(gradient_squares(distill, totals, loss_scale, self.phase.ranks)))

    def after_step(self, report: StepReport) -> None:
        if not report.measured or not self._arriving:
            return
        distill, task = self._arriving.popleft().read().tolist()
        if report.applied:
            ratio = math.sqrt(distill / task) if task > 0 else math.inf
            report.values["distill_gradient_ratio"] = ratio
            self.ratios.append(ratio)
            if len(self.ratios) == GRADIENT_RATIO_WINDOW:
                self._judge(report.step)

    def end(self, step: int) -> None:
        self._judge(step)  # a short run may have few

    def _judge(self, step: int) -> None:
        mean = sum(self.ratios) / max(len(self.ratios), 1)
        if mean > 1 and not self.warned:
            self.warned = True
            self.phase.warn(
                f" step {step}: the distillation gradient is {mean:.1f} times the task's on the pyramid's outputs; the "
                "task may be drowned: consider a lower --lambda-distill, or --distill-warmup-steps"
            )


def gradient_squares(
    distill: tuple[Tensor | None, ...], totals: list[Tensor | None], scale: Tensor, ranks: Ranks
) -> Tensor:
    """Squared norms of the distillation's and of the task's gradient, float64 [2], on the pyramid's outputs of all ranks.

    Args:
        distill: gradient of the weighted distillation loss, None where a level has none.
        totals: gradient of the scaled whole loss.
        scale: of the loss scaler.
        ranks: all processes.
    """
    squares = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    for part, total in zip(distill, totals, strict=True):
        whole = torch.zeros_like(scale) if total is None else total.float() / scale
        share = torch.zeros_like(scale) if part is None else part.float()
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
