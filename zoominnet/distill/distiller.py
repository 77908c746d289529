"""A student and its teacher: the masks, and the losses that the options list.

Sizes in shapes: B images, N losses, L levels, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.profiler import record_function

from zoominnet.distill.losses import LOSSES, DistillStep
from zoominnet.distill.masks import MASKS
from zoominnet.distill.options import DistillOptions
from zoominnet.distill.pairs import MapPairs
from zoominnet.distill.weight import HeldWeight
from zoominnet.kernels import AnchorGrid
from zoominnet.models import Outputs, RetinaNet, frozen_copy
from zoominnet.models.interfaces import Part


@dataclass(frozen=True)
class DistillOutput:
    """Attributes:
    loss: the unweighted loss, a scalar differentiable in the student.
    level_losses: [L], the loss of each level, differentiable too.
    parts: [N, L], the losses of the options one by one, differentiable too; each is a sum / `masked`.
    masked: int64 [L], number of masked positions in the batch.
    coverage: [L], share of masked positions in 0..1.
    """

    loss: Tensor
    level_losses: Tensor
    parts: Tensor
    masked: Tensor
    coverage: Tensor


class Distiller:
    """Compares a student with its teacher, of which it keeps a frozen copy that is as fast as the teacher can be.

    It is no module on purpose: the teacher stays out of the student's state dict, optimiser and DDP wrapper, and
    ``student.train()`` cannot reach it. What of it is trained is its `adapter`, which :class:`TrainingModule` takes in.

    Args:
        student: a model whose architecture says how its maps pair with a teacher's.
        teacher: a model of `TEACHERS`.
        options: see :class:`DistillOptions`.
        seed: of the adapter's initial weights.
        dtype: of the teacher's weights and maps, the one of the student's under autocast; None is float32.

    Attributes:
        teacher: the copy (:func:`zoominnet.models.frozen_copy`), as far as the losses need it.
        adapter: brings the student's maps to the teacher's channels; None where they are equal.
        held: the weight that the options call "auto"; None where they say a number.

    Raises:
        ValueError: models whose maps cannot be paired.
    """

    def __init__(
        self,
        student: RetinaNet,
        teacher: RetinaNet,
        options: DistillOptions,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pairs = MapPairs(student, teacher, options.at, seed)
        self.adapter = self.pairs.adapter
        self.options = options
        self.held = HeldWeight(options.gradient_ratio) if options.weight == "auto" else None
        self.losses = {name: LOSSES[name](options) for name in options.losses}
        self.needs: Part = max((loss.needs for loss in self.losses.values()), key=get_args(Part).index)
        self.teacher = frozen_copy(teacher, self.needs, dtype)
        # Fused maps are weighted by the means of all their cells.
        if self.pairs.subsample and self.needs == "features" and self.teacher.fusion is None:
            self.teacher.fpn.output_step = 2
        self.backend = student.kernel_backend
        self._stream: torch.cuda.Stream | None = None
        self._compiled = False

    def weight_at(self, step: int) -> float:
        """The loss' weight in optimiser step `step` (0 is the first)."""
        weight = self.options.weight if self.held is None else self.held.at(step)
        assert weight != "auto"
        return self.options.warmed_up(weight, step)

    @torch.no_grad()
    def teacher_outputs(self, images: Tensor) -> Outputs:
        """What the teacher makes of images at its size, [B, 3, 2S, 2S] in 0..1, as far as the losses need."""
        # As an option of torch.compile it comes too late for what traces the graph (torch 2.11).
        with torch._inductor.config.patch(freezing=True) if self._compiled else nullcontext():
            return self.teacher.outputs(images, self.needs)

    def begin_teacher(self, images: Tensor) -> Callable[[], Outputs]:
        """Begins :meth:`teacher_outputs`, on a GPU in a stream of its own: what is launched next runs beside it.

        Returns:
            What gives the outputs to the stream that calls it.
        """
        if images.device.type != "cuda":
            outputs = self.teacher_outputs(images)
            return lambda: outputs
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(images.device))
        images.record_stream(stream)  # the memory of either side is not given away while the other may use it
        with torch.cuda.stream(stream):
            outputs = self.teacher_outputs(images)

        def taken() -> Outputs:
            here = torch.cuda.current_stream(images.device)
            here.wait_stream(stream)
            for each in outputs.tensors():
                each.record_stream(here)
            return outputs

        return taken

    def compile_teacher(self) -> None:
        """Has torch.compile compile the teacher, its weights taken for constants."""
        self.teacher.compile_parts()
        self._compiled = True

    def masks(self, grids: Sequence[AnchorGrid], boxes: Sequence[Tensor]) -> list[Tensor]:
        """The key positions: bool [B, H, W] a level, for the student's own anchors and boxes in its pixels."""
        return MASKS[self.options.boxes](grids, boxes, self.options, self.backend)

    def __call__(
        self, student: Outputs, teacher: Outputs, grids: Sequence[AnchorGrid], boxes: Sequence[Tensor]
    ) -> DistillOutput:
        """The distillation loss of one batch.

        Args:
            student, teacher: outputs of the two models, the teacher's from :meth:`teacher_outputs`.
            grids: the student's anchor grids.
            boxes: B tensors [G, 4], px of the student's input.
        """
        with record_function("masks"):
            masks = self.masks(grids, boxes)
        step = DistillStep(student, teacher, self.pairs, masks, list(boxes), self.backend)
        parts = torch.stack([loss(step) for loss in self.losses.values()])
        masked = torch.stack([mask.sum() for mask in masks])
        coverage = torch.stack([mask.float().mean() for mask in masks])
        level_losses = self.by_level(parts)
        return DistillOutput(self.over_levels(level_losses), level_losses, parts, masked, coverage)

    def by_level(self, parts: Tensor) -> Tensor:
        """The loss of each level [L] from the losses of the options [N, L]."""
        factors = self.options.losses.values()
        return functools.reduce(torch.add, (factor * part for factor, part in zip(factors, parts, strict=True)))

    def over_levels(self, level_losses: Tensor) -> Tensor:
        """The loss of a batch from those of its levels [L]."""
        return level_losses.sum() if self.options.levels == "sum" else level_losses.mean()
