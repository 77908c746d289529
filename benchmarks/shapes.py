"""The shapes that are measured, by name; the kernels' tests use them as well.

Boxes are those of real images where ../shared/data/visdrone-mini is present beside the repository, else made up with
like numbers and sizes. The "tiny" shapes bear the same names and take next to no time.

    PYTHONPATH=. python benchmarks/shapes.py    # prints how much work is in each
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zoominnet.data import ResizeGeometry, open_split
from zoominnet.kernels import AnchorGrid, akdp_mask, max_iou_assign
from zoominnet.models.anchors import base_anchors

VISDRONE = Path(__file__).resolve().parents[2] / "shared" / "data" / "visdrone-mini"
BOXES = "VisDrone-mini" if VISDRONE.is_dir() else "made up"
"""Where the boxes come from."""
TYPICAL = 54
"""Boxes of a typical image: the mean of VisDrone's training images."""


@dataclass(frozen=True)
class BoxShape:
    """Images with boxes, before the anchors of a pyramid.

    Attributes:
        size: side of the image, px.
        strides: of the levels, px.
        images: number of images.
        boxes: of each image; None for real images as they are.
    """

    size: int
    strides: tuple[int, ...]
    images: int
    boxes: int | None

    def grids(self, device: torch.device | str = "cpu") -> list[AnchorGrid]:
        """The levels' anchors: nine a cell, those of the models."""
        return [
            AnchorGrid(
                base_anchors(3 * stride).to(device), (stride, stride), (self.size // stride, self.size // stride)
            )
            for stride in self.strides
        ]

    def gt_boxes(self, device: torch.device | str = "cpu") -> list[Tensor]:
        """The boxes of each image, float32[G, 4] px."""
        return [boxes.to(device) for boxes in image_boxes(self.size, self.images, self.boxes)]


TEACHER, FINE = (8, 16, 32, 64, 128), (4, 8, 16, 32, 64)
BOX_SHAPES = {
    "full": {
        "1024 px, 54 boxes": BoxShape(1024, TEACHER, 1, TYPICAL),
        "1024 px, 500 boxes": BoxShape(1024, TEACHER, 1, 500),
        "1024 px, 2000 boxes": BoxShape(1024, TEACHER, 1, 2000),
        "1024 px, 16 images": BoxShape(1024, TEACHER, 16, None),
        "1024 px, 16 images of 2000 boxes": BoxShape(1024, TEACHER, 16, 2000),
        "64 px, 3 boxes": BoxShape(64, TEACHER[:2], 1, 3),
    },
    "tiny": {
        "1024 px, 54 boxes": BoxShape(64, TEACHER[:3], 1, 5),
        "1024 px, 500 boxes": BoxShape(64, TEACHER[:2], 1, 9),
        "1024 px, 2000 boxes": BoxShape(64, TEACHER[:2], 1, 20),
        "1024 px, 16 images": BoxShape(64, TEACHER[:2], 3, None),
        "1024 px, 16 images of 2000 boxes": BoxShape(64, TEACHER[:2], 3, 20),
        "64 px, 3 boxes": BoxShape(32, TEACHER[:1], 1, 2),
    },
}


@dataclass(frozen=True)
class MapShape:
    """Feature maps: a small one [B, C, h, w], and one `step` times as high and wide."""

    B: int
    C: int
    h: int
    w: int
    step: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def small(self, device: torch.device | str = "cpu") -> Tensor:
        """Normal random values; always the same ones."""
        return self._map(1, 0, device)

    def large(self, device: torch.device | str = "cpu", seed: int = 1) -> Tensor:
        """The same for the larger size."""
        return self._map(self.step, seed, device)

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """bool[B, H, W]: the key positions of images of which these are the finest level, in blobs."""
        return key_positions(self.B, self.step * self.h, self.step * self.w).to(device)

    def _map(self, factor: int, seed: int, device: torch.device | str) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.B, self.C, factor * self.h, factor * self.w, generator=generator)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.to(device, self.dtype).contiguous(memory_format=layout)


LOSS_SHAPES = {
    "full": {
        "LA, P3": MapShape(4, 256, 64, 64),
        "LA, P3, channels_last": MapShape(4, 256, 64, 64, channels_last=True),
        "LA, P3, bfloat16, channels_last": MapShape(4, 256, 64, 64, dtype=torch.bfloat16, channels_last=True),
        "FA, P2": MapShape(4, 256, 128, 128, step=1),
        "LA, P7": MapShape(4, 256, 4, 4),
    },
    "tiny": {
        "LA, P3": MapShape(2, 9, 8, 8),
        "LA, P3, channels_last": MapShape(2, 9, 8, 8, channels_last=True),
        "LA, P3, bfloat16, channels_last": MapShape(2, 9, 8, 8, dtype=torch.bfloat16, channels_last=True),
        "FA, P2": MapShape(2, 9, 8, 8, step=1),
        "LA, P7": MapShape(2, 9, 2, 2),
    },
}
UPSAMPLE_SHAPES = {
    "full": {
        "P3": MapShape(4, 256, 64, 64),
        "P3, channels_last": MapShape(4, 256, 64, 64, channels_last=True),
        "P3, bfloat16, channels_last": MapShape(4, 256, 64, 64, dtype=torch.bfloat16, channels_last=True),
        "P5": MapShape(4, 256, 8, 8),
    },
    "tiny": {
        "P3": MapShape(2, 9, 8, 8),
        "P3, channels_last": MapShape(2, 9, 8, 8, channels_last=True),
        "P3, bfloat16, channels_last": MapShape(2, 9, 8, 8, dtype=torch.bfloat16, channels_last=True),
        "P5": MapShape(2, 9, 2, 2),
    },
}


