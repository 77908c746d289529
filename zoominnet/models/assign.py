"""Which box each anchor is trained on. A new rule is a function here and an entry in `ASSIGNERS`.

Sizes in shapes: B images, A anchors (level, row, column, anchor order), K anchors a cell, G boxes, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoominnet.kernels import AnchorGrid, max_iou_assign

BACKGROUND, IGNORED = -1, -2
"""What an anchor is assigned to that has no box: trained as background, or not trained."""
REGIONS_AT_A_TIME = 8
"""Ignored regions that are compared with the anchors of a level in one go: bounds memory."""

Targets = Sequence[dict[str, Tensor]]
Assigner = Callable[[Sequence[AnchorGrid], Targets, str], Tensor]
"""(the levels' grids, B targets, backend) -> int64 [B, A]: the index of a box of the image, `BACKGROUND` or `IGNORED`."""


def assign_by_max_iou(grids: Sequence[AnchorGrid], targets: Targets, backend: str = "auto") -> Tensor:
    """RetinaNet's rule: IoU from 0.5 positive, below 0.4 background, with low-quality matches; then ignored regions.

    Args:
        grids: the levels.
        targets: B dicts of "boxes" float [G, 4] px and optionally "ignored" float [R, 4] px.
        backend: of :func:`zoominnet.kernels.max_iou_assign`.

    Returns:
        int64 [B, A]. Anchors inside an ignored region are `IGNORED`, whatever their IoU.
    """
    boxes = [target["boxes"].float() for target in targets]
    matched = torch.stack(max_iou_assign(grids, boxes, backend=backend))
    if any(target.get("ignored") is not None and len(target["ignored"]) for target in targets):
        ignored = torch.stack([inside_ignored(grids, target.get("ignored")) for target in targets])
        matched = torch.where(ignored, IGNORED, matched)
    return matched


ASSIGNERS: dict[str, Assigner] = {"max-iou": assign_by_max_iou}


def inside_ignored(grids: Sequence[AnchorGrid], regions: Tensor | None) -> Tensor:
    """Which anchors have more than half their area inside one ignored region (PEERS section 5, IoF > 0.5).

    Args:
        grids: the levels.
        regions: float [R, 4] px, or None for none.

    Returns:
        bool [A].
    """
    masks = []
    if regions is None:
        regions = grids[0].base_anchors.new_zeros((0, 4))
    for grid in grids:
        anchors = grid.boxes()  # [H, W, K, 4]
        mask = torch.zeros(anchors.shape[:3], dtype=torch.bool, device=anchors.device)
        # An anchor's x depends on its column alone and its y on its row.
        left, right = anchors[:1, ..., 0], anchors[:1, ..., 2]  # [1, W, K]
        top, bottom = anchors[:, :1, :, 1], anchors[:, :1, :, 3]  # [H, 1, K]
        half_area = 0.5 * ((right - left) * (bottom - top))
        for first in range(0, len(regions), REGIONS_AT_A_TIME):
            some = regions[first : first + REGIONS_AT_A_TIME]
            x1, y1, x2, y2 = some.reshape(-1, 4, 1, 1, 1).unbind(1)
            width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp(min=0)  # [R, 1, W, K]
            height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp(min=0)  # [R, H, 1, K]
            mask |= (width * height > half_area).any(dim=0)
        masks.append(mask.flatten())
    return torch.cat(masks)
