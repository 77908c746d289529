"""Checks of arguments that read no tensor's values, so that none waits for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_floating(name: str, value: Any) -> None:
    """Refuses what is not a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}")


def check_dim(name: str, value: Tensor, sizes: str) -> None:
    """Refuses a tensor that has not as many dimensions as `sizes`, such as "[B, C, H, W]", or not the 4 of "[K, 4]"."""
    if value.dim() != sizes.count(",") + 1 or (sizes.endswith(" 4]") and value.shape[-1] != 4):
        raise ValueError(f"{name} must have shape {sizes}, got {list(value.shape)}")


def check_alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors of different dtype or device."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}; convert one with .to()"
        )
    check_device(name, value, other_name, other)


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two tensors of different devices."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


class BoxBatch(NamedTuple):
    """The boxes of some images in the form that the operators take.

    Attributes:
        boxes: Tensor[G, 4], all images' boxes one after the other.
        counts: the number of boxes of each image.
        batched: False where one image's tensor was given in place of a list.
    """

    boxes: Tensor
    counts: list[int]
    batched: bool


def gather_boxes(gt_boxes: Tensor | Sequence[Tensor], anchors: Tensor) -> BoxBatch:
    """Checks `gt_boxes`, one Tensor[G, 4] or a list of them, and puts the images' boxes together.

    Args:
        gt_boxes: as the public functions take it.
        anchors: a tensor whose device the boxes must have.
    """
    if isinstance(gt_boxes, Tensor):
        _check_boxes("gt_boxes", gt_boxes, anchors)
        return BoxBatch(gt_boxes, [gt_boxes.shape[0]], False)
    if not isinstance(gt_boxes, list | tuple):
        raise TypeError(f"gt_boxes must be a tensor or a list of tensors, got {type(gt_boxes).__name__}")
    for index, boxes in enumerate(gt_boxes):
        _check_boxes(f"gt_boxes[{index}]", boxes, anchors)
        check_alike(f"gt_boxes[{index}]", boxes, "gt_boxes[0]", gt_boxes[0])
    if not gt_boxes:
        return BoxBatch(anchors.new_empty((0, 4)), [], True)
    together = gt_boxes[0] if len(gt_boxes) == 1 else torch.cat(list(gt_boxes))
    return BoxBatch(together, [boxes.shape[0] for boxes in gt_boxes], True)


def _check_boxes(name: str, boxes: Any, anchors: Tensor) -> None:
    check_floating(name, boxes)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        hint = "; give a batch as a list of tensors, one an image" if boxes.dim() == 3 else ""
        raise ValueError(f"{name} must have shape [G, 4], got {list(boxes.shape)}{hint}")
    check_device(name, boxes, "anchors", anchors)