@dataclass(frozen=True)
class LogitShape:
    """The class logits of a model's levels, as its head gives them in channels_last, and what their anchors train on.

    Attributes:
        boxes: the images, their boxes and the levels' anchors.
        classes: of each anchor.
        dtype: of the logits.
    """

    boxes: BoxShape
    classes: int = 10
    dtype: torch.dtype = torch.float32

    def levels(self, device: torch.device | str = "cpu") -> list[Tensor]:
        """[B, A_l, C] each: views of [B, K * C, H, W], around the logit of 0.01 at which a training begins."""
        generator = torch.Generator().manual_seed(0)
        result = []
        for grid in self.boxes.grids():
            h, w = grid.shape
            channels = len(grid.base_anchors) * self.classes
            head = torch.randn(self.boxes.images, channels, h, w, generator=generator) - 4.6
            head = head.to(device, self.dtype).contiguous(memory_format=torch.channels_last)
            result.append(head.permute(0, 2, 3, 1).view(self.boxes.images, -1, self.classes))
        return result

    def assigned(self, device: torch.device | str = "cpu") -> Tensor:
        """int64[B, A]: each image's anchors by the rule of the models."""
        return torch.stack(max_iou_assign(self.boxes.grids(), self.boxes.gt_boxes())).to(device)

    def labels(self, device: torch.device | str = "cpu") -> list[Tensor]:
        """int64[G] of each image."""
        generator = torch.Generator().manual_seed(1)
        counts = [len(boxes) for boxes in self.boxes.gt_boxes()]
        return [torch.randint(self.classes, (count,), generator=generator).to(device) for count in counts]


FOCAL_SHAPES = {
    "full": {
        "fa, 512 px, 4 images": LogitShape(BoxShape(512, FINE, 4, None)),
        "fa, 512 px, 4 images, bfloat16": LogitShape(BoxShape(512, FINE, 4, None), dtype=torch.bfloat16),
        "snet, 256 px, 2 images": LogitShape(BoxShape(256, TEACHER, 2, None)),
        "snet, 64 px, 1 image": LogitShape(BoxShape(64, TEACHER[:2], 1, 3)),
    },
    "tiny": {
        "fa, 512 px, 4 images": LogitShape(BoxShape(64, FINE[:3], 2, None), classes=3),
        "fa, 512 px, 4 images, bfloat16": LogitShape(BoxShape(64, FINE[:3], 2, None), 3, torch.bfloat16),
        "snet, 256 px, 2 images": LogitShape(BoxShape(64, TEACHER[:2], 2, None), classes=3),
        "snet, 64 px, 1 image": LogitShape(BoxShape(32, TEACHER[:1], 1, 2)),
    },
}


@dataclass(frozen=True)
class ModelShape:
    """A student and its teacher."""

    backbone: str
    channels: int
    size: int
    """Side of the student's input, px; the teacher's is twice that."""
    batch: int


MODEL_SHAPES = {
    ("full", "cpu"): ModelShape("resnet18", 64, 128, 1),
    ("full", "cuda"): ModelShape("resnet50", 256, 512, 4),
    ("tiny", "cpu"): ModelShape("resnet18", 8, 128, 1),
    ("tiny", "cuda"): ModelShape("resnet18", 8, 128, 1),
}
STEP_SHAPES = {
    ("full", "cpu"): ModelShape("resnet50", 256, 256, 2),
    ("full", "cuda"): ModelShape("resnet50", 256, 512, 16),
    ("tiny", "cpu"): ModelShape("resnet18", 8, 128, 2),
    ("tiny", "cuda"): ModelShape("resnet18", 8, 128, 2),
}
"""Of the training step, whose images have `STEP_BOXES` boxes each."""
STEP_BOXES = {"full": TYPICAL, "tiny": 5}


