"""The anchors of one level as a grid, and the grids of other libraries' generators."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zoominnet.kernels import AnchorGrid

BASE = torch.tensor([[-1.0, -2.0, 1.0, 2.0], [0.0, 0.0, 3.0, 5.0]])


def test_hand_worked() -> None:
    grid = AnchorGrid(BASE, stride=(4, 8), shape=(2, 3))
    boxes = grid.boxes()
    assert tuple(boxes.shape) == (2, 3, 2, 4)
    assert boxes[0, 0].tolist() == BASE.tolist()
    # Row 1 is 4 px down, column 2 is 16 px right.
    assert boxes[1, 2].tolist() == [[15, 2, 17, 6], [16, 4, 19, 9]]
    assert grid.num_anchors == 12
    assert (grid.stride, grid.shape) == ((4.0, 8.0), (2, 3))


@pytest.mark.parametrize("stride", [(4, 8), (2.5, 0.3)])
def test_naive_computation(stride: tuple[float, float]) -> None:
    boxes = AnchorGrid(BASE, stride, (5, 7)).boxes().numpy()
    step_y, step_x = (np.float32(step) for step in stride)
    for i in range(5):
        for j in range(7):
            shift = np.array([j * step_x, i * step_y, j * step_x, i * step_y], np.float32)
            np.testing.assert_array_equal(boxes[i, j], BASE.numpy() + shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_pixels(dtype: torch.dtype) -> None:
    boxes = AnchorGrid(BASE.to(dtype), (8, 8), (2, 600)).boxes()
    assert boxes.dtype == torch.float32
    assert boxes[0, 599, 0].tolist() == [4791, -2, 4793, 2]


@pytest.mark.parametrize(("shape", "k"), [((0, 3), 2), ((3, 0), 2), ((2, 3), 0)])
def test_empty_dimensions(shape: tuple[int, int], k: int) -> None:
    grid = AnchorGrid(BASE[:k], (4, 4), shape)
    assert tuple(grid.boxes().shape) == (*shape, k, 4)
    assert grid.num_anchors == 0


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnchorGrid(BASE, (4, 4), (2, 2)).shape = (3, 3)


def test_to() -> None:
    grid = AnchorGrid(BASE, (4, 8), (2, 3))
    assert grid.to(dtype=torch.float64).boxes().dtype == torch.float64
    moved = grid.to("meta")
    assert moved.base_anchors.device.type == "meta"
    assert (moved.stride, moved.shape) == (grid.stride, grid.shape)
    assert moved.boxes().shape == grid.boxes().shape


@pytest.mark.parametrize("image_size", [(64, 96), (100, 75), (33, 40)])
def test_torchvision_anchors(image_size: tuple[int, int]) -> None:
    detection = pytest.importorskip("torchvision").models.detection
    generator = detection.anchor_utils.AnchorGenerator(((8, 11), (16, 22), (32, 45)), ((0.5, 1.0, 2.0),) * 3)
    shapes = [(math.ceil(image_size[0] / s), math.ceil(image_size[1] / s)) for s in (8, 16, 32)]
    (expected,) = generator(
        detection.image_list.ImageList(torch.zeros(1, 3, *image_size), [image_size]),
        [torch.zeros(1, 1, *shape) for shape in shapes],
    )
    grids = AnchorGrid.from_torchvision(generator, image_size, shapes)
    assert torch.equal(torch.cat([grid.boxes().view(-1, 4) for grid in grids]), expected)
    assert [grid.shape for grid in grids] == shapes


def test_mmdet_generator() -> None:
    # A generator of MMDetection shifts by (j * x, i * y) for its stride (x, y), columns fastest.
    generator = SimpleNamespace(base_anchors=[BASE, BASE * 2], strides=[(4, 6), (8, 12)])
    grids = AnchorGrid.from_mmdet(generator, [torch.Size((3, 5)), (2, 2)])
    assert [grid.shape for grid in grids] == [(3, 5), (2, 2)]
    assert grids[0].boxes()[2, 4, 1].tolist() == [16, 12, 19, 17]
    assert grids[1].boxes()[1, 0, 0].tolist() == [-2, 8, 2, 16]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"base_anchors": BASE.tolist()}, TypeError, "base_anchors must be a tensor, got list"),
        ({"base_anchors": BASE.int()}, TypeError, r"base_anchors must be float32, .* got torch\.int32"),
        ({"base_anchors": BASE[:, :3]}, ValueError, r"base_anchors must have shape \[K, 4\], got \[2, 3\]"),
        ({"base_anchors": BASE[0]}, ValueError, r"got \[4\]"),
        ({"stride": (4,)}, TypeError, r"stride must be two numbers \(y, x\), got \(4,\)"),
        ({"stride": ("4", 4)}, TypeError, "stride must be two numbers"),
        ({"stride": 4}, TypeError, "stride must be two numbers"),
        ({"stride": (4, 0)}, ValueError, "stride must be positive and finite"),
        ({"stride": (math.inf, 4)}, ValueError, "stride must be positive and finite"),
        ({"stride": (4, math.nan)}, ValueError, "stride must be positive and finite"),
        ({"shape": (2, 3, 4)}, TypeError, r"shape must be two whole numbers \(H, W\), got \(2, 3, 4\)"),
        ({"shape": (2, 3.0)}, TypeError, "shape must be two whole numbers"),
        ({"shape": 2}, TypeError, "shape must be two whole numbers"),
        ({"shape": (2, -1)}, ValueError, "shape must not be negative"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AnchorGrid(**{"base_anchors": BASE, "stride": (4, 4), "shape": (2, 3), **changed})


def test_generators_are_checked() -> None:
    detection = pytest.importorskip("torchvision").models.detection
    generator = detection.anchor_utils.AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    with pytest.raises(TypeError, match="generator must have a list cell_anchors"):
        AnchorGrid.from_torchvision(object(), (64, 64), [(8, 8)])
    with pytest.raises(ValueError, match="generator has 2 levels of cell_anchors, but feature_shapes has 1"):
        AnchorGrid.from_torchvision(generator, (64, 64), [(8, 8)])
    for shape in ((8, 0), (8, 65)):
        with pytest.raises(
            ValueError, match=r"feature_shapes must be positive and no larger than the image \(64, 64\)"
        ):
            AnchorGrid.from_torchvision(generator, (64, 64), [(8, 8), shape])
    with pytest.raises(TypeError, match="generator must have lists base_anchors and strides"):
        AnchorGrid.from_mmdet(SimpleNamespace(base_anchors=[BASE]), [(2, 2)])
    with pytest.raises(ValueError, match="generator has 1 levels of strides, but featmap_sizes has 2"):
        AnchorGrid.from_mmdet(SimpleNamespace(base_anchors=[BASE, BASE], strides=[(4, 4)]), [(2, 2), (1, 1)])
