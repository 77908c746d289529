"""The options of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DistillOptions:
    """The paper's open questions as named options (PEERS section 5); the defaults are the profile `paper`.

    Attributes:
        weight: lambda_distill of Eq. 21-22; "auto": what :class:`zoominnet.distill.weight.HeldWeight` makes of the gradients.
        losses: which of :data:`zoominnet.distill.losses.LOSSES` are summed, each with its own factor.
        at: one of :data:`zoominnet.distill.pairs.SITES`: "fpn" compares the pyramid's outputs, "tower" those of both head towers (their losses add).
        threshold: "adaptive" (Eq. 15), "adaptive-nonzero" (over overlapping pairs only) or a factor in (0, 1) in
            lambda's place (0.5: Wang et al. 2019).
        scope: "level": lambda and the maxima of each level alone; "all": of all levels together; "per_gt": of each level
            and box.
        boxes: one of :data:`zoominnet.distill.masks.MASKS`: "all": every box counts at every level; "best-level": a box counts only at the level where it finds
            its highest IoU; "everywhere": all positions are key positions, whatever the boxes.
        normalise: compare the maps with each channel standardised over the batch's positions (PKD).
        channels: "sum" (Eq. 20) or "mean" over the channels.
        levels: "sum" or "mean" over the levels.
        divisor: the sum is divided by this times the number of masked positions: 1 (Eq. 21), or 2 as Wang et al.
        warmup_steps: the weight rises linearly from 0 over so many steps.
        gradient_ratio: what weight "auto" holds.
    """

    weight: Literal["auto"] | float = 0.01
    losses: Mapping[str, float] = field(default_factory=lambda: {"pa-l2": 1.0})
    at: str = "fpn"
    threshold: Literal["adaptive", "adaptive-nonzero"] | float = "adaptive"
    scope: Literal["level", "all", "per_gt"] = "level"
    boxes: str = "all"
    normalise: bool = False
    channels: Literal["sum", "mean"] = "sum"
    levels: Literal["sum", "mean"] = "sum"
    divisor: float = 1.0
    warmup_steps: int = 0
    gradient_ratio: float = 0.5

    def warmed_up(self, weight: float, step: int) -> float:
        """What of `weight` holds in optimiser step `step` (0 is the first)."""
        return weight if step >= self.warmup_steps else weight * (step + 1) / self.warmup_steps
