"""Which box each anchor is trained on. A new rule is a function here and an entry in `ASSIGNERS`.

Sizes in shapes: B images, A anchors (level, row, column, anchor order), K anchors a cell, G boxes, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoominnet.kernels import AnchorGrid, max_iou_assign

BACKGROUND, IGNORED = -1, -2
"""What an anchor is assigned to that has no box: trained as background, or not trained."""
REGIONS_AT_A_TIME = 8
"""Ignored regions, of all images together, that are compared with the anchors of a level in one go: bounds memory."""

Targets = Sequence[dict[str, Tensor]]
Assigner = Callable[[Sequence[AnchorGrid], Targets, str], Tensor]
"""(the levels' grids, B targets, backend) -> int64 [B, A]: the index of a box of the image, `BACKGROUND` or `IGNORED`."""


def assign_by_max_iou(
    grids: Sequence[AnchorGrid], targets: Targets, backend: str = "auto", *, own_best: bool = False
) -> Tensor:
    """RetinaNet's rule: IoU from 0.5 positive, below 0.4 background, with low-quality matches; then ignored regions.

    Args:
        grids: the levels.
        targets: B dicts of "boxes" float [G, 4] px and optionally "ignored" float [R, 4] px.
        backend, own_best: of :func:`zoominnet.kernels.max_iou_assign`.

    Returns:
        int64 [B, A]. Anchors inside an ignored region are `IGNORED`, whatever their IoU.
    """
    boxes = [target["boxes"].float() for target in targets]
    matched = torch.stack(max_iou_assign(grids, boxes, own_best=own_best, backend=backend))
    ignored = [target.get("ignored") for target in targets]
    regions = [b.new_zeros((0, 4)) if r is None else r for b, r in zip(boxes, ignored, strict=True)]
    if any(len(of_image) for of_image in regions):
        matched = matched.masked_fill(inside_ignored(grids, pad_sequence(regions, batch_first=True)), IGNORED)
    return matched


ASSIGNERS: dict[str, Assigner] = {
    "max-iou": assign_by_max_iou,
    "max-iou-own": partial(assign_by_max_iou, own_best=True),
}


def inside_ignored(grids: Sequence[AnchorGrid], regions: Tensor) -> Tensor:
    """Which anchors have more than half their area inside one ignored region (PEERS section 5, IoF > 0.5).

    Args:
        grids: the levels.
        regions: float [B, R, 4] px; those without area hold nothing, so images of fewer are padded with zeros.

    Returns:
        bool [B, A].
    """
    masks = []
    for grid in grids:
        anchors = grid.boxes()  # [H, W, K, 4]
        mask = torch.zeros((len(regions), *anchors.shape[:3]), dtype=torch.bool, device=anchors.device)
        # An anchor's x depends on its column alone and its y on its row.
        left, right = anchors[:1, ..., 0], anchors[:1, ..., 2]  # [1, W, K]
        top, bottom = anchors[:, :1, :, 1], anchors[:, :1, :, 3]  # [H, 1, K]
        half_area = 0.5 * ((right - left) * (bottom - top))
        for some in regions.split(max(1, REGIONS_AT_A_TIME // max(1, len(regions))), 1):
            x1, y1, x2, y2 = some[..., None, None, None].unbind(2)  # [B, r, 1, 1, 1] each
            width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp(min=0)  # [B, r, 1, W, K]
            height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp(min=0)  # [B, r, H, 1, K]
            mask |= (width * height > half_area).any(dim=1)
        masks.append(mask.flatten(1))
    return torch.cat(masks, 1)
