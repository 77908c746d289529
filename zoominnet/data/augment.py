"""``--augment``: training samples made of parts of others.

All is done at the size at which images are read, the teacher's: the student's image is the 2x2 mean of what comes of it, so
both see the same. What is drawn comes from the sample's own generator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from zoominnet.data.batch import Sample, Target

SAMPLES = 0.5
"""Share of the samples, drawn at random, that an augmentation changes."""
LEAST_SHARE = 0.5
"""An object is enlarged at most by one over it, and reduced at most to it."""
LEAST_VISIBLE = 0.4
"""Share of its area that a box must keep to stay an object."""

Rectangle = tuple[int, int, int, int]
"""(left, top, width, height) px."""
Another = Callable[[], Sample]
"""Draws a sample of the same dataset, not augmented. The images that were there before are not good any more then."""
Augmentation = Callable[[Sample, np.random.Generator, Another], Sample]
"""Makes a sample from one and from what it draws; none is changed, and the size stays."""


def crop(sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
    """Zooms in: a square window becomes the whole image. Its side is a share of the image's that is drawn evenly from
    [`LEAST_SHARE`, 1]."""
    if rng.random() >= SAMPLES:
        return sample
    size = sample.image.shape[-1]
    side = round(size * rng.uniform(LEAST_SHARE, 1))
    left, top = rng.integers(size - side + 1, size=2).tolist()
    return cut(sample, (left, top, side, side), (0, 0, size, size))


def mosaic(sample: Sample, rng: np.random.Generator, another: Another) -> Sample:
    """Parts of four images in the four quarters around a centre that is drawn from the middle half of each axis.

    The sample is at the top left; three others are drawn. Each quarter shows a window of its image, reduced by a factor
    that is drawn evenly from [`LEAST_SHARE`, 1], or from what fills the quarter: [its longer side / the image's side, 1].
    The centre is even, so that no pixel of the student's image has parts of two.
    """
    if rng.random() >= SAMPLES:
        return sample
    size = sample.image.shape[-1]
    x, y = (2 * rng.integers(-(-size // 8), 3 * size // 8 + 1, size=2)).tolist()
    image = torch.empty(3, size, size, dtype=torch.uint8)
    targets: list[Target] = []
    for left, right in ((0, x), (x, size)):
        for top, bottom in ((0, y), (y, size)):
            source = another() if targets else sample
            width, height = right - left, bottom - top
            factor = rng.uniform(max(LEAST_SHARE, width / size, height / size), 1)
            sides = [min(size, round(side / factor)) for side in (width, height)]
            from_x, from_y = (int(rng.integers(size - side + 1)) for side in sides)
            part = cut(source, (from_x, from_y, sides[0], sides[1]), (left, top, width, height))
            image[:, top:bottom, left:right] = part.image
            targets.append(part.target)
    return Sample(
        image,
        {
            **sample.target,
            "boxes": torch.cat([target["boxes"] for target in targets]),
            "labels": torch.cat([target["labels"] for target in targets]),
            "ignored": torch.cat([target["ignored"] for target in targets]),
        },
    )


AUGMENTATIONS: dict[str, Augmentation] = {"crop": crop, "mosaic": mosaic}


def cut(sample: Sample, window: Rectangle, place: Rectangle) -> Sample:
    """A window of a sample, resized (antialiased bilinear) to fill a place in another image.

    Boxes are clipped to it. One that keeps less than `LEAST_VISIBLE` of its area becomes an ignored region, for what is left
    of it is neither an object that could be told nor background. What has no visible area goes.

    Args:
        sample: image uint8[3, H, W].
        window: within its image.
        place: in the other one.

    Returns:
        The image that fills the place, and boxes in px of the other image.
    """
    (left, top, *window_sides), (to_left, to_top, *sides), target = window, place, sample.target
    width, height = window_sides
    image = TF.resized_crop(
        sample.image, top, left, height, width, sides[::-1], TF.InterpolationMode.BILINEAR, antialias=True
    )
    scale = torch.tensor([to / side for to, side in zip(sides, window_sides, strict=True)] * 2)
    first = torch.tensor([to_left, to_top] * 2, dtype=torch.float32)
    last = first + torch.tensor(sides * 2)

    def clipped(boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes in the place, and the share of its area that each keeps: 0 where it has none."""
        boxes = (boxes - torch.tensor([left, top] * 2)) * scale + first
        inside = boxes.maximum(first).minimum(last)
        return inside, torch.nan_to_num(_areas(inside) / _areas(boxes))

    boxes, visible = clipped(target["boxes"])
    ignored, visible_ignored = clipped(target["ignored"])
    kept = visible >= LEAST_VISIBLE
    return Sample(
        image,
        {
            **target,
            "boxes": boxes[kept],
            "labels": target["labels"][kept],
            "ignored": torch.cat([ignored[visible_ignored > 0], boxes[~kept & (visible > 0)]]),
        },
    )


def _areas(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)
