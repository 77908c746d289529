"""The anchors of one pyramid level as a regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._checks import check_alike, check_dim, check_floating


def grid_boxes(base_anchors: Tensor, stride: Sequence[float], shape: Sequence[int]) -> Tensor:
    """The anchors of a grid.

    Args:
        base_anchors: Tensor[K, 4], (x1, y1, x2, y2) px.
        stride: (y, x) px.
        shape: (H, W) cells.

    Returns:
        Tensor[H, W, K, 4] of the dtype of `base_anchors`. The shift ``j * stride`` is rounded to that dtype, then the
        sum of base anchor and shift: two roundings, and none at all for whole-number strides.
    """
    shift_y, shift_x = (
        torch.arange(n, dtype=base_anchors.dtype, device=base_anchors.device) * step
        for n, step in zip(shape, stride, strict=True)
    )
    x1, y1, x2, y2 = base_anchors.unbind(-1)  # [K] each
    xs = torch.stack([shift_x[:, None] + x1, shift_x[:, None] + x2], -1)  # [W, K, 2]
    ys = torch.stack([shift_y[:, None] + y1, shift_y[:, None] + y2], -1)  # [H, K, 2]
    h, w, k = shape[0], shape[1], base_anchors.shape[0]
    return torch.stack([xs[None].expand(h, w, k, 2), ys[:, None].expand(h, w, k, 2)], -1).flatten(-2)


@dataclass(frozen=True, eq=False)
class AnchorGrid:
    """The anchors of one pyramid level: K base anchors repeated at every cell of an H x W grid.

    Anchor k of cell (i, j) is ``base_anchors[k] + (j * stride_x, i * stride_y, j * stride_x, i * stride_y)``: cell
    (0, 0) holds the base anchors themselves, so a half-cell offset, where wanted, belongs into them.

    Args:
        base_anchors: Tensor[K, 4], floating point, (x1, y1, x2, y2) px.
        stride: (y, x) distance of two cells, px, positive.
        shape: (H, W), the number of rows and columns; 0 is allowed.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or range.

    Example:
        >>> grid = AnchorGrid(torch.tensor([[-12.0, -12.0, 12.0, 12.0]]), stride=(8, 8), shape=(64, 64))
        >>> grid.boxes().shape
        torch.Size([64, 64, 1, 4])
    """

    base_anchors: Tensor
    stride: tuple[float, float]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        check_floating("base_anchors", self.base_anchors)
        check_dim("base_anchors", self.base_anchors, "[K, 4]")
        stride, shape = self.stride, self.shape
        if not _is_pair(stride, (int, float)):
            raise TypeError(f"stride must be two numbers (y, x), got {stride!r}")
        if not all(math.isfinite(step) and step > 0 for step in stride):
            raise ValueError(f"stride must be positive and finite, got {stride!r}")
        if not _is_pair(shape, (int, torch.SymInt)):
            raise TypeError(f"shape must be two whole numbers (H, W), got {shape!r}")
        if any(size < 0 for size in shape):
            raise ValueError(f"shape must not be negative, got {shape!r}")
        object.__setattr__(self, "stride", (float(stride[0]), float(stride[1])))
        object.__setattr__(self, "shape", (shape[0], shape[1]))

    @property
    def num_anchors(self) -> int:
        """H * W * K."""
        return self.shape[0] * self.shape[1] * self.base_anchors.shape[0]

    def boxes(self) -> Tensor:
        """All the anchors: Tensor[H, W, K, 4] px, float64 where `base_anchors` is, else float32.

        Half precision is not kept: it cannot tell two pixels apart beyond 2048 px.
        """
        base = self.base_anchors
        return grid_boxes(base if base.dtype == torch.float64 else base.float(), self.stride, self.shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AnchorGrid:
        """The same grid with `base_anchors` on another device or of another floating-point dtype."""
        return AnchorGrid(self.base_anchors.to(device=device, dtype=dtype), self.stride, self.shape)

    @staticmethod
    def from_torchvision(
        generator: Any, image_size: Sequence[int], feature_shapes: Sequence[Sequence[int]]
    ) -> list[AnchorGrid]:
        """The levels of a ``torchvision.models.detection.anchor_utils.AnchorGenerator``.

        Args:
            generator: the generator; its rounded `cell_anchors` are used on the device and in the dtype they have.
            image_size: (H, W) px of the padded batch that the model is fed.
            feature_shapes: (H, W) of each level's feature map.

        Returns:
            One grid a level, with torchvision's whole-number strides ``image size // feature size``.

        Raises:
            TypeError: `generator` has no list of cell anchors.
            ValueError: the number of levels differs, or a level is empty or larger than the image.
        """
        cell_anchors = getattr(generator, "cell_anchors", None)
        if not isinstance(cell_anchors, list | tuple):
            raise TypeError(f"generator must have a list cell_anchors, as torchvision's has, got {generator!r}")
        _check_levels("cell_anchors", cell_anchors, "feature_shapes", feature_shapes)
        if len(image_size) != 2 or any(len(shape) != 2 for shape in feature_shapes):
            raise ValueError(f"image_size and feature_shapes must be (H, W), got {image_size} and {feature_shapes}")
        if any(
            not 0 < cells <= pixels for shape in feature_shapes for cells, pixels in zip(shape, image_size, strict=True)
        ):
            raise ValueError(
                f"feature_shapes must be positive and no larger than the image {tuple(image_size)},"
                f" got {[tuple(shape) for shape in feature_shapes]}"
            )
        return [
            AnchorGrid(base, (image_size[0] // h, image_size[1] // w), (h, w))
            for base, (h, w) in zip(cell_anchors, feature_shapes, strict=True)
        ]

    @staticmethod
    def from_mmdet(generator: Any, featmap_sizes: Sequence[Sequence[int]]) -> list[AnchorGrid]:
        """The levels of an MMDetection ``AnchorGenerator`` (a model's ``prior_generator``).

        Args:
            generator: the generator; of it, `base_anchors` (a list of Tensor[K, 4]) and `strides` (a list of (x, y)
                pairs, px) are used.
            featmap_sizes: (H, W) of each level's feature map.

        Raises:
            TypeError: `generator` has no such lists.
            ValueError: the number of levels differs.
        """
        base_anchors, strides = getattr(generator, "base_anchors", None), getattr(generator, "strides", None)
        if not isinstance(base_anchors, list | tuple) or not isinstance(strides, list | tuple):
            raise TypeError(f"generator must have lists base_anchors and strides, as MMDetection's, got {generator!r}")
        _check_levels("base_anchors", base_anchors, "featmap_sizes", featmap_sizes)
        _check_levels("strides", strides, "featmap_sizes", featmap_sizes)
        return [
            AnchorGrid(base, (stride[1], stride[0]), (size[0], size[1]))
            for base, stride, size in zip(base_anchors, strides, featmap_sizes, strict=True)
        ]


def _is_pair(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, types) for item in value)


def _check_levels(name: str, values: Sequence[Any], other_name: str, others: Sequence[Any]) -> None:
    if len(values) != len(others):
        raise ValueError(f"generator has {len(values)} levels of {name}, but {other_name} has {len(others)}")


def flatten_grids(anchors: AnchorGrid | Sequence[AnchorGrid]) -> tuple[list[Tensor], list[float], list[int]]:
    """Checks one grid or a list of them and gives what the operators take.

    Returns:
        The levels' base anchors, and their strides (y, x) and shapes (H, W), each one after the other.
    """
    grids = [anchors] if isinstance(anchors, AnchorGrid) else anchors
    if not isinstance(grids, list | tuple) or not all(isinstance(grid, AnchorGrid) for grid in grids):
        raise TypeError(f"anchors must be a tensor, an AnchorGrid or a list of AnchorGrid, got {_describe(anchors)}")
    if not grids:
        raise ValueError("anchors must hold at least one AnchorGrid, got an empty list")
    for level, grid in enumerate(grids):
        check_alike(f"anchors[{level}]", grid.base_anchors, "anchors[0]", grids[0].base_anchors)
    return (
        [grid.base_anchors for grid in grids],
        [step for grid in grids for step in grid.stride],
        [size for grid in grids for size in grid.shape],
    )


def _describe(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(sorted({type(item).__name__ for item in value}))}"
    return type(value).__name__
