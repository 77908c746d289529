"""The student's maps in the teacher's channels, where the two models differ in them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A 1x1 convolution with biases for each list of maps and each level, as FGD and mmrazor have.

    One a level, not one for all: each level of a pyramid comes from convolutions of its own, and what stands in a channel
    of P3 need not stand there in P7. It is on the student's side, so that the teacher's maps stay what is aimed at, and
    is trained with the student; the model file has none of it, since only distillation uses it.

    Args:
        student_channels, teacher_channels: from and to.
        lists: of maps that are compared (1: the pyramid; 2: the towers).
        levels: maps of each list.
        seed: of the initial weights, which depend on nothing else and change no other random number.
    """

    def __init__(self, student_channels: int, teacher_channels: int, lists: int, levels: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def convolution() -> nn.Conv2d:
            conv = nn.utils.skip_init(nn.Conv2d, student_channels, teacher_channels, 1)
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.kaiming_uniform_(conv.weight, a=1, generator=generator)  # as the pyramid's convolutions
            nn.init.zeros_(conv.bias)
            return conv

        self.convs = nn.ModuleList(nn.ModuleList(convolution() for _ in range(levels)) for _ in range(lists))

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Lists of [B, student channels, h, w] a level -> the same of [B, teacher channels, h, w]."""
        return [
            [conv(each) for conv, each in zip(convs, own, strict=True)]  # type: ignore[call-overload]
            for convs, own in zip(self.convs, maps, strict=True)
        ]
