"""Pyramids of an image at two sizes made one: the multi-scale teacher of MSAD (Qi et al., CVPR 2021).

The paper's text leaves some of it open; what is not in it is as in the authors' code, github.com/dvlab-research/MSAD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 16
"""Of the channels in the hidden layer (the authors' code)."""
FUSED_LOSS_WEIGHT = 0.4
"""Of the loss of the fused predictions; those of either size have 1 each (the authors' code)."""


class ScaleFusion(nn.Module):
    """Crossing feature-level fusion (C-FF): of each pair of maps the sum, weighted by what is in both.

    Global average pooling of the two, a hidden layer with ReLU, and a softmax over the two make one weight for each image,
    level and size. The layers have no biases and are the same for all levels.

    Args:
        channels: C, of every map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * channels, max(1, 2 * channels // REDUCTION), bias=False)
        self.score = nn.Linear(self.hidden.out_features, 2, bias=False)
        for layer in (self.hidden, self.score):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, full: list[Tensor], half: list[Tensor]) -> list[Tensor]:
        """Maps [B, C, h, w] of the image at full and at half size, of the same cells -> the fused ones."""
        return [self._fuse(*pair) for pair in zip(full, half, strict=True)]

    def _fuse(self, full: Tensor, half: Tensor) -> Tensor:
        pooled = torch.cat([full.mean((-2, -1)), half.mean((-2, -1))], dim=1)
        weights = self.score(self.hidden(pooled).relu()).softmax(dim=1).to(full.dtype)
        own, other = weights[..., None, None, None].unbind(1)
        return own * full + other * half
