"""Box deltas relative to anchors (R-CNN's parametrisation, Girshick et al. 2014) with unit standard deviations."""

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""Decoded sides are at most this exponent times the anchor's, as in Detectron and torchvision: exp() stays finite."""


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas (dx, dy, dw, dh) that turn `anchors` into `boxes`.

    Args:
        boxes: [..., 4], (x1, y1, x2, y2) px, with positive sides.
        anchors: [..., 4], same form, broadcast against `boxes`.

    Returns:
        [..., 4]: centre shift in units of the anchor's sides, and log of the ratio of the sides.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers, sizes = _centers_and_sizes(boxes)
    return torch.cat([(centers - anchor_centers) / anchor_sizes, torch.log(sizes / anchor_sizes)], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of :func:`encode_boxes`; growth of a side is limited to `MAX_LOG_RATIO`.

    Args:
        deltas: [..., 4].
        anchors: [..., 4], (x1, y1, x2, y2) px.

    Returns:
        [..., 4] boxes, (x1, y1, x2, y2) px.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    centers = anchor_centers + deltas[..., :2] * anchor_sizes
    half_sizes = 0.5 * anchor_sizes * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp()
    return torch.cat([centers - half_sizes, centers + half_sizes], dim=-1)
