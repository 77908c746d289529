"""The anchors of every cell and level (DESIGN section 2: three scales, three ratios)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoominnet.kernels import AnchorGrid
from zoominnet.models.architectures import Architecture

ANCHOR_SCALES = tuple(2 ** (octave / 3) for octave in range(3))
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width
ANCHORS_PER_CELL = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)


def base_anchors(side: float) -> Tensor:
    """The K = 9 anchors of a cell, the smallest square one of side `side` px: float32[9, 4] around 0, ratios outermost."""
    sides = [
        (scaled / math.sqrt(ratio), scaled * math.sqrt(ratio))
        for ratio in ANCHOR_RATIOS
        for scaled in (side * scale for scale in ANCHOR_SCALES)
    ]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


class Anchors(nn.Module):
    """The anchor grids of an architecture's levels for any input; on the model's device, in no checkpoint."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        for i, stride in enumerate(architecture.strides):
            self.register_buffer(f"base_{i}", base_anchors(architecture.anchor_side * stride), persistent=False)

    def forward(self, height: int, width: int) -> list[AnchorGrid]:
        """The levels' grids for an input of `height` x `width` px, multiples of 32."""
        grids = []
        for i, (level, stride) in enumerate(zip(self.architecture.levels, self.architecture.strides, strict=True)):
            # No negative numbers: an ONNX runtime rounds their quotients up.
            cell = 2**level
            shape = ((height + cell - 1) // cell, (width + cell - 1) // cell)
            if self.architecture.upsample_head:
                shape = (2 * shape[0], 2 * shape[1])
            grids.append(AnchorGrid(getattr(self, f"base_{i}"), (float(stride), float(stride)), shape))
        return grids
