"""The teacher's predictions as soft targets, at the same anchors and the key positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from zoominnet.distill.losses.interface import DistillLoss, DistillStep
from zoominnet.models.interfaces import Part


class Response(DistillLoss):
    """Classes by the quality focal loss with beta 2 (Li et al. 2020, Eq. 2), with the teacher's probabilities as labels;
    boxes by the L1 distance of the deltas, times the teacher's highest probability of any class. Both are summed over the
    anchors of a position.

    Every level of `la` and `fa` has the anchors of one of the teacher's, of `snet-12px` those of every second cell; of
    `snet` the last has none, and no loss.
    """

    needs: Part = "predictions"

    def __call__(self, step: DistillStep) -> Tensor:
        own, theirs = step.student.predictions, step.teacher.predictions
        assert own is not None
        assert theirs is not None
        losses = []
        for level, partner in enumerate(step.pairs.same_anchors):
            logits, mask = own.logits[level].float(), step.masks[level]
            if partner is None:
                losses.append(logits.new_zeros(()))
                continue
            their_logits, their_deltas = partner.of(theirs)
            targets = their_logits.float().sigmoid()
            distance = (logits.sigmoid() - targets).square()
            classes = (distance * binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(dim=-1)
            boxes = (own.deltas[level].float() - their_deltas.float()).abs().sum(dim=-1)
            of_anchors = classes + targets.amax(dim=-1) * boxes
            of_cells = of_anchors.view(*mask.shape, -1).sum(dim=-1)
            losses.append((of_cells * mask).sum() / mask.sum().clamp(min=1))
        return torch.stack(losses)
