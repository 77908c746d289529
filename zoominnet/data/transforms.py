"""Resizing with the geometry to undo it, flipping, and the student's half-size image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

ResizeMode = Literal["squash", "letterbox"]

_PADDING_COLOUR = (124, 116, 104)  # ImageNet's mean: about 0 to the models


@dataclass(frozen=True)
class ResizeGeometry:
    """How an original image became the square image that the model is fed.

    A point (x, y) px of the original lies at (x * scale_x + pad_x, y * scale_y + pad_y) px of the output; where the
    image was flipped, at `size - x'` of that.

    Attributes:
        width, height: of the original image, px.
        size: side of the output image, px.
        scale_x, scale_y: output px per original px.
        pad_x, pad_y: output px left of and above the image (letterbox).
        flipped: mirrored left to right.
    """

    width: int
    height: int
    size: int
    scale_x: float
    scale_y: float
    pad_x: int = 0
    pad_y: int = 0
    flipped: bool = False

    @classmethod
    def fit(cls, width: int, height: int, size: int, mode: ResizeMode, *, flipped: bool = False) -> ResizeGeometry:
        """The geometry of fitting `width` x `height` px into a square of `size` px.

        "squash" stretches both sides to `size`; "letterbox" keeps the aspect ratio (to the pixel) and centres.

        Args:
            width, height: of the original image, px.
            size: side of the square, px.
            mode: "squash" or "letterbox".
            flipped: mirrored left to right afterwards.
        """
        if mode == "squash":
            return cls(width, height, size, size / width, size / height, flipped=flipped)
        longest = max(width, height)
        inner_width = max(1, round(width * size / longest))
        inner_height = max(1, round(height * size / longest))
        pad_x, pad_y = (size - inner_width) // 2, (size - inner_height) // 2
        return cls(width, height, size, inner_width / width, inner_height / height, pad_x, pad_y, flipped)

    @property
    def inner_size(self) -> tuple[int, int]:
        """(height, width) px that the image itself takes in the output, without the padding."""
        return round(self.height * self.scale_y), round(self.width * self.scale_x)

    def to_output(self, boxes: Tensor) -> Tensor:
        """Boxes [..., 4] (x1, y1, x2, y2) from px of the original image to px of the output image."""
        scale, pad = self._scale_and_pad(boxes)
        boxes = boxes * scale + pad
        return flip_boxes(boxes, self.size) if self.flipped else boxes

    def to_original(self, boxes: Tensor) -> Tensor:
        """The inverse of `to_output`. Boxes are not clipped to the original image."""
        scale, pad = self._scale_and_pad(boxes)
        if self.flipped:
            boxes = flip_boxes(boxes, self.size)
        return (boxes - pad) / scale

    def _scale_and_pad(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        scale = boxes.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        pad = boxes.new_tensor([self.pad_x, self.pad_y, self.pad_x, self.pad_y])
        return scale, pad


def resize_image(image: Tensor, geometry: ResizeGeometry) -> Tensor:
    """Resizes (antialiased bilinear), pads and flips uint8 [3, height, width] to uint8 [3, size, size]."""
    size, (inner_height, inner_width) = geometry.size, geometry.inner_size
    image = TF.resize(image, [inner_height, inner_width], TF.InterpolationMode.BILINEAR, antialias=True)
    if (inner_height, inner_width) != (size, size):
        canvas = torch.tensor(_PADDING_COLOUR, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
        top, left = geometry.pad_y, geometry.pad_x
        canvas[:, top : top + inner_height, left : left + inner_width] = image
        image = canvas
    return image.flip(-1) if geometry.flipped else image.contiguous()


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirrors boxes [..., 4] (x1, y1, x2, y2 px) left to right in an image of `width` px."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def student_images(images: Tensor) -> Tensor:
    """The student's images: the mean of each 2x2 block of pixels, which equals bilinear reduction to one half.

    Boxes of the student's image are the teacher's divided by 2.

    Args:
        images: [B, 3, 2S, 2S], uint8 or floating point.

    Returns:
        [B, 3, S, S] in the same range of values, float32 for uint8 input, else of the input's type.

    Raises:
        ValueError: a side is odd.
    """
    if images.shape[-1] % 2 or images.shape[-2] % 2:
        raise ValueError(f"student_images: the sides must be even, got {tuple(images.shape)}")
    return F.avg_pool2d(images if images.is_floating_point() else images.float(), 2)
