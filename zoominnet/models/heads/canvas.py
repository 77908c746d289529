"""The smallest maps of a pyramid side by side on one, so that a convolution of all of them is one convolution.

The convolution of a map of a few cells costs what its weights cost to read, and its backward pass what their gradient costs
to write and to add, as often as there are such maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Canvas:
    """Where maps stand: the first at the left, the others at its right, one below the other, a cell of zeros between any two,
    which is what a 3x3 convolution sees around each.

    Attributes:
        height, width: of the whole, cells.
        places: (row, column, height, width) of each map.
    """

    height: int
    width: int
    places: tuple[tuple[int, int, int, int], ...]

    @staticmethod
    def of(shapes: tuple[tuple[int, int], ...]) -> Canvas:
        """The canvas of maps of these (height, width), two or more."""
        (height, width), *others = shapes
        places, row = [(0, 0, height, width)], 0
        for h, w in others:
            places.append((row, width + 1, h, w))
            row += h + 1
        return Canvas(max(height, row - 1), width + 1 + max(w for _, w in others), tuple(places))

    @classmethod
    def with_last(cls, maps: list[Tensor], count: int) -> tuple[list[Tensor], Canvas]:
        """The maps with the last `count` of them on one."""
        canvas = cls.of(tuple((x.shape[-2], x.shape[-1]) for x in maps[-count:]))
        return [*maps[:-count], canvas.put(maps[-count:])], canvas

    def put(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, C, h, w] each -> [B, C, height, width], 0 between them."""
        whole = None
        for x, (row, column, h, w) in zip(maps, self.places, strict=True):
            padded = F.pad(x, (column, self.width - column - w, row, self.height - row - h))
            whole = padded if whole is None else whole + padded
        assert whole is not None
        return whole

    def mask(self, like: Tensor) -> Tensor:
        """[1, 1, height, width]: 1 on the maps, 0 between them."""
        return self.put([like.new_ones(1, 1, h, w) for _, _, h, w in self.places])

    def take(self, canvas: Tensor, scale: int = 1) -> list[Tensor]:
        """The maps on [B, C, scale * height, scale * width], views of it."""
        return [
            canvas[..., scale * row : scale * (row + h), scale * column : scale * (column + w)]
            for row, column, h, w in self.places
        ]
