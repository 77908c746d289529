"""The losses of the whole batch, from those of each rank's share of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoominnet.distill import Distiller
from zoominnet.engine.distributed import Ranks
from zoominnet.engine.step import StepLosses
from zoominnet.engine.stopping import STOP_SIGNALS, first_stop

_TASK = 3
"""So many sums are of the task: the two losses and the positive anchors. Those of the half size are the last."""
_FIRST_PART = _TASK + len(STOP_SIGNALS)
"""Where the distillation's sums begin: behind the task's and the signals."""


@dataclass
class GlobalLosses:
    """Of the whole global batch, on any number of ranks.

    Attributes:
        loss: scalar of this rank, in the graph; the mean of its gradient over the ranks is the global loss' gradient.
        weighted_distill: the distillation's part of it, None without a teacher.
        sums: float64, what :func:`read_losses` makes values of; the same on every rank.
        half: whether there are losses of the half size.
    """

    loss: Tensor
    weighted_distill: Tensor | None
    sums: Tensor
    half: bool


def read_losses(
    sums: Tensor, distiller: Distiller | None, weight: float, ranks: Ranks, half: bool = False
) -> tuple[dict[str, Any], int | None]:
    """The global losses and coverages, JSON-ready, and the signal that some rank has received.

    Args:
        sums: of :class:`GlobalLosses`, on the host.
        distiller, weight: of the distillation loss.
        ranks: all processes.
        half: of :class:`GlobalLosses`.
    """
    values: dict[str, Any] = _task_values(sums[:_TASK])
    if half:
        values |= {f"{name}_half": value for name, value in _task_values(sums[-_TASK:]).items()}
    values["loss"] = sum(values.values())
    stops = sums[_TASK:_FIRST_PART].tolist()
    if distiller is not None:
        part_sums, masked, coverage = _of_levels(sums, distiller, half)
        parts = part_sums / masked.clamp(min=1)
        level_losses = distiller.by_level(parts)
        values["distill"] = float(distiller.over_levels(level_losses))
        values["loss"] += weight * values["distill"]
        values["lambda_distill"] = weight
        values["distill_levels"] = level_losses.tolist()
        if len(parts) > 1:
            values |= {f"distill_{name}": part.tolist() for name, part in zip(distiller.losses, parts, strict=True)}
        values["coverage"] = (coverage / ranks.size).tolist()
    return values, first_stop(stops)


def _task_values(sums: Tensor) -> dict[str, float]:
    classification, regression, positives = sums.tolist()
    return {
        "classification": classification / max(positives, 1),
        "bbox_regression": regression / max(positives, 1),
    }


def _of_levels(sums: Tensor, distiller: Distiller, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of N distillation losses on L levels the sums [N, L], masked positions [L], coverage [L]."""
    table = sums[_FIRST_PART : -_TASK if half else None].view(len(distiller.losses) + 2, -1)
    return table[:-2], table[-2], table[-1]


def combine_losses(
    losses: StepLosses, distiller: Distiller | None, weight: float, ranks: Ranks, received: list[int]
) -> GlobalLosses:
    """Brings the ranks' shares of a batch together by one sum, before the backward pass.

    Args:
        losses: of this rank's share.
        distiller, weight: of the distillation loss.
        ranks: all processes.
        received: signals that this one has received.
    """
    task, positives, distill, half = losses.task, losses.positives, losses.distill, losses.half
    own = _task_sums(task, positives)
    flags = positives.new_zeros(len(STOP_SIGNALS))
    for number in received:
        flags[STOP_SIGNALS.index(number)].fill_(1)
    own.append(flags)
    if distill is not None:
        own += [(distill.parts.detach() * distill.masked).flatten(), distill.masked, distill.coverage]
    if half is not None:
        own += _task_sums(half.task, half.positives)
    sums = ranks.sum(torch.cat([part.double() for part in own]))

    loss = _task_loss(task, sums[_TASK - 1], ranks)
    if half is not None:
        loss = loss + _task_loss(half.task, sums[-1], ranks)
    weighted = None
    if distill is not None and distiller is not None:
        masked = _of_levels(sums, distiller, half is not None)[1]
        shares = ranks.size * distill.masked / masked.clamp(min=1)
        weighted = weight * distiller.over_levels(distill.level_losses * shares.float())
        loss = loss + weighted
    return GlobalLosses(loss, weighted, sums, half is not None)


def _task_sums(task: dict[str, Tensor], positives: Tensor) -> list[Tensor]:
    return [torch.stack([task["classification"], task["bbox_regression"]]).detach(), positives.view(1)]


def _task_loss(task: dict[str, Tensor], positives: Tensor, ranks: Ranks) -> Tensor:
    # DDP takes the mean over the ranks, so each divides by the global count's share.
    divisor = (positives.clamp(min=1) / ranks.size).float()
    return task["classification"] / divisor + task["bbox_regression"] / divisor
