"""The specification of the assignment by IoU in plain PyTorch.

The rules are those of torchvision's ``Matcher`` over ``box_iou``, with one deviation: where low-quality matches are
allowed, a box whose best IoU is 0 (it is degenerate, or overlaps no anchor) forces nothing; torchvision would force
every anchor that does not overlap it.

Numerics, for every backend: the IoU is that of `akdp_mask/reference.py`, the same bits. `positive` and `negative` are
rounded to the IoU dtype before they are compared. All comparisons are exact, so results are equal on all backends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._iou import iou_chunks, sanitize
from .._numerics import accumulation_dtype
from ..anchor_grid import grid_boxes

BELOW = -1
"""Assigned to an anchor whose best IoU is below `negative`."""
BETWEEN = -2
"""Assigned to an anchor whose best IoU is at least `negative` and below `positive`."""


def max_iou_assign_reference(
    boxes: Tensor,
    counts: list[int],
    base_anchors: list[Tensor],
    strides: list[float],
    shapes: list[int],
    positive: float,
    negative: float,
    allow_low_quality: bool,
) -> Tensor:
    """The assignment of all levels' anchors, for B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    levels = [
        grid_boxes(base.to(dtype), strides[2 * i : 2 * i + 2], shapes[2 * i : 2 * i + 2]).view(-1, 4)
        for i, base in enumerate(base_anchors)
    ]
    return max_iou_assign_dense_reference(boxes, counts, torch.cat(levels), positive, negative, allow_low_quality)


def max_iou_assign_dense_reference(
    boxes: Tensor, counts: list[int], anchors: Tensor, positive: float, negative: float, allow_low_quality: bool
) -> Tensor:
    """:func:`max_iou_assign_reference` for any anchors [A, 4]."""
    dtype = accumulation_dtype(boxes, anchors)
    anchors = sanitize(anchors, dtype)
    assigned = boxes.new_full((len(counts), anchors.shape[0]), BELOW, dtype=torch.int64)
    for image, row in zip(sanitize(boxes, dtype).split(counts), assigned, strict=True):
        if image.shape[0] == 0:
            continue
        best_of_box = image.new_zeros(image.shape[0])
        if allow_low_quality:
            for _, iou in iou_chunks(anchors, image):
                best_of_box = torch.maximum(best_of_box, iou.amax(0))
        for run, iou in iou_chunks(anchors, image):
            best, index = iou.max(1)  # the first of equal boxes
            # A box's best anchors, ties included, keep the box that is best for them, which may be another box.
            keep = ((iou == best_of_box) & (best_of_box > 0)).any(1) | (best >= positive)
            row[run] = torch.where(keep, index, torch.where(best < negative, BELOW, BETWEEN))
    return assigned
