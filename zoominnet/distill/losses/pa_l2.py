"""The position-aware L2 loss (paper, Eq. 20-21) between feature maps at the key positions."""

from __future__ import annotations

import torch
from torch import Tensor

from zoominnet.distill.losses.interface import DistillLoss, DistillStep
from zoominnet.distill.options import DistillOptions
from zoominnet.distill.pairs import SITES
from zoominnet.kernels import pa_l2_loss

EPSILON = 1e-12
"""Added to the variance, for a channel that is the same everywhere."""


class PositionAwareL2(DistillLoss):
    """Between the maps at `options.at`; where a level has several (the two towers), their losses add."""

    def __init__(self, options: DistillOptions) -> None:
        super().__init__(options)
        self.needs = SITES[options.at].needs

    def __call__(self, step: DistillStep) -> Tensor:
        prepare = standardise if self.options.normalise else lambda features: features
        losses = [
            pa_l2_loss(
                prepare(pair.student),
                prepare(pair.teacher),
                step.masks[pair.level],
                channel_reduction=self.options.channels,
                backend=step.backend,
            )
            for pair in step.pairs.at(self.options.at, step.student, step.teacher)
        ]
        return torch.stack(losses).view(-1, len(step.masks)).sum(dim=0) / self.options.divisor


def standardise(features: Tensor) -> Tensor:
    """[B, C, h, w] -> float32 of the same shape, each channel with mean 0 and variance 1 over the batch's positions.

    So what is compared is the pattern and not the size of the values, which differs by orders of magnitude between levels
    and models (PKD, Cao et al. 2022, section 3.2). The statistics are of this process's images.
    """
    # BatchNorm without state: one kernel forward and one backward, where the formula takes six of each. The module would
    # refuse a single value a channel, which comes to 0 here.
    return torch.batch_norm(
        features.float(), None, None, None, None, training=True, momentum=0.0, eps=EPSILON, cudnn_enabled=False
    )
