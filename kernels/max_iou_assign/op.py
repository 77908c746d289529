"""Assignment of anchors to boxes by IoU: public function, operator registration."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor

from .._checks import check_floating, gather_boxes
from .._dispatch import choose_backend
from .._schemas import operator, register_without_gradient
from .._triton_state import from_triton
from ..anchor_grid import AnchorGrid, flatten_grids
from .reference import max_iou_assign_dense_reference, max_iou_assign_reference


@overload
def max_iou_assign(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Tensor,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    allow_low_quality: bool = True,
    own_best: bool = False,
    backend: str = "auto",
) -> Tensor: ...
@overload
def max_iou_assign(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Sequence[Tensor],
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    allow_low_quality: bool = True,
    own_best: bool = False,
    backend: str = "auto",
) -> list[Tensor]: ...
def max_iou_assign(
    anchors: Tensor | AnchorGrid | Sequence[AnchorGrid],
    gt_boxes: Tensor | Sequence[Tensor],
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    allow_low_quality: bool = True,
    own_best: bool = False,
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """Assigns to each anchor the box that it overlaps most, by the rules of torchvision's ``Matcher``.

    An anchor whose greatest IoU is at least `positive` gets the index of that box, the first of equal ones; one below
    `negative` gets -1 (background); the others -2 (neither). With `allow_low_quality`, each anchor that reaches a
    box's greatest IoU over all anchors, ties included, also gets the index of the box that it overlaps most itself.
    With `own_best` it gets the index of that box instead, the last of several, even where its IoU with another is
    `positive` or more: the rule of mmdetection's ``MaxIoUAssigner`` with its defaults, by which crowded boxes keep
    anchors.

    Args:
        anchors: Tensor[..., 4] (x1, y1, x2, y2 px), an :class:`AnchorGrid`, or a list of these grids, one a level, of
            the same dtype and device. Floating point; any strides.
        gt_boxes: Tensor[G, 4] (x1, y1, x2, y2 px) of one image, or a list of B such tensors. G and B may be 0.
        positive: IoU from which an anchor is matched, `negative` to 1.
        negative: IoU below which it is background, 0 to `positive`.
        allow_low_quality: whether a box's best anchors are kept whatever their IoU.
        own_best: whether they are matched with that box, and not with the box that is best for them. Needs
            `allow_low_quality`.
        backend: "auto" or a name of :func:`available_backends`.

    Returns:
        int64[A] for one image, a list of B of them for a list; A in level, row, column, anchor order. No gradient.
        All -1 for an image without boxes.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range, or `own_best` is without
            `allow_low_quality`.
        BackendUnavailableError: `backend` names one that cannot run here.

    Numerics:
        IoU in float32, or float64 where boxes or anchors are float64. A degenerate or non-finite box or anchor has
        IoU 0, and a box whose greatest IoU is 0 keeps no anchor, which differs from torchvision and mmdetection. The
        exact contract stands in `reference.py`.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
        >>> max_iou_assign(anchors, torch.tensor([[0.0, 0.0, 8.0, 6.0]]))
        tensor([ 0, -1])
    """
    for name, value in (("positive", positive), ("negative", negative)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    for name, flag in (("allow_low_quality", allow_low_quality), ("own_best", own_best)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
    if own_best and not allow_low_quality:
        raise ValueError("own_best=True needs allow_low_quality=True: without it no box keeps its best anchors")
    if not 0 <= negative <= positive <= 1:
        raise ValueError(
            f"thresholds must satisfy 0 <= negative <= positive <= 1, got negative={negative!r}, positive={positive!r}"
        )
    matching = (float(positive), float(negative), allow_low_quality, own_best)
    if isinstance(anchors, Tensor):
        check_floating("anchors", anchors)
        if anchors.dim() < 2 or anchors.shape[-1] != 4:
            raise ValueError(
                f"anchors must have shape [..., 4] with at least two dimensions, got {list(anchors.shape)}"
            )
        operation, base_anchors = "max_iou_assign_dense", [anchors]
        arguments: tuple[Any, ...] = (anchors.flatten(0, -2),)
    else:
        operation, arguments = "max_iou_assign", flatten_grids(anchors)
        base_anchors = arguments[0]
    boxes, counts, batched = gather_boxes(gt_boxes, base_anchors[0])
    chosen = choose_backend("max_iou_assign", backend, boxes.device.type)
    assigned = operator(operation, chosen)(boxes, counts, *arguments, *matching)
    return list(assigned.unbind()) if batched else assigned[0]


def _fake(
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
    total = sum(base.shape[0] * shapes[2 * i] * shapes[2 * i + 1] for i, base in enumerate(base_anchors))
    return boxes.new_empty((len(counts), total), dtype=torch.int64)


def _fake_dense(
    boxes: Tensor,
    counts: list[int],
    anchors: Tensor,
    positive: float,
    negative: float,
    allow_low_quality: bool,
    own_best: bool,
) -> Tensor:
    return boxes.new_empty((len(counts), anchors.shape[0]), dtype=torch.int64)


register_without_gradient(
    "max_iou_assign", _fake, max_iou_assign_reference, from_triton(__package__, "max_iou_assign_triton")
)
register_without_gradient(
    "max_iou_assign_dense",
    _fake_dense,
    max_iou_assign_dense_reference,
    from_triton(__package__, "max_iou_assign_dense_triton"),
)
