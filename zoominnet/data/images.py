"""Image files: their sizes from the header, their pixels, and which of them can be used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torchvision
from PIL import Image, ImageFile
from torch import Tensor
from torchvision.io import ImageReadMode

from zoominnet.data.records import MAX_PIXELS, DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""The file names taken for images when a folder is listed. What a file really holds is read from its first bytes."""

OUTSIDE = "path leads outside the data folder"
"""The verdict on what is named or linked beyond the data set's own folder: it is not read."""

PILLOW_MAX_PIXELS = 178_000_000
"""No limit can be higher: Pillow itself refuses headers from here on (twice its `Image.MAX_IMAGE_PIXELS`)."""

# Pillow is kept to these: some of its other formats start programs (EPS) or are not photographs.
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# MPO is what Pillow calls a JPEG followed by a preview picture, as many drones write it; the first one is decoded.
_TORCHVISION_FORMATS = frozenset({"JPEG", "MPO", "PNG"})
_PILLOW_MODES_TO_RGB = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})
"""The EXIF orientations whose stored rows are the upright image's columns."""


class ImageError(DataError):
    """An image that cannot be used: the message names the file, `verdict` is what a `DataReport` counts it under."""

    def __init__(self, message: str, verdict: str = "unreadable image") -> None:
        super().__init__(message)
        self.verdict = verdict


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say.

    Attributes:
        width, height: upright, as viewers show it, px.
        format: Pillow's name: "JPEG", "PNG", ...
        orientation: of the EXIF block, 1 to 8; 1 (stored upright) where it says nothing.
    """

    width: int
    height: int
    format: str
    orientation: int

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) px of the pixels as they are stored, before they are turned upright."""
        return (self.height, self.width) if self.orientation in _SIDEWAYS else (self.width, self.height)


def list_images(folder: Path) -> list[Path]:
    """The image files in `folder` and below, relative to it and sorted; hidden files are left out."""

    def refuse(error: OSError) -> NoReturn:  # os.walk would leave the folder out without a word
        raise error

    found = [
        Path(directory, name).relative_to(folder)
        for directory, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]
    return sorted(found, key=lambda path: path.as_posix())


