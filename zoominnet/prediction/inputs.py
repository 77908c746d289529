"""From what a caller calls an image to pixels."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from zoominnet.data import MAX_PIXELS, ImageError, decode_image
from zoominnet.data.images import rgb_of
from zoominnet.errors import UserError

ImageInput: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""An image file, a PIL image, uint8 [H, W, 3] (RGB), or a tensor [3, H, W] (RGB), uint8 or floating point in 0..1."""

SMALLEST_SIDE = 8
"""px: what is smaller is no photograph, and less than one cell of a model's finest map."""


def to_pixels(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 [3, H, W] (RGB) of an image, upright as viewers show it where a file or a PIL image has an orientation.

    Args:
        image: see `ImageInput`. Of PIL images, grey ones become RGB and alpha is left out. Values of float tensors are
            rounded to 8 bits, so that the same picture gives the same boxes in every form.
        max_pixels: larger files are refused before they are decoded.

    Raises:
        UserError: it is none of these; or a side is under `SMALLEST_SIDE` px.
        ImageError: the file is missing, damaged or no image.
    """
    if isinstance(image, str | Path):
        pixels = _from_file(image, max_pixels)
    elif isinstance(image, Image.Image):
        pixels = _from_pillow(image)
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"an array of {image.dtype} {list(image.shape)} is not an image: give uint8 [height, width, 3] in RGB "
                "(of OpenCV's BGR: image[..., ::-1])"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image)
    else:
        raise UserError(
            f"{type(image).__name__} is not an image: give a path, a PIL image, a uint8 array [height, width, 3], a "
            "tensor [3, height, width], or a list of them"
        )
    require_size(pixels, name_of(image))
    return pixels


def require_size(pixels: Tensor, name: str) -> None:
    """Raises ImageError for an image [3, H, W] with a side under `SMALLEST_SIDE`."""
    height, width = pixels.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(
            f"{name}: {width}x{height} px is too small to look for objects in; both sides must be {SMALLEST_SIDE} px "
            "or more",
            "image too small",
        )


def name_of(image: ImageInput) -> str:
    """What to call an image in a message."""
    return str(image) if isinstance(image, str | Path) else f"the {type(image).__name__}"


def _from_file(path: str | Path, max_pixels: int) -> Tensor:
    if is_address(str(path)):
        raise UserError(f"{path}: addresses are not opened; download the file and give its path")
    if Path(path).is_dir():
        raise UserError(
            f"{path}: is a folder; for all that is in it: python -m zoominnet.predict MODEL {path}, or zoominnet.predict"
        )
    return decode_image(Path(path), max_pixels=max_pixels)


def is_address(text: str) -> bool:
    """Whether `text` is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _from_pillow(image: Image.Image) -> Tensor:
    try:
        image.load()
    except Exception as error:  # a damaged file can make Pillow's decoders raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"{getattr(image, 'filename', '') or 'the PIL image'}: cannot be decoded: {reason}") from error
    with suppress(Exception):  # an EXIF block that cannot be read turns nothing; the pixels are whole
        image = ImageOps.exif_transpose(image)
    array = rgb_of(image)
    if array is None:
        raise UserError(f"a PIL image of mode {image.mode!r} has no defined brightness; give one of 8-bit RGB or grey")
    return torch.from_numpy(array).permute(2, 0, 1)


def _from_tensor(image: Tensor) -> Tensor:
    image = image.detach().cpu()
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise UserError(
            f"a tensor of {str(image.dtype).removeprefix('torch.')} {list(image.shape)} is not an image: give uint8, or "
            "float in 0..1, of [3, height, width] in RGB (of a batch: list(batch))"
        )
    if image.dtype == torch.uint8:
        return image
    if image.numel() and not (image.min() >= 0 and image.max() <= 1):  # so written, NaN is refused too
        raise UserError(
            f"a float tensor with values from {float(image.min()):g} to {float(image.max()):g} is not an image: give "
            "0..1, not normalised (divide by 255), or uint8"
        )
    return (image.float() * 255).round().byte()
