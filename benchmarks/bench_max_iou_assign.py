"""max_iou_assign on grids of anchors, and on a plain tensor of anchors, against torchvision's box_iou and Matcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Race
from measure import Rival, available_memory
from rivals import assign_compilable, assign_torchvision, compiled
from shapes import BOX_SHAPES, BoxShape
from torch import Tensor

from zoominnet.kernels import max_iou_assign

SHAPES = BOX_SHAPES
COPIES = 8
"""Matrices of all anchors and boxes, in float32, that torchvision needs at its peak."""


class CheckAssignment:
    """All assignments must be those of the reference, which comes first: comparisons are exact.

    On CUDA the compiler of others' formulas contracts and approximates, so that IoUs at a threshold may fall on its
    other side.
    """

    expected: Tensor | None = None

    def __call__(self, name: str, assigned: Any) -> None:
        assigned = torch.stack(list(assigned))
        if self.expected is None:
            assert name == "reference"
            self.expected = assigned
        wrong = int((assigned != self.expected).sum())
        ours = name in ("native", "triton", "reference")
        limit = 0 if ours or assigned.device.type == "cpu" else max(1, assigned.numel() // 1000)
        assert wrong <= limit, f"{name}: {wrong} of {assigned.numel()} anchors are assigned wrongly"


def rivals_of(
    anchors: Any, flat: Tensor, images: list[Tensor], device: torch.device, backends: list[str]
) -> tuple[list[Rival], dict[str, str]]:
    """Ours on `anchors`, the others on Tensor[A, 4]; and why one is left out."""
    rivals = [
        Rival(backend, lambda backend=backend: max_iou_assign(anchors, images, backend=backend)) for backend in backends
    ]
    left_out = {}
    need = 4 * COPIES * len(flat) * max(len(boxes) for boxes in images)
    compiled_assign = compiled(assign_compilable, dynamic=len(images) > 1)
    for name, function in (("eager", assign_torchvision), ("compiled", compiled_assign)):
        if device.type == "cpu" and name == "compiled" and len(images) > 1:
            left_out[name] = "not run"  # on a CPU it takes minutes to compile for any number of boxes
        elif need > 0.6 * available_memory(device):
            left_out[name] = f"needs about {need / 1e9:.0f} GB"
        else:
            rivals.append(Rival(name, lambda f=function: [f(flat, boxes) for boxes in images]))
    return rivals, left_out


def bytes_moved(images: list[Tensor], anchors: int) -> int:
    """Boxes are read, and an int64 an anchor and image is written."""
    return sum(boxes.numel() * 4 for boxes in images) + 8 * len(images) * anchors


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "shape_name", ["1024 px, 54 boxes", "1024 px, 500 boxes", "1024 px, 16 images", "64 px, 3 boxes"]
)
def test_grids(shape_name: str, shape: BoxShape, device: torch.device, backends: list[str], race: Race) -> None:
    grids, images = shape.grids(device), shape.gt_boxes(device)
    flat = torch.cat([grid.boxes().view(-1, 4) for grid in grids])
    rivals, left_out = rivals_of(grids, flat, images, device, backends)
    moved = bytes_moved(images, len(flat))
    race("max_iou_assign", shape_name, shape, "forward", rivals, CheckAssignment(), moved, left_out)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape_name", ["1024 px, 54 boxes", "64 px, 3 boxes"])
def test_dense(shape_name: str, shape: BoxShape, device: torch.device, backends: list[str], race: Race) -> None:
    flat, images = torch.cat([grid.boxes().view(-1, 4) for grid in shape.grids(device)]), shape.gt_boxes(device)
    rivals, left_out = rivals_of(flat, flat, images, device, backends)
    moved = bytes_moved(images, len(flat)) + 4 * flat.numel()
    race("max_iou_assign, dense", shape_name, shape, "forward", rivals, CheckAssignment(), moved, left_out)
