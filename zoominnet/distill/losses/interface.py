"""What a distillation loss is given and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoominnet.distill.options import DistillOptions
from zoominnet.distill.pairs import MapPairs
from zoominnet.models import Outputs
from zoominnet.models.interfaces import Part


@dataclass(frozen=True)
class DistillStep:
    """One batch of B images, in L levels of the student.

    Attributes:
        student, teacher: what the models made of it, at least as far as the loss needs.
        pairs: which maps of the two are compared.
        masks: the key positions, bool [B, H, W] a level.
        boxes: B tensors [G, 4], px of the student's input.
        backend: of the kernels.
    """

    student: Outputs
    teacher: Outputs
    pairs: MapPairs
    masks: list[Tensor]
    boxes: list[Tensor]
    backend: str


class DistillLoss:
    """A loss between student and teacher; made from the options once.

    Attributes:
        needs: how far the models are run for it.
    """

    needs: Part = "features"

    def __init__(self, options: DistillOptions) -> None:
        self.options = options

    def __call__(self, step: DistillStep) -> Tensor:
        """[L], differentiable in the student: of each level a sum over its masked positions / max(their number, 1).

        So the losses of the parts of a batch, each times its number of masked positions, add up to that of the whole.
        """
        raise NotImplementedError
