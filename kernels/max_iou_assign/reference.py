"""The specification of the assignment by IoU in plain PyTorch.

The rules are those of torchvision's ``Matcher`` over ``box_iou``, and with `own_best` those of mmdetection's
``MaxIoUAssigner`` (mmdet/models/task_modules/assigners/max_iou_assigner.py at commit d4ccf31, with its defaults
match_low_quality and gt_max_assign_all, and min_pos_iou = 0, as its RetinaNet configurations have it). mmdetection goes
through the boxes in their order and gives each its best anchors, whatever these had before: an anchor that is the best of
several stays with the last, also where its IoU with another box is `positive` or more.

One deviation from both: where low-quality matches are allowed, a box whose best IoU is 0 (it is degenerate, or overlaps
no anchor) forces nothing; torchvision and mmdetection would force every anchor that does not overlap it, mmdetection to
that box.

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
    own_best: bool,
) -> Tensor:
    """The assignment of all levels' anchors, for B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    levels = [
        grid_boxes(base.to(dtype), strides[2 * i : 2 * i + 2], shapes[2 * i : 2 * i + 2]).view(-1, 4)
        for i, base in enumerate(base_anchors)
    ]
    anchors = torch.cat(levels)
    return max_iou_assign_dense_reference(boxes, counts, anchors, positive, negative, allow_low_quality, own_best)


def max_iou_assign_dense_reference(
    boxes: Tensor,
    counts: list[int],
    anchors: Tensor,
    positive: float,
    negative: float,
    allow_low_quality: bool,
    own_best: bool,
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
            kept = (iou == best_of_box) & (best_of_box > 0)
            matched = kept.any(1) | (best >= positive)
            if own_best:
                last = torch.where(kept, torch.arange(len(image), device=image.device), -1).amax(1)
                index = torch.where(last >= 0, last, index)
            row[run] = torch.where(matched, index, torch.where(best < negative, BELOW, BETWEEN))
    return assigned
