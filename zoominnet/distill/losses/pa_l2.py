"""The position-aware L2 loss (paper, Eq. 20-21) between feature maps at the key positions."""

from __future__ import annotations

import torch
from torch import Tensor

from zoominnet.distill.losses.interface import DistillLoss, DistillStep
from zoominnet.distill.options import DistillOptions
from zoominnet.distill.pairs import SITES
from zoominnet.kernels import pa_l2_loss


class PositionAwareL2(DistillLoss):
    """Between the maps at `options.at`; where a level has several (the two towers), their losses add."""

    def __init__(self, options: DistillOptions) -> None:
        super().__init__(options)
        self.needs = SITES[options.at].needs

    def __call__(self, step: DistillStep) -> Tensor:
        losses = [
            pa_l2_loss(
                pair.student,
                pair.teacher,
                step.masks[pair.level],
                channel_reduction=self.options.channels,
                backend=step.backend,
            )
            for pair in step.pairs.at(self.options.at, step.student, step.teacher)
        ]
        return torch.stack(losses).view(-1, len(step.masks)).sum(dim=0) / self.options.divisor
