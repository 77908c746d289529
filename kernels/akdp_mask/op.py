"""The AKDP mask: public functions, operator registration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

from .._checks import check_dim, check_floating, gather_boxes
from .._dispatch import choose_backend
from .._numerics import accumulation_dtype
from .._schemas import operator, register_without_gradient
from .._triton_state import from_triton
from ..anchor_grid import AnchorGrid, flatten_grids
from .reference import ADAPTIVE, ADAPTIVE_NONZERO, FACTOR, akdp_mask_dense_reference, akdp_mask_reference

Threshold: TypeAlias = float | Literal["adaptive", "adaptive-nonzero"]
Scope: TypeAlias = Literal["level", "all", "per_gt"]
BOXES_AT_A_TIME = 256
"""Of one image with the scope "per_gt", where each box has a mask of its own for a while."""


Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of an operator: mask, lam, max_iou."""


class AkdpStats(NamedTuple):
    """What an AKDP mask was made from, for one level.

    For one image; for a batch, `lam` and `coverage` have shape [B] and `max_iou` is a list of B tensors, and so is `lam`
    where it is of boxes.

    Attributes:
        lam: float64 scalar, the lambda (or the fixed factor); with the scope "per_gt" float64 [G], that of each box. The
            threshold of box g is ``lam * max_iou[g]``.
        max_iou: Tensor[G], float32 or float64, the greatest IoU of each box with an anchor, in [0, 1].
        coverage: float64 scalar, the share of cells that the mask selects, in [0, 1]; 0 for a level without cells.
    """

    lam: Tensor | list[Tensor]
    max_iou: Tensor | list[Tensor]
    coverage: Tensor


