"""The key positions: where a student's maps are compared with the teacher's.

Sizes in shapes: B images, G boxes, H x W the compared map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoominnet.distill.options import DistillOptions
from zoominnet.kernels import AnchorGrid, akdp_mask, akdp_stats

Masks = Callable[[Sequence[AnchorGrid], Sequence[Tensor], DistillOptions, str], list[Tensor]]
"""(the student's grids, B tensors of boxes [G, 4] in its px, options, backend) -> bool [B, H, W] a level."""


def every_box_at_every_level(
    grids: Sequence[AnchorGrid], boxes: Sequence[Tensor], options: DistillOptions, backend: str
) -> list[Tensor]:
    """AKDP as the paper has it (section 3.3.1)."""
    return akdp_mask(list(grids), list(boxes), threshold=options.threshold, scope=options.scope, backend=backend)


def every_box_at_its_best_level(
    grids: Sequence[AnchorGrid], boxes: Sequence[Tensor], options: DistillOptions, backend: str
) -> list[Tensor]:
    """AKDP of a level's own boxes: those that find their highest IoU there."""
    stats = akdp_stats(list(grids), list(boxes), backend=backend)
    best_levels = [
        torch.stack(list(max_iou)).argmax(dim=0) for max_iou in zip(*(s.max_iou for s in stats), strict=True)
    ]
    return [
        akdp_mask(
            grid,
            [b[best == level] for b, best in zip(boxes, best_levels, strict=True)],
            threshold=options.threshold,
            scope=options.scope,
            backend=backend,
        )
        for level, grid in enumerate(grids)
    ]


def everywhere(
    grids: Sequence[AnchorGrid], boxes: Sequence[Tensor], options: DistillOptions, backend: str
) -> list[Tensor]:
    """Every position, whatever the boxes: the dense distillation that AKDP is to be compared with."""
    return [torch.ones(len(boxes), *grid.shape, dtype=torch.bool, device=grid.base_anchors.device) for grid in grids]


MASKS: dict[str, Masks] = {
    "all": every_box_at_every_level,
    "best-level": every_box_at_its_best_level,
    "everywhere": everywhere,
}
"""By the value of `DistillOptions.boxes`."""
