"""akdp_mask on grids of anchors, and on a plain tensor of anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import Race
from measure import Rival, available_memory
from rivals import akdp_mask_eager, compiled
from shapes import BOX_SHAPES, BoxShape
from torch import Tensor

from zoominnet.kernels import akdp_mask

SHAPES = BOX_SHAPES
EAGER_COPIES = 8
"""Matrices of all anchors and boxes, in float32, that the eager formula needs at its peak; half of them for `compiled`."""


class CheckMasks:
    """Compares masks, [level][image], with those of the reference, which comes first.

    Ours must be the same. The others take mean and deviation in float32, so that a few cells at the threshold may differ.
    """

    expected: list[Tensor] | None = None

    def __call__(self, name: str, masks: Sequence[Any]) -> None:
        masks = [torch.stack(list(mask)) for mask in masks]
        if self.expected is None:
            assert name == "reference"
            self.expected = masks
        for mask, expected in zip(masks, self.expected, strict=True):
            wrong = int((mask != expected).sum())
            limit = 0 if name in ("native", "triton", "reference") else max(1, expected.numel() // 1000)
            assert mask.shape == expected.shape
            assert wrong <= limit, f"{name}: {wrong} of {mask.numel()} cells of the mask are wrong"


def dense_rivals(
    levels: list[Tensor], images: list[Tensor], device: torch.device, dynamic: bool
) -> tuple[list[Rival], dict[str, str]]:
    """The dense formula, eager and compiled, on a batch; and why one of them is left out."""
    compiled_masks = compiled(akdp_mask_eager, dynamic)
    rivals, left_out = [], {}
    pairs = max(level.numel() // 4 for level in levels) * max(len(boxes) for boxes in images)
    for name, function, copies in (("eager", akdp_mask_eager, EAGER_COPIES), ("compiled", compiled_masks, 4)):
        if device.type == "cpu" and name == "compiled" and sum(map(len, images)) > 500:
            left_out[name] = "not run"  # on a CPU it takes minutes to compile for batches, and a minute to run
        elif 4 * copies * pairs > 0.6 * available_memory(device):
            left_out[name] = f"needs about {4 * copies * pairs / 1e9:.0f} GB"
        else:
            rivals.append(
                Rival(name, lambda f=function: list(zip(*(f(levels, boxes) for boxes in images), strict=True)))
            )
    return rivals, left_out


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape_name", SHAPES["full"])
def test_grids(shape_name: str, shape: BoxShape, device: torch.device, backends: list[str], race: Race) -> None:
    if device.type == "cpu" and shape_name == "1024 px, 16 images of 2000 boxes":
        pytest.skip("for GPUs: the rivals take minutes on a CPU")
    grids, images = shape.grids(device), shape.gt_boxes(device)
    ours = [Rival(backend, lambda backend=backend: akdp_mask(grids, images, backend=backend)) for backend in backends]
    # A compiled function for all the images of a batch knows nothing of their numbers of boxes.
    dense, left_out = dense_rivals([grid.boxes() for grid in grids], images, device, dynamic=len(images) > 1)
    moved = sum(boxes.numel() * 4 for boxes in images) + len(images) * sum(g.shape[0] * g.shape[1] for g in grids)
    race("akdp_mask", shape_name, shape, "forward", [*ours, *dense], CheckMasks(), moved, left_out)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape_name", ["1024 px, 54 boxes", "64 px, 3 boxes"])
def test_dense(shape_name: str, shape: BoxShape, device: torch.device, backends: list[str], race: Race) -> None:
    anchors, images = shape.grids(device)[0].boxes(), shape.gt_boxes(device)
    ours = [
        Rival(backend, lambda backend=backend: [akdp_mask(anchors, images, backend=backend)]) for backend in backends
    ]
    dense, left_out = dense_rivals([anchors], images, device, dynamic=False)
    moved = 4 * anchors.numel() + sum(boxes.numel() * 4 for boxes in images) + anchors[..., 0, 0].numel()
    race("akdp_mask, dense", shape_name, shape, "forward", [*ours, *dense], CheckMasks(), moved, left_out)