@overload
def akdp_mask(
    anchors: Tensor | AnchorGrid,
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> Tensor: ...
@overload
def akdp_mask(
    anchors: Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> list[Tensor]: ...
def akdp_mask(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Mask of the key positions that a student should learn from (adaptive key distillation positions).

    A cell is selected where the IoU of one of its anchors with a box is greater than ``lambda * max IoU of that box``,
    with ``lambda = mean(iou) + std(iou)`` over all pairs of an anchor and a box of the image (paper, section 3.3.1,
    equations 15 to 17; with ``threshold=0.5`` the rule of Wang et al. 2019).

    Args:
        anchors: Tensor[H, W, K, 4] (x1, y1, x2, y2 px), an :class:`AnchorGrid`, or a list of these grids, one a
            level, of the same dtype and device. Floating point; any strides.
        gt_boxes: Tensor[G, 4] (x1, y1, x2, y2 px) of one image, or a list of B such tensors. G and B may be 0.
        threshold: "adaptive"; "adaptive-nonzero", the lambda over the pairs that overlap alone; or a factor in (0, 1)
            in place of the lambda.
        scope: "level" takes lambda and each box's maximum over the anchors of each level, "all" over all levels';
            "per_gt" a lambda for each box, over its pairs with the anchors of each level (`torch.compile` compiles this
            anew for each number of boxes).
        backend: "auto" or a name of :func:`available_backends`.

    Returns:
        bool[H, W] for one image, bool[B, H, W] for a list; a list of these for a list of grids. No gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
        BackendUnavailableError: `backend` names one that cannot run here.

    Numerics:
        IoU in float32, or float64 where boxes or anchors are float64; sums in float64; std with correction 1. A
        degenerate or non-finite box or anchor has IoU 0. The exact contract stands in `reference.py`.

    Example:
        >>> grid = AnchorGrid(torch.tensor([[-12.0, -12.0, 12.0, 12.0]]), stride=(8, 8), shape=(64, 64))
        >>> akdp_mask(grid, torch.tensor([[100.0, 100.0, 124.0, 124.0]])).sum()
        tensor(25)
    """
    masks, *_ = _run(anchors, gt_boxes, threshold, scope, backend)
    return masks[0] if isinstance(anchors, Tensor | AnchorGrid) else masks


@overload
def akdp_stats(
    anchors: Tensor | AnchorGrid,
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> AkdpStats: ...
@overload
def akdp_stats(
    anchors: Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> list[AkdpStats]: ...
def akdp_stats(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    threshold: Threshold = "adaptive",
    scope: Scope = "level",
    backend: str = "auto",
) -> AkdpStats | list[AkdpStats]:
    """What :func:`akdp_mask` makes of the same arguments, in figures, for logs and plots.

    Args:
        anchors: as of :func:`akdp_mask`.
        gt_boxes: as of :func:`akdp_mask`.
        threshold: as of :func:`akdp_mask`.
        scope: as of :func:`akdp_mask`.
        backend: as of :func:`akdp_mask`.

    Returns:
        :class:`AkdpStats`; a list of them, one a level, for a list of grids.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`akdp_mask`.

    Example:
        >>> grid = AnchorGrid(torch.tensor([[-12.0, -12.0, 12.0, 12.0]]), stride=(8, 8), shape=(64, 64))
        >>> akdp_stats(grid, torch.tensor([[100.0, 100.0, 124.0, 112.0]])).max_iou
        tensor([0.5000])
    """
    masks, lam, max_iou, batched, counts = _run(anchors, gt_boxes, threshold, scope, backend)
    levels = []
    for mask, level_lam, level_max_iou in zip(masks, lam, max_iou, strict=True):
        coverage = mask.sum((-2, -1)).double() / max(mask.shape[-2] * mask.shape[-1], 1)
        lams = _of_images(level_lam, counts) if scope == "per_gt" else level_lam
        maxima = _of_images(level_max_iou, counts)
        levels.append(AkdpStats(lams, maxima, coverage) if batched else AkdpStats(lams[0], maxima[0], coverage))
    return levels[0] if isinstance(anchors, Tensor | AnchorGrid) else levels


def _of_images(values: Tensor, counts: list[int]) -> list[Tensor]:
    return list(values.split(counts)) if counts else []  # split() refuses an empty list


def _run(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    threshold: Threshold,
    scope: Scope,
    backend: str,
) -> tuple[list[Tensor], Tensor, Tensor, bool, list[int]]:
    """The levels' masks, [H, W] or for a batch [B, H, W], lam [L, B] or for "per_gt" [L, G], max_iou [L, G], whether a
    batch, its counts."""
    mode, factor = _mode(threshold)
    if scope not in ("level", "all", "per_gt"):
        raise ValueError(f"scope must be 'level', 'all' or 'per_gt', got {scope!r}")
    if isinstance(anchors, Tensor):
        check_floating("anchors", anchors)
        check_dim("anchors", anchors, "[H, W, K, 4]")
        operation, base_anchors, shapes = "akdp_mask_dense", [anchors], list(anchors.shape[:2])
        arguments: tuple[Any, ...] = (anchors, mode, factor)
    else:
        operation, (base_anchors, strides, shapes) = "akdp_mask", flatten_grids(anchors)
        arguments = (base_anchors, strides, shapes, mode, factor, scope == "all")
    boxes, counts, batched = gather_boxes(gt_boxes, base_anchors[0])
    chosen = choose_backend("akdp_mask", backend, boxes.device.type)

    def run(boxes: Tensor, counts: list[int]) -> Outputs:
        return operator(operation, chosen)(boxes, counts, *arguments)

    if scope == "per_gt" and counts:
        masks, lam, max_iou = _run_per_gt(run, boxes, counts, shapes)
    else:
        mask, lam, max_iou = run(boxes, counts)
        masks = _split_levels(mask, len(counts), shapes)
    return masks if batched else [mask[0] for mask in masks], lam, max_iou, batched, counts


def _run_per_gt(
    run: Callable[[Tensor, list[int]], Outputs], boxes: Tensor, counts: list[int], shapes: list[int]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Each box is an image of its own; an image has the cells of its boxes."""
    images, lam, max_iou = [], [], []
    for of_image in boxes.split(counts):
        masks: list[Tensor] = []
        for start in range(0, max(len(of_image), 1), BOXES_AT_A_TIME):
            part = of_image[start : start + BOXES_AT_A_TIME]
            mask, part_lam, part_max_iou = run(part, [1] * len(part))
            found = [each.any(0) for each in _split_levels(mask, len(part), shapes)]
            masks = [a | b for a, b in zip(masks, found, strict=True)] if masks else found
            lam.append(part_lam)
            max_iou.append(part_max_iou)
        images.append(masks)
    return [torch.stack(level) for level in zip(*images, strict=True)], torch.cat(lam, 1), torch.cat(max_iou, 1)


def _split_levels(mask: Tensor, images: int, shapes: list[int]) -> list[Tensor]:
    """bool [images, H, W] a level."""
    sizes = [(images, h, w) for h, w in zip(shapes[::2], shapes[1::2], strict=True)]
    parts = mask.split_with_sizes([math.prod(size) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


def _mode(threshold: Threshold) -> tuple[int, float]:
    """The operator's `mode` and `factor`."""
    if isinstance(threshold, str):
        if threshold == "adaptive":
            return ADAPTIVE, 0.0
        if threshold == "adaptive-nonzero":
            return ADAPTIVE_NONZERO, 0.0
    elif isinstance(threshold, Real) and 0 < threshold < 1:
        return FACTOR, float(threshold)
    raise ValueError(f"threshold must be 'adaptive', 'adaptive-nonzero' or a factor between 0 and 1, got {threshold!r}")


def _fake(
    boxes: Tensor,
    counts: list[int],
    base_anchors: list[Tensor],
    strides: list[float],
    shapes: list[int],
    mode: int,
    factor: float,
    all_levels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cells = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    return _empty_outputs(boxes, counts, cells, len(base_anchors), accumulation_dtype(boxes, *base_anchors))


def _fake_dense(
    boxes: Tensor, counts: list[int], anchors: Tensor, mode: int, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(boxes, counts, anchors.shape[0] * anchors.shape[1], 1, accumulation_dtype(boxes, anchors))


def _empty_outputs(
    boxes: Tensor, counts: list[int], cells: int, levels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        boxes.new_empty((len(counts) * cells,), dtype=torch.bool),
        boxes.new_empty((levels, len(counts)), dtype=torch.float64),
        boxes.new_empty((levels, boxes.shape[0]), dtype=dtype),
    )


register_without_gradient("akdp_mask", _fake, akdp_mask_reference, from_triton(__package__, "akdp_mask_triton"))
register_without_gradient(
    "akdp_mask_dense", _fake_dense, akdp_mask_dense_reference, from_triton(__package__, "akdp_mask_dense_triton")
)