def image_boxes(size: int, images: int, count: int | None) -> list[Tensor]:
    """Boxes of so many images, float32[G, 4] px of an image of side `size`.

    Args:
        size: px.
        images: how many.
        count: boxes of each. Of the real images that have as many, the one in the middle by the area of its boxes;
            where no image has as many, those of one image after the other put together. None: real images as they
            are, evenly spaced over the data set.
    """
    real = real_boxes()
    if real is None:
        counts = [TYPICAL if count is None else count] * images
        return [made_up_boxes(n, seed) * size for seed, n in enumerate(counts)]
    if count is None:
        return [real[len(real) * i // images] * size for i in range(images)]
    alike = sorted((boxes for boxes in real if len(boxes) == count), key=_total_area)
    chosen = alike[len(alike) // 2] if alike else torch.cat(real)[:count]
    return [chosen * size] * images


@functools.cache
def real_boxes() -> list[Tensor] | None:
    """The boxes of VisDrone-mini's training images, as shares of the image's sides; None where it is absent."""
    if not VISDRONE.is_dir():
        return None
    split = open_split(VISDRONE, "train")
    return [
        ResizeGeometry.fit(record.width, record.height, 1, "squash").to_output(torch.from_numpy(record.boxes))
        for record in split.records
    ]


def made_up_boxes(count: int, seed: int) -> Tensor:
    """Boxes with VisDrone's sizes, as shares of the image's sides: log-normal, the median root of the area 2.5 %."""
    generator = torch.Generator().manual_seed(seed)
    root_of_area = 0.025 * torch.exp(0.73 * torch.randn(count, 1, generator=generator))
    shape = 0.31 * torch.randn(count, 1, generator=generator)
    sides = (root_of_area * torch.exp(torch.cat([shape, -shape], 1))).clamp(max=1)
    corner = torch.rand(count, 2, generator=generator) * (1 - sides)
    return torch.cat([corner, corner + sides], 1)


@functools.cache
def key_positions(images: int, height: int, width: int) -> Tensor:
    """bool[images, height, width]: 25 to 30 % of the positions, where the AKDP mask of a level of that size has them.

    Of the real images the first that are next to one another and give so many; else smoothed noise above a threshold.
    """
    if (real := real_boxes()) is not None:
        grid = AnchorGrid(base_anchors(12), (4, 4), (height, width))
        size = torch.tensor([width, height, width, height]) * 4
        for start in range(0, len(real) - images, images):
            boxes = [boxes * size for boxes in real[start : start + images]]
            mask = torch.stack(list(akdp_mask(grid, boxes)))
            if 0.25 <= mask.float().mean() <= 0.3:
                return mask
    noise = torch.randn(images, 1, height, width, generator=torch.Generator().manual_seed(0))
    side = max(min(height, width) // 8, 1) * 2 + 1
    smooth = F.avg_pool2d(noise, side, 1, side // 2, count_include_pad=False)[:, 0]
    return smooth > smooth.flatten().quantile(0.725)


def _total_area(boxes: Tensor) -> float:
    return float((boxes[:, 2:] - boxes[:, :2]).prod(1).sum())


def work(shape: BoxShape) -> dict[str, int]:
    """Pairs of an anchor and a box, those that touch, and the groups of eight neighbours of a row that hold these."""
    grids, images = shape.grids(), shape.gt_boxes()
    counts = {"anchors": sum(grid.num_anchors for grid in grids), "pairs": 0, "touching": 0, "groups of 8": 0}
    for boxes in images:
        counts["pairs"] += counts["anchors"] * len(boxes)
        for grid in grids:
            x1, y1, x2, y2 = grid.boxes().unbind(-1)
            columns = ((x1[0, ..., None] < boxes[:, 2]) & (x2[0, ..., None] > boxes[:, 0])).sum(0)  # [K, G]
            rows = ((y1[:, 0, :, None] < boxes[:, 3]) & (y2[:, 0, :, None] > boxes[:, 1])).sum(0)
            counts["touching"] += int((rows * columns).sum())
            counts["groups of 8"] += int((rows * ((columns + 7) // 8)).sum())
    return counts


def main() -> None:
    print("real images of VisDrone-mini" if real_boxes() is not None else "made-up images")
    for name, shape in BOX_SHAPES["full"].items():
        print(f"{name}: {', '.join(f'{count:,} {what}' for what, count in work(shape).items())}")
    for name, shape in LOSS_SHAPES["full"].items():
        mask = shape.mask().view(shape.B, shape.h, shape.step, shape.w, shape.step)
        cells = mask.any(4).any(2)
        groups = F.max_pool2d(cells[:, None].float(), (1, min(8, shape.w)))
        print(
            f"{name}: masked {mask.float().mean():.1%} of the positions, {cells.float().mean():.1%} of the student's"
            f" cells, {groups.mean():.1%} of its groups of 8"
        )
    for name, logits in FOCAL_SHAPES["full"].items():
        assigned = logits.assigned()
        print(
            f"{name}: {assigned.numel():,} anchors, {(assigned >= 0).float().mean():.2%} of them of a box,"
            f" {(assigned == -2).float().mean():.2%} ignored"
        )


if __name__ == "__main__":
    main()
