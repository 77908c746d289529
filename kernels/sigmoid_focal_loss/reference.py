"""The specification of the focal loss (Lin et al. 2017, equation 5) in plain PyTorch.

An anchor whose assigned index is that of a box of its image has the class that `labels` gives for it; of one with
`BACKGROUND` no class is right; one with `IGNORED` counts for nothing. With x a logit, z = -x and w = alpha for the
anchor's class, z = x and w = 1 - alpha for every other, and p = sigmoid(z) the probability that the class is judged
wrongly::

    loss = sum over anchors and classes of w * p^gamma * -log(1 - p),  where -log(1 - p) = softplus(z)
    d loss / d z = grad_out * w * p^gamma * (gamma * (1 - p) * softplus(z) + p)

p, 1 - p and softplus(z) are taken from exp(-|z|), so that none cancels or overflows, and all terms are positive.

An index that is no box's, or a label that is no class, makes the loss NaN, and the gradient of that anchor: reading it
is not possible without waiting for a GPU, and it must not pass for background. A logit that is NaN does so as well.
What stands at ignored anchors has no influence, and their gradient is exactly 0.

Numerics, for every backend: computed in float64 where the logits are float64, else in float32 or better. A term, and a
value of the gradient before it is rounded to the logits' dtype, has a relative error of a few units of that; terms
below the normal numbers may be 0. The order of the sum is free, but fixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._numerics import accumulation_dtype, ordered_sum

BACKGROUND, IGNORED = -1, -2
"""Assigned to an anchor of no class, and to one that trains nothing; as `max_iou_assign` gives them."""
_INVALID = -3

LOGITS_PER_CHUNK = 1 << 20
"""Logits whose terms are held in memory at a time: about 50 MB with all intermediate results in float32."""


def sigmoid_focal_loss_reference(
    logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float
) -> Tensor:
    """The loss; arguments and results as in `_schemas.py`."""
    total = assigned.new_zeros((), dtype=torch.float64)
    for x, _, classes in _chunks(logits, assigned, labels, logits):
        _, p, _, softplus, weight = _terms(x, classes, alpha)
        total += ordered_sum(_keep(weight * p**gamma * softplus, classes))
    return total.to(accumulation_dtype(*logits))


def sigmoid_focal_loss_backward_reference(
    grad_out: Tensor, logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float
) -> list[Tensor]:
    """Gradient of the loss in each level's logits; arguments and results as in `_schemas.py`."""
    grads = [torch.empty_like(level) for level in logits]
    for x, grad, classes in _chunks(logits, assigned, labels, grads):
        mine, p, complement, softplus, weight = _terms(x, classes, alpha)
        in_z = (grad_out * weight) * (p**gamma * (gamma * complement * softplus + p))
        grad.copy_(_keep(torch.where(mine, -in_z, in_z), classes))
    return grads


def _chunks(
    logits: list[Tensor], assigned: Tensor, labels: Tensor, beside: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [n, C], the same part of what stands beside them, and the anchors' classes, int64 [n, 1]."""
    b, _, c = logits[0].shape
    classes = _classes(assigned, labels, c).split([level.shape[1] for level in logits], 1)
    step = max(1, LOGITS_PER_CHUNK // max(1, c))
    for level, other, of_level in zip(logits, beside, classes, strict=True):
        for image in range(b):
            for start in range(0, level.shape[1], step):
                run = slice(start, start + step)
                yield level[image, run], other[image, run], of_level[image, run, None]


def _classes(assigned: Tensor, labels: Tensor, c: int) -> Tensor:
    """int64 [B, A]: the class of each anchor, `BACKGROUND`, `IGNORED` or `_INVALID`."""
    valid = (labels >= 0) & (labels < c)
    # An index that is no box's points at one more, of no class.
    padded = torch.cat([torch.where(valid, labels, _INVALID), labels.new_full((labels.shape[0], 1), _INVALID)], 1)
    boxes = labels.shape[1]
    index = torch.where((assigned >= 0) & (assigned < boxes), assigned, boxes)
    return torch.where((assigned == BACKGROUND) | (assigned == IGNORED), assigned, padded.gather(1, index))


def _terms(x: Tensor, classes: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each logit [n, C]: whether its class is the anchor's, p, 1 - p, softplus(z) and the weight."""
    x = x.to(accumulation_dtype(x))
    mine = classes == torch.arange(x.shape[1], device=x.device)
    z = torch.where(mine, -x, x)
    e = torch.exp(-z.abs())
    large, small = 1 / (1 + e), e / (1 + e)
    p, complement = torch.where(z > 0, large, small), torch.where(z > 0, small, large)
    weight = torch.full_like(x, 1 - alpha).masked_fill_(mine, alpha)
    return mine, p, complement, z.clamp(min=0) + torch.log1p(e), weight


def _keep(x: Tensor, classes: Tensor) -> Tensor:
    """`x` [n, C], NaN where the class is `_INVALID` and 0 where it is `IGNORED`."""
    return x.masked_fill(classes == _INVALID, torch.nan).masked_fill_(classes == IGNORED, 0)
