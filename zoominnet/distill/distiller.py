"""The pairs of feature maps that are compared, the AKDP mask of each, and the position-aware L2 loss.

Sizes in shapes: B images, L levels, C channels, h x w the student's map, H x W the compared map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoominnet.kernels import AnchorGrid, akdp_mask, akdp_stats, pa_l2_loss
from zoominnet.models import RetinaNet


@dataclass(frozen=True)
class DistillOptions:
    """The paper's open questions as named options (PEERS section 5); the defaults are the profile `paper`.

    Attributes:
        weight: lambda_distill of Eq. 21-22.
        at: "fpn" compares the pyramid's outputs, "tower" those of both head towers (their losses add).
        threshold: "adaptive" (Eq. 15), "adaptive-nonzero" (over overlapping pairs only) or a factor in (0, 1) in
            lambda's place (0.5: Wang et al. 2019).
        scope: "level": lambda and the maxima of each level alone; "all": of all levels together; "per_gt": of each level
            and box.
        boxes: "all": every box counts at every level; "best-level": a box counts only at the level where it finds
            its highest IoU.
        channels: "sum" (Eq. 20) or "mean" over the channels.
        levels: "sum" or "mean" over the levels.
        divisor: the sum is divided by this times the number of masked positions: 1 (Eq. 21), or 2 as Wang et al.
        warmup_steps: the weight rises linearly from 0 over so many steps.
    """

    weight: float = 0.01
    at: Literal["fpn", "tower"] = "fpn"
    threshold: Literal["adaptive", "adaptive-nonzero"] | float = "adaptive"
    scope: Literal["level", "all", "per_gt"] = "level"
    boxes: Literal["all", "best-level"] = "all"
    channels: Literal["sum", "mean"] = "sum"
    levels: Literal["sum", "mean"] = "sum"
    divisor: float = 1.0
    warmup_steps: int = 0

    def weight_at(self, step: int) -> float:
        """The weight of optimiser step `step` (0 is the first)."""
        return self.weight if step >= self.warmup_steps else self.weight * (step + 1) / self.warmup_steps


@dataclass(frozen=True)
class DistillOutput:
    """Attributes:
    loss: the unweighted loss, a scalar differentiable in the student.
    level_losses: [L], differentiable too; each is a sum / `masked`.
    masked: int64 [L], number of masked positions in the batch.
    coverage: [L], share of masked positions in 0..1.
    """

    loss: Tensor
    level_losses: Tensor
    masked: Tensor
    coverage: Tensor


class Distiller:
    """Compares a student with its teacher, which it freezes and keeps in evaluation mode.

    It is no module on purpose: the teacher stays out of the student's state dict, optimiser and DDP wrapper, and
    ``student.train()`` cannot reach it.

    Args:
        student: "snet", "la", "fa-thin" or "fa".
        teacher: the "teacher" model, fed images of twice the student's size.
        options: see :class:`DistillOptions`.

    Raises:
        ValueError: models whose maps cannot be paired.
    """

    def __init__(self, student: RetinaNet, teacher: RetinaNet, options: DistillOptions) -> None:
        if teacher.name != "teacher" or student.name == "teacher":
            raise ValueError(f"cannot distil from {teacher.name!r} into {student.name!r}: need a teacher and a student")
        if teacher.image_size != 2 * student.image_size:
            raise ValueError(
                f"the teacher's input side, {teacher.image_size} px, is not twice the student's, {student.image_size} px"
            )
        if teacher.num_classes != student.num_classes:
            raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")
        if teacher.channels != student.channels:
            raise ValueError(f"the teacher's maps have {teacher.channels} channels, the student's {student.channels}")
        deepest = 2**student.architecture.last_level
        if student.architecture.upsample_head and student.image_size % deepest:
            raise ValueError(
                f"image_size: {student.image_size} px; distillation into {student.name!r} needs a multiple of {deepest}, "
                "so that twice its deepest map is the teacher's"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.options = options
        self.upsample = student.architecture.upsample_head
        self.subsample = student.name == "snet"
        self.backend = student.kernel_backend

    @torch.no_grad()
    def teacher_maps(self, images: Tensor) -> list[Tensor]:
        """The teacher's maps for images [B, 3, 2S, 2S] in 0..1: [B, C, H, W] a level (and a tower)."""
        return self.maps(self.teacher, self.teacher.features(images), None)

    def maps(
        self, model: RetinaNet, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]] | None
    ) -> list[Tensor]:
        """The maps of `model` that are compared; `towers` are its head's tower outputs where they are known already."""
        if self.options.at == "fpn":
            return features
        classification, regression = towers if towers is not None else model.head.towers(features)
        return [*classification, *regression]

    def masks(self, grids: Sequence[AnchorGrid], boxes: Sequence[Tensor]) -> list[Tensor]:
        """The key positions: bool [B, H, W] a level, for the student's own anchors and boxes in its pixels."""
        options, grids, boxes = self.options, list(grids), list(boxes)
        if options.boxes == "all":
            return akdp_mask(grids, boxes, threshold=options.threshold, scope=options.scope, backend=self.backend)
        stats = akdp_stats(grids, boxes, backend=self.backend)
        best_levels = [
            torch.stack(list(max_iou)).argmax(dim=0) for max_iou in zip(*(s.max_iou for s in stats), strict=True)
        ]
        return [
            akdp_mask(
                grid,
                [b[best == level] for b, best in zip(boxes, best_levels, strict=True)],
                threshold=options.threshold,
                scope=options.scope,
                backend=self.backend,
            )
            for level, grid in enumerate(grids)
        ]

    def __call__(
        self,
        student_maps: list[Tensor],
        teacher_maps: list[Tensor],
        grids: Sequence[AnchorGrid],
        boxes: Sequence[Tensor],
    ) -> DistillOutput:
        """The distillation loss of one batch.

        Args:
            student_maps, teacher_maps: from :meth:`maps` and :meth:`teacher_maps`.
            grids: the student's anchor grids.
            boxes: B tensors [G, 4], px of the student's input.
        """
        masks = self.masks(grids, boxes)
        losses = []
        for i, (student, teacher) in enumerate(zip(student_maps, teacher_maps, strict=True)):
            reference = teacher[..., ::2, ::2] if self.subsample else teacher
            mask = masks[i % len(masks)]
            losses.append(
                pa_l2_loss(student, reference, mask, channel_reduction=self.options.channels, backend=self.backend)
            )
        # With "tower" the two towers' losses of a level add up.
        per_level = torch.stack(losses).view(-1, len(masks)).sum(dim=0) / self.options.divisor
        masked = torch.stack([mask.sum() for mask in masks])
        coverage = torch.stack([mask.float().mean() for mask in masks])
        return DistillOutput(self.over_levels(per_level), per_level, masked, coverage)

    def over_levels(self, level_losses: Tensor) -> Tensor:
        """The loss of a batch from those of its levels, [L]."""
        return level_losses.sum() if self.options.levels == "sum" else level_losses.mean()
