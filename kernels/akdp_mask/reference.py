"""The specification of the AKDP mask (paper, section 3.3.1, equations 15 to 17) in plain PyTorch.

Numerics, for every backend:

*IoU.* Its dtype is float64 where boxes or anchors are float64, else float32; half precision is converted first. An
anchor of a grid is ``base + shift``, the shift ``index * stride``, each rounded to the IoU dtype. For anchor a and box
b, each operation rounded by itself, in this order and without fused multiply-add::

    w = max(min(ax2, bx2) - max(ax1, bx1), 0)
    h = max(min(ay2, by2) - max(ay1, by1), 0)
    inter = w * h
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)) - inter
    iou = inter / union where inter > 0, else 0

An anchor or box of which the area ``(x2 - x1) * (y2 - y1)``, so rounded, is infinite or NaN has IoU 0 with everything:
that is any with an infinite or NaN coordinate, and a finite one that overflows. One of zero or negative width or
height has inter = 0. So neither NaN nor infinity reaches a result, and the IoU and its maxima are the same bits on
every backend.

*lambda*, for one image and level, or one image where `all_levels`: with n the number of pairs of an anchor and a box
(mode ADAPTIVE) or those of IoU > 0 (ADAPTIVE_NONZERO), and the sums s1 of iou and s2 of iou^2 in float64::

    mean = s1 / max(n, 1)
    lambda = mean + sqrt(max(s2 - s1 * mean, 0) / max(n - 1, 1))

so it is 0 without pairs, and the deviation is 0 for a single pair. The order of summation is free, but fixed: two
backends agree to a few units in the last place of float64. Where all the IoUs are nearly equal, the subtraction
leaves an error of up to 2e-8 times their mean in the deviation. In mode FACTOR, lambda is `factor`.

*Mask.* ``thr[g] = lambda * max_iou[g]``, the product in float64, then rounded to the IoU dtype; a cell is True where
the IoU of any of its anchors with any box g is greater than ``thr[g]``. A box of which no anchor overlaps selects
nothing, and an image without boxes neither.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._iou import iou_chunks, sanitize
from .._numerics import accumulation_dtype, ordered_sum
from ..anchor_grid import grid_boxes

ADAPTIVE, ADAPTIVE_NONZERO, FACTOR = range(3)
"""Where the lambda comes from: mean and deviation over all pairs, over those that overlap, or a given factor."""


def akdp_mask_reference(
    boxes: Tensor,
    counts: list[int],
    base_anchors: list[Tensor],
    strides: list[float],
    shapes: list[int],
    mode: int,
    factor: float,
    all_levels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The masks of L levels and B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    levels = [
        grid_boxes(base.to(dtype), strides[2 * i : 2 * i + 2], shapes[2 * i : 2 * i + 2])
        for i, base in enumerate(base_anchors)
    ]
    return _akdp_mask(boxes, counts, levels, mode, factor, all_levels)


def akdp_mask_dense_reference(
    boxes: Tensor, counts: list[int], anchors: Tensor, mode: int, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`akdp_mask_reference` for one level of any anchors [H, W, K, 4]."""
    return _akdp_mask(boxes, counts, [anchors], mode, factor, all_levels=False)


class _PairStats(NamedTuple):
    """Of the pairs of N anchors and one image's G boxes."""

    pairs: float  # N * G
    overlapping: Tensor  # float64 scalar: the pairs with iou > 0
    sum: Tensor  # float64 scalar: of iou
    sum_of_squares: Tensor  # float64 scalar: of iou^2
    max_iou: Tensor  # [G]


def _akdp_mask(
    boxes: Tensor, counts: list[int], levels: list[Tensor], mode: int, factor: float, all_levels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(boxes, *levels)
    images = sanitize(boxes, dtype).split(counts)
    anchors = [sanitize(level, dtype) for level in levels]  # [N, 4] each
    lam = boxes.new_zeros((len(levels), len(counts)), dtype=torch.float64)
    max_iou = boxes.new_zeros((len(levels), boxes.shape[0]), dtype=dtype)
    masks = [level.new_zeros((len(counts), *level.shape[:2]), dtype=torch.bool) for level in levels]

    for b, (image, image_max_iou) in enumerate(zip(images, max_iou.split(counts, dim=1), strict=True)):
        stats = [_pair_stats(level, image) for level in anchors]
        if all_levels:
            stats = [_merge(stats)] * len(levels)
        for i, (level, stat) in enumerate(zip(levels, stats, strict=True)):
            lam[i, b] = factor if mode == FACTOR else _lambda(stat, nonzero=mode == ADAPTIVE_NONZERO)
            image_max_iou[i] = stat.max_iou
            threshold = (lam[i, b] * stat.max_iou.double()).to(dtype)
            above = boxes.new_zeros((anchors[i].shape[0],), dtype=torch.bool)
            for run, iou in iou_chunks(anchors[i], image):
                above[run] = (iou > threshold).any(1)
            masks[i][b] = above.view(level.shape[:3]).any(2)
    return torch.cat([mask.flatten() for mask in masks]), lam, max_iou


def _pair_stats(anchors: Tensor, boxes: Tensor) -> _PairStats:
    overlapping, total, squares = boxes.new_zeros((3,), dtype=torch.float64).unbind()
    max_iou = boxes.new_zeros(boxes.shape[0])
    for _, iou in iou_chunks(anchors, boxes):
        overlapping += (iou > 0).sum()
        max_iou = torch.maximum(max_iou, iou.amax(0))
        iou = iou.double()
        total += ordered_sum(iou)
        squares += ordered_sum(iou.square())
    return _PairStats(float(anchors.shape[0] * boxes.shape[0]), overlapping, total, squares, max_iou)


def _merge(levels: list[_PairStats]) -> _PairStats:
    """The statistics of all levels' anchors together."""
    pairs, overlapping, total, squares, max_iou = zip(*levels, strict=True)
    return _PairStats(
        sum(pairs),
        torch.stack(overlapping).sum(),
        torch.stack(total).sum(),
        torch.stack(squares).sum(),
        torch.stack(max_iou).amax(0),
    )


def _lambda(stats: _PairStats, nonzero: bool) -> Tensor:
    n = stats.overlapping if nonzero else torch.full_like(stats.sum, stats.pairs)
    mean = stats.sum / n.clamp(min=1)
    variance = (stats.sum_of_squares - stats.sum * mean).clamp(min=0) / (n - 1).clamp(min=1)
    return mean + variance.sqrt()
