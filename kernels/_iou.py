"""The IoU of anchors and boxes, shared by the reference implementations. The contract stands in akdp_mask/reference.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PAIRS_PER_CHUNK = 1 << 20
"""Pairs of anchor and box held in memory at a time: about 50 MB with all intermediate results in float32."""


def sanitize(boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """Boxes [..., 4] in `dtype`, as [N, 4]; those of which the area is infinite or NaN become (0, 0, 0, 0).

    The area of a box with an infinite or NaN coordinate always is. A zero box intersects nothing.
    """
    boxes = boxes.to(dtype).reshape(-1, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return torch.where(torch.isfinite(area)[:, None], boxes, 0)


def pairwise_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """IoU [N, G] of sanitized anchors [N, 4] and boxes [G, 4]."""
    ax1, ay1, ax2, ay2 = anchors[:, None].unbind(-1)  # [N, 1] each
    bx1, by1, bx2, by2 = boxes.unbind(-1)  # [G] each
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    inter = width * height
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)) - inter
    return torch.where(inter > 0, inter / union, 0)


def iou_chunks(anchors: Tensor, boxes: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """:func:`pairwise_iou` for one run of anchors after the other: the run, and its IoU [n, G]."""
    step = max(1, PAIRS_PER_CHUNK // max(1, boxes.shape[0]))
    for start in range(0, anchors.shape[0], step):
        run = slice(start, min(start + step, anchors.shape[0]))
        yield run, pairwise_iou(anchors[run], boxes)
