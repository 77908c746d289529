"""One optimiser step on the global batch, or a skipped one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from zoominnet.config import TrainConfig
from zoominnet.data import Batch, to_device
from zoominnet.distill import Distiller
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.host_copy import HostCopy
from zoominnet.engine.losses import combine_losses, read_losses
from zoominnet.engine.optim import Schedule
from zoominnet.engine.precision import AUTOCAST_DTYPES
from zoominnet.engine.step import StepLosses
from zoominnet.engine.watchers import Watcher


@dataclass(frozen=True)
class StepOutcome:
    """The same on every rank.

    Attributes:
        values: the global batch's losses and rates, JSON-ready.
        applied: False where the step was skipped.
        loss_scale: of the gradients, where fp16 scales them.
        stop: a stop signal that some rank has received.
    """

    values: dict[str, Any]
    applied: bool
    loss_scale: float
    stop: int | None


@dataclass(frozen=True)
class Update:
    """Forward pass, losses of all ranks, backward pass, and the optimiser's step where everything is finite.

    The host reads nothing that the device computes: whether a step is skipped is decided there.
    """

    config: TrainConfig
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    distiller: Distiller | None
    watchers: Sequence[Watcher]
    ranks: Ranks

    def __call__(
        self, module: nn.Module, step: int, batch: Batch, measure: bool, received: list[int]
    ) -> Callable[[], StepOutcome]:
        """Does step `step` (0 is the first); what is skipped leaves nothing behind in weights or statistics.

        Args:
            module: a :class:`TrainingModule`, in DDP where there are several ranks.
            step: optimiser steps done.
            batch: this rank's share.
            measure: whether the values are logged.
            received: stop signals that this rank has received.

        Returns:
            What waits for the step to be done and tells what came of it.
        """
        lr = self.schedule.at(step)
        self.optimizer.param_groups[0]["lr"] = lr
        statistics = batch_statistics(module)
        before = [buffer.clone() for buffer in statistics]
        with record_function("transfer"):
            images, targets = to_device(batch, self.ranks.device, ignored=self.config.ignored == "honour")
        dtype = AUTOCAST_DTYPES.get(self.config.amp)
        with torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not None):
            losses: StepLosses = module(images, targets)
        weight = 0.0 if self.distiller is None else self.distiller.weight_at(step)
        whole = combine_losses(losses, self.distiller, weight, self.ranks, received)
        scale = self.scaler.scale(torch.ones((), device=self.ranks.device))

        self.optimizer.zero_grad(set_to_none=True)
        with record_function("backward"), ExitStack() as around:
            for watcher in self.watchers:
                around.enter_context(watcher.around_backward(measure, whole.weighted_distill, losses.features, scale))
            self.scaler.scale(whole.loss).backward()
        with record_function("optimiser"):
            norm, skipped = self._apply(list(module.parameters()), whole.sums, scale)
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(torch.where(skipped, value, buffer))
            for watcher in self.watchers:
                watcher.after_update(skipped)
        half = whole.half
        arriving = HostCopy(torch.cat([whole.sums, torch.stack([norm, scale, skipped.float()]).double()]))

        def outcome() -> StepOutcome:
            sums, last = arriving.read().tensor_split([-3])
            norm, scale, skipped = last.tolist()
            values, stop = read_losses(sums, self.distiller, weight, self.ranks, half)
            return StepOutcome({**values, "grad_norm": norm, "lr": lr}, not skipped, scale, stop)

        return outcome

    def _apply(self, parameters: list[nn.Parameter], sums: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The optimiser's step, unless loss or gradient are not finite.

        Args:
            parameters: all.
            sums: of the global batch's losses.
            scale: of the gradients.

        Returns:
            The gradient's norm, and whether the step was skipped. Every rank has the same losses and, by DDP, the same
            gradients: all of them do the same.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = torch.logical_not(sums.isfinite().all() & norm.isfinite())
        norm = norm / scale
        if self.scaler.is_enabled():
            # It skips what has a gradient that is not finite, and then lowers its scale: a loss that is not must show there.
            gradients[0][(0,) * gradients[0].ndim].add_(torch.where(skipped, torch.nan, 0.0))
            self.scaler.unscale_(self.optimizer)
        if self.config.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad_norm, norm)
        # The fused optimisers leave all as it is where this is not 0; the scaler sets it by itself.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm, skipped


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass changes: running means and variances, and the counters of batches."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for buffer in module.buffers()
    ]