def read_image_header(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Reads the upright size of an image without decoding it.

    Raises:
        ImageError: missing, not a JPEG, PNG, BMP, TIFF or WebP file, or more than `max_pixels` pixels.
    """
    try:
        if not path.is_file():  # also keeps us from waiting on a named pipe
            raise ImageError(f"{path}: no such image file", "image file missing")
        empty = path.stat().st_size == 0
    except OSError as error:  # a name that is too long, a folder that must not be entered
        raise ImageError(f"{path}: {error.strerror}") from error
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            width, height = image.size
            orientation = _orientation(image)
            if (orientation in _SIDEWAYS) != _is_turned_by_pillow(image):
                width, height = height, width
            header = ImageHeader(width, height, image.format or "", orientation)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}", "image over the size limit") from error
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        reason = "the file is empty" if empty else "not a readable JPEG, PNG, BMP, TIFF or WebP file"
        raise ImageError(f"{path}: {reason}") from error
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} px is over the limit of {max_pixels / 1e6:g} megapixels",
            "image over the size limit",
        )
    return header


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # an EXIF block that cannot be read turns nothing; the pixels may be whole
        return 1
    return orientation if orientation in range(1, 9) else 1


def _is_turned_by_pillow(image: Image.Image) -> bool:
    """Whether `image.size`, before the pixels are decoded, is that of the upright image: a TIFF's, by its own tag."""
    tags = getattr(image, "tag_v2", None)
    return image.format == "TIFF" and tags is not None and tags.get(_EXIF_ORIENTATION) in _SIDEWAYS


def turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Stored pixels [..., H, W] as the EXIF `orientation` (1 to 8) says that they are to be seen.

    Source: the EXIF standard's tag 0x0112, which tells at which sides row 0 and column 0 lie.
    """
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(-1, -2)
    mirrored = [axis for axis, turned in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))) if orientation in turned]
    return pixels.flip(mirrored) if mirrored else pixels


def turn_boxes_upright(boxes: np.ndarray, orientation: int, stored_size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] (x1, y1, x2, y2 px of the stored image) in px of the upright image, as `turn_upright` turns pixels.

    Args:
        boxes: floating point.
        orientation: EXIF, 1 to 8.
        stored_size: (width, height) of the stored image, px.
    """
    x1, y1, x2, y2 = boxes.T
    width, height = stored_size
    if orientation in _SIDEWAYS:
        x1, y1, x2, y2, width, height = y1, x1, y2, x2, height, width
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack((x1, y1, x2, y2), axis=1)


def decode_image(path: Path, *, as_stored: bool = False, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decodes an image file to uint8[3, H, W], RGB, upright as viewers show it (EXIF); alpha is left out.

    torchvision decodes JPEG and PNG, Pillow the other formats. Of 16-bit images the high byte is kept.

    Args:
        as_stored: leave the pixels as they are stored, for labels that were made on those.
        max_pixels: as `read_image_header`.

    A cut-off file is refused, unless something put an end marker on it: a JPEG whose rest is missing but that ends
    rightly, and one with flipped bits in its pixels, decode to wrong pixels without an error. Only a checksum of each
    file, kept beside the data, finds these.

    Raises:
        ImageError: as `read_image_header`, or the pixels are cut off or damaged.
    """
    header = read_image_header(path, max_pixels=max_pixels)
    try:
        upright = False
        if header.format in _TORCHVISION_FORMATS:
            data = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
            pixels = torchvision.io.decode_image(data, ImageReadMode.RGB)
            if pixels.dtype == torch.uint16:
                pixels = (pixels.int() >> 8).byte()
        else:
            pixels = _decode_with_pillow(path)
            upright = header.format == "TIFF"
    except ImageError:
        raise
    except Exception as error:  # as above: the decoders raise many types for damaged data
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"{path}: cannot be decoded: {reason}") from error
    if header.orientation != 1 and upright == as_stored:
        inverse = {6: 8, 8: 6}.get(header.orientation, header.orientation)
        pixels = turn_upright(pixels, inverse if upright else header.orientation)
    width, height = header.stored_size if as_stored else header[:2]
    if pixels.shape != (3, height, width):
        raise ImageError(f"{path}: decoded to {tuple(pixels.shape)}, the header says {width}x{height}")
    return pixels


def _decode_with_pillow(path: Path) -> Tensor:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(f"{path}: not decoded while PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: leave it False")
    # Not by its name: Pillow maps such a file into memory, and then garbles TIFFs (L, P, RGBA, CMYK) that lie sideways.
    with path.open("rb") as file, Image.open(file, formats=_PILLOW_FORMATS) as image:
        pixels = rgb_of(image)
        if pixels is None:
            raise ImageError(f"{path}: pixels of mode {image.mode!r} have no defined brightness: save it as 8-bit RGB")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def rgb_of(image: Image.Image) -> np.ndarray | None:
    """uint8 [H, W, 3] of an image that Pillow opened; alpha is left out, of 16-bit images the high byte is kept.

    None where its mode has no defined brightness.
    """
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB")) if image.mode in _PILLOW_MODES_TO_RGB else None


def inspect_images(
    paths: Iterable[Path], root: Path, *, decode: bool, max_pixels: int = MAX_PIXELS
) -> Iterator[ImageHeader | ImageError]:
    """For each of `paths`, in order, its header, or why it cannot be used: also when it leads outside `root`.

    With `decode` each image is decoded as well, in a few threads: no header check finds a cut-off JPEG.
    """
    real_root = root.resolve()

    def inspect(path: Path) -> ImageHeader | ImageError:
        try:
            require_inside(path, real_root)
            header = read_image_header(path, max_pixels=max_pixels)
            if decode:
                decode_image(path, max_pixels=max_pixels)
        except ImageError as error:
            return error
        return header

    if not decode:
        yield from map(inspect, paths)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(inspect, paths)


def require_inside(path: Path, real_root: Path) -> None:
    """Raises ImageError where `path`, its symbolic links followed, is not below the resolved folder `real_root`."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL byte in the name
        raise ImageError(f"{path}: {error}", OUTSIDE) from error
    if not real.is_relative_to(real_root):
        raise ImageError(f"{path}: leads to {real}, outside {real_root}: put the file itself there", OUTSIDE)
