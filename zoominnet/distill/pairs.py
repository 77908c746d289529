"""Which maps of the student are compared with which of the teacher's, as their architectures say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zoominnet.models import Architecture, Outputs, RetinaNet
from zoominnet.models.interfaces import Part


@dataclass(frozen=True)
class Site:
    """A place in the models where maps are compared.

    Attributes:
        needs: how far the models must be run.
        maps: from their outputs, one or more lists of a map a level.
    """

    needs: Part
    maps: Callable[[Outputs], list[list[Tensor]]]


def _towers(outputs: Outputs) -> list[list[Tensor]]:
    assert outputs.towers is not None
    return list(outputs.towers)


SITES = {"fpn": Site("features", lambda outputs: [outputs.features]), "tower": Site("towers", _towers)}


@dataclass(frozen=True)
class MapPair:
    """Two maps that are compared.

    Attributes:
        student: [B, C, h, w].
        teacher: [B, C, H, W], with (H, W) the student's (h, w), or twice that for a map that is upsampled.
        level: index of the student's level, whose mask [B, H, W] tells where.
    """

    student: Tensor
    teacher: Tensor
    level: int


class MapPairs:
    """The pairs of a student and a teacher.

    Raises:
        ValueError: models whose maps cannot be paired.
    """

    def __init__(self, student: RetinaNet, teacher: RetinaNet) -> None:
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
        if teacher.channels != student.channels:
            raise ValueError(f"the teacher's maps have {teacher.channels} channels, the student's {student.channels}")
        if student.image_size % own.distill_size_multiple:
            raise ValueError(
                f"image_size: {student.image_size} px; distillation into {student.name!r} needs a multiple of "
                f"{own.distill_size_multiple}, so that twice its deepest map is the teacher's"
            )
        self.partners = partners(own, theirs)
        self.subsample = own.pairing == "subsampled"

    def at(self, site: str, student: Outputs, teacher: Outputs) -> list[MapPair]:
        """The pairs at one of `SITES`, level by level, then those of its next list of maps."""
        found = []
        for own, theirs in zip(SITES[site].maps(student), SITES[site].maps(teacher), strict=True):
            for level, (map_, partner) in enumerate(zip(own, self.partners, strict=True)):
                other = theirs[partner]
                found.append(MapPair(map_, other[..., ::2, ::2] if self.subsample else other, level))
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
