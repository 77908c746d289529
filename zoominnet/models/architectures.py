"""The models of the method, each told by one description; a new student is one more entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SIZE_DIVISOR = 32
"""Images are padded to a multiple of this, so that C2..C5 halve exactly."""
TEACHER = "teacher"
"""The model that students learn from, unless they are given another."""

Pairing = Literal["same", "shifted", "upsampled", "subsampled"]
"""How a student's maps pair with the teacher's, level l of its pyramid with one of the same number of cells:

- "same": with level l as it is;
- "shifted": with level l + 1, which at twice the input has the same cells (FA);
- "upsampled": with level l, which at twice the input has four cells for each of the student's (LA);
- "subsampled": with every second row and column of level l (plain RetinaNet).
"""


@dataclass(frozen=True)
class Architecture:
    """What tells the models apart (DESIGN section 2).

    Attributes:
        first_level, last_level: of the pyramid.
        head_depth: convolutions of each head tower.
        upsample_head: layer adaption, nearest 2x between tower and predictor.
        anchor_side: of a cell's smallest square anchor, in strides (octave_base_scale of the authors' configurations).
        head: a name in :data:`zoominnet.models.heads.HEADS`.
        input_divisor: the model sees the images of a batch at 1 / this of their side (2: their 2x2 mean).
        pairing: how its maps pair with the teacher's; None for a teacher, which learns from nobody.
        fuses_scales: it sees its input at full and at half size, and predicts from both pyramids fused
            (:class:`zoominnet.models.fusion.ScaleFusion`): of the half size one level earlier, where the cells are as many.
    """

    first_level: int
    last_level: int
    head_depth: int
    upsample_head: bool = False
    anchor_side: float = 3
    head: str = "retina"
    input_divisor: Literal[1, 2] = 2
    pairing: Pairing | None = None
    fuses_scales: bool = False

    @property
    def is_student(self) -> bool:
        """Whether it can learn from a teacher; what cannot is one."""
        return self.pairing is not None

    @property
    def strides(self) -> tuple[int, ...]:
        """Cell size of each level's predictions, px of the model's input."""
        shift = 1 if self.upsample_head else 0
        return tuple(2 ** (level - shift) for level in self.levels)

    @property
    def levels(self) -> range:
        """The levels that are predicted from, finest first."""
        return range(self.first_level, self.last_level + 1)

    @property
    def half_size_levels(self) -> range:
        """The levels of the image at half size that have the cells of `levels` at full size."""
        return range(self.first_level - 1, self.last_level)

    @property
    def pyramid_levels(self) -> range:
        """The levels that the neck makes, of one size of the image or the other."""
        return range(self.half_size_levels.start if self.fuses_scales else self.first_level, self.last_level + 1)

    @property
    def size_divisor(self) -> int:
        """What the sides of the input must be multiples of, px."""
        return 2 * SIZE_DIVISOR if self.fuses_scales else SIZE_DIVISOR

    @property
    def distill_size_multiple(self) -> int:
        """What the side of the input must be a multiple of, px, for its maps to pair with the teacher's."""
        return 2**self.last_level if self.pairing == "upsampled" else SIZE_DIVISOR


ARCHITECTURES = {
    TEACHER: Architecture(3, 7, 4, input_divisor=1),
    "snet": Architecture(3, 7, 4, pairing="subsampled"),
    "snet-12px": Architecture(3, 7, 4, anchor_side=1.5, pairing="subsampled"),
    "la": Architecture(3, 7, 4, upsample_head=True, pairing="upsampled"),
    "fa-thin": Architecture(2, 6, 2, pairing="shifted"),
    "fa": Architecture(2, 6, 4, pairing="shifted"),
    "teacher-fused": Architecture(3, 7, 4, input_divisor=1, fuses_scales=True),
}
STUDENTS = tuple(name for name, architecture in ARCHITECTURES.items() if architecture.is_student)
TEACHERS = tuple(name for name in ARCHITECTURES if name not in STUDENTS)
