"""Which maps of the student are compared with which of the teacher's, as their architectures say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoominnet.distill.adapter import Adapter
from zoominnet.models import Architecture, Outputs, Predictions, RetinaNet
from zoominnet.models.interfaces import Part


@dataclass(frozen=True)
class Site:
    """A place in the models where maps are compared.

    Attributes:
        needs: how far the models must be run.
        lists: how many lists of maps there are.
        maps: from their outputs, these lists, of a map a level.
    """

    needs: Part
    lists: int
    maps: Callable[[Outputs], list[list[Tensor]]]


def _towers(outputs: Outputs) -> list[list[Tensor]]:
    assert outputs.towers is not None
    return list(outputs.towers)


SITES = {"fpn": Site("features", 1, lambda outputs: [outputs.features]), "tower": Site("towers", 2, _towers)}


@dataclass(frozen=True)
class MapPair:
    """Two maps that are compared.

    Attributes:
        student: [B, C, h, w], adapted where the models differ in their channels.
        teacher: [B, C, H, W], with (H, W) the student's (h, w), or twice that for a map that is upsampled.
        level: index of the student's level, whose mask [B, H, W] tells where.
    """

    student: Tensor
    teacher: Tensor
    level: int


@dataclass(frozen=True)
class SameAnchors:
    """Anchors of the teacher that are the anchors of a level of the student, at the student's input, one to one.

    Attributes:
        level: index of the teacher's level.
        step: they are those of every so many-th row and column of it.
    """

    level: int
    step: int

    def of(self, predictions: Predictions) -> tuple[Tensor, Tensor]:
        """Of the teacher's predictions their logits [B, A, classes] and deltas [B, A, 4]."""
        logits, deltas = predictions.logits[self.level], predictions.deltas[self.level]
        if self.step == 1:
            return logits, deltas
        cells = predictions.grids[self.level].shape
        thinned = (x.unflatten(1, (*cells, -1))[:, :: self.step, :: self.step].flatten(1, 3) for x in (logits, deltas))
        return next(thinned), next(thinned)


def same_anchors(student: Architecture, stride: int, teacher: Architecture) -> SameAnchors | None:
    """Which anchors of `teacher` are those of the student's level of `stride`; None where there are none.

    In the pixels that both see, a level's anchors have the side `anchor_side` x stride and stand a stride apart.
    """
    side, distance = student.anchor_side * stride * student.input_divisor, stride * student.input_divisor
    for level, other in enumerate(teacher.strides):
        step, between = divmod(distance, other * teacher.input_divisor)
        if teacher.anchor_side * other * teacher.input_divisor == side and step and not between:
            return SameAnchors(level, step)
    return None


class MapPairs:
    """The pairs of a student and a teacher.

    Args:
        student, teacher: the models.
        site: of `SITES`, where maps are compared whose channels may differ.
        seed: of the adapter's initial weights.

    Attributes:
        same_anchors: for each level of the student the teacher's that has its anchors, None where none has.
        subsample: every second row and column of the teacher's maps is compared.
        adapter: brings the student's maps at `site` to the teacher's channels; None where they are equal.

    Raises:
        ValueError: models whose maps cannot be paired.
    """

    def __init__(self, student: RetinaNet, teacher: RetinaNet, site: str, seed: int = 0) -> None:
        own, theirs = student.architecture, teacher.architecture
        if theirs.is_student or not own.is_student:
            raise ValueError(f"cannot distil from {teacher.name!r} into {student.name!r}: need a teacher and a student")
        if teacher.image_size * theirs.input_divisor != student.image_size * own.input_divisor:
            times = {0.5: "half", 1: "as large as", 2: "twice"}[own.input_divisor / theirs.input_divisor]
            raise ValueError(
                f"the teacher's input side, {teacher.image_size} px, is not {times} the student's, "
                f"{student.image_size} px"
            )
        if teacher.num_classes != student.num_classes:
            raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")
        if student.image_size % own.distill_size_multiple:
            raise ValueError(
                f"image_size: {student.image_size} px; distillation into {student.name!r} needs a multiple of "
                f"{own.distill_size_multiple}, so that twice its deepest map is the teacher's"
            )
        self.partners = partners(own, theirs)
        self.same_anchors = tuple(same_anchors(own, stride, theirs) for stride in own.strides)
        self.subsample = own.pairing == "subsampled"
        self.site = site
        self.adapter: Adapter | None = None
        if teacher.channels != student.channels:
            lists, levels = SITES[site].lists, len(own.levels)
            adapter = Adapter(student.channels, teacher.channels, lists, levels, seed)
            self.adapter = adapter.to(student.mean.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def at(self, site: str, student: Outputs, teacher: Outputs) -> list[MapPair]:
        """The pairs at one of `SITES`, level by level, then those of its next list of maps.

        Raises:
            ValueError: the channels differ, and the adapter is for another site.
        """
        maps = SITES[site].maps(student)
        if self.adapter is not None:
            if site != self.site:
                raise ValueError(f"the models differ in channels, and the adapter is for {self.site!r}, not {site!r}")
            maps = self.adapter(maps)
        found = []
        for own, theirs in zip(maps, SITES[site].maps(teacher), strict=True):
            for level, (map_, partner) in enumerate(zip(own, self.partners, strict=True)):
                other = theirs[partner]
                if self.subsample and other.shape[-2:] != map_.shape[-2:]:  # the neck may have done it
                    other = other[..., ::2, ::2]
                found.append(MapPair(map_, other, level))
        return found


def partners(student: Architecture, teacher: Architecture) -> tuple[int, ...]:
    """For each level of the student the index of the teacher's level that it is compared with.

    Raises:
        ValueError: the teacher lacks one.
    """
    shift = 1 if student.pairing == "shifted" else 0
    wanted = [level + shift for level in student.levels]
    if missing := [f"P{level}" for level in wanted if level not in teacher.levels]:
        raise ValueError(f"the teacher has no {', '.join(missing)} for the student's maps to be compared with")
    return tuple(level - teacher.first_level for level in wanted)
