"""One optimiser step on the global batch, or a skipped one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoominnet.config import TrainConfig
from zoominnet.data import Batch
from zoominnet.distill import Distiller
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.losses import combine_losses
from zoominnet.engine.optim import Schedule
from zoominnet.engine.step import StepLosses
from zoominnet.engine.watchers import Watcher

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Forward pass, losses of all ranks, backward pass, and the optimiser's step where everything is finite."""

    config: TrainConfig
    schedule: Schedule
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    distiller: Distiller | None
    watchers: Sequence[Watcher]
    ranks: Ranks

    def __call__(self, module: nn.Module, step: int, batch: Batch, measure: bool, received: list[int]) -> StepOutcome:
        """Does step `step` (0 is the first); what is skipped leaves nothing behind in weights or statistics.

        Args:
            module: a :class:`TrainingModule`, in DDP where there are several ranks.
            step: optimiser steps done.
            batch: this rank's share.
            measure: whether the values are logged.
            received: stop signals that this rank has received.
        """
        lr = self.schedule.at(step)
        self.optimizer.param_groups[0]["lr"] = lr
        statistics = batch_statistics(module)
        before = [buffer.clone() for buffer in statistics]
        dtype = AUTOCAST_DTYPES.get(self.config.amp)
        with torch.autocast(self.ranks.device.type, dtype=dtype, enabled=dtype is not None):
            losses: StepLosses = module(*self._to_device(batch))
        weight = 0.0 if self.distiller is None else self.distiller.options.weight_at(step)
        whole = combine_losses(losses, self.distiller, weight, self.ranks, received)

        self.optimizer.zero_grad(set_to_none=True)
        with ExitStack() as around:
            for watcher in self.watchers:
                around.enter_context(watcher.around_backward(measure, whole.weighted_distill, losses.features))
            self.scaler.scale(whole.loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        values, stop = whole.read(self.distiller, weight, self.ranks)
        scale = self.scaler.get_scale()

        # Every rank has the same losses and, by DDP, the same gradients: all of them take the same branch.
        applied = math.isfinite(values["loss"]) and math.isfinite(float(norm))
        if applied:
            if self.config.clip_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(module.parameters(), self.config.clip_grad_norm, norm)
            self.scaler.step(self.optimizer)
        else:
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
        self.scaler.update()
        return StepOutcome({**values, "grad_norm": float(norm), "lr": lr}, applied, scale, stop)

    def _to_device(self, batch: Batch) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Images and targets as :class:`TrainingModule` takes them."""
        device, targets = self.ranks.device, []
        for target in batch.targets:
            kept = {"boxes": target["boxes"], "labels": target["labels"], "ignored": target["ignored"]}
            if self.config.ignored == "drop":
                del kept["ignored"]
            targets.append({name: tensor.to(device, non_blocking=True) for name, tensor in kept.items()})
        return batch.images.to(device, non_blocking=True), targets


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass changes: running means and variances, and the counters of batches."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
        for buffer in module.buffers()
    ]
