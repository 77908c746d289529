"""The arguments that the operations on anchors and boxes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoominnet.kernels import AnchorGrid, akdp_mask, akdp_stats, max_iou_assign

GRID = AnchorGrid(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4), (2, 2))
BOXES = torch.zeros(3, 4)


@pytest.mark.parametrize("function", [akdp_mask, akdp_stats, max_iou_assign])
@pytest.mark.parametrize(
    ("anchors", "boxes", "error", "message"),
    [
        (None, BOXES, TypeError, "anchors must be a tensor, an AnchorGrid or a list of AnchorGrid, got NoneType"),
        ([GRID, GRID.boxes()], BOXES, TypeError, "got a list of AnchorGrid, Tensor"),
        ([], BOXES, ValueError, "anchors must hold at least one AnchorGrid, got an empty list"),
        ([GRID, GRID.to(dtype=torch.float64)], BOXES, TypeError, r"anchors\[1\] must have the dtype of anchors\[0\]"),
        ([GRID, GRID.to("meta")], BOXES, ValueError, r"anchors\[1\] must be on the device of anchors\[0\], cpu"),
        (GRID.boxes().int(), BOXES, TypeError, r"anchors must be float32, .* got torch\.int32"),
        (GRID, None, TypeError, "gt_boxes must be a tensor or a list of tensors, got NoneType"),
        (GRID, [BOXES, BOXES.tolist()], TypeError, r"gt_boxes\[1\] must be a tensor, got list"),
        (GRID, BOXES.long(), TypeError, r"gt_boxes must be float32, .* got torch\.int64"),
        (GRID, BOXES[:, :3], ValueError, r"gt_boxes must have shape \[G, 4\], got \[3, 3\]"),
        (GRID, BOXES[0], ValueError, r"gt_boxes must have shape \[G, 4\], got \[4\]"),
        (GRID, BOXES[None], ValueError, r"got \[1, 3, 4\]; give a batch as a list of tensors"),
        (GRID, [BOXES, BOXES[0]], ValueError, r"gt_boxes\[1\] must have shape \[G, 4\], got \[4\]"),
        (GRID, [BOXES, BOXES.double()], TypeError, r"gt_boxes\[1\] must have the dtype of gt_boxes\[0\]"),
        (GRID, BOXES.to("meta"), ValueError, "gt_boxes must be on the device of anchors, cpu, got meta"),
        (GRID.boxes(), [BOXES.to("meta")], ValueError, r"gt_boxes\[0\] must be on the device of anchors"),
    ],
)
def test_anchors_and_boxes_are_checked(
    function: Callable[..., Any], anchors: Any, boxes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(anchors, boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": "a"}, "positive must be a number, got str"),
        ({"negative": None}, "negative must be a number, got NoneType"),
        ({"allow_low_quality": "no"}, "allow_low_quality must be a bool, got str"),
        ({"own_best": 1}, "own_best must be a bool, got int"),
    ],
)
def test_options_of_the_assignment_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        max_iou_assign(GRID, BOXES, **options)
