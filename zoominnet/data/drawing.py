"""Boxes, ignored regions and legends on pictures, by Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoominnet.data.images import decode_image
from zoominnet.data.records import ImageRecord, Split

PALETTE = (
    *("#00e5ff", "#ff4fd8", "#ffe600", "#ff3b30", "#39ff5a", "#ff9500", "#8f8bff", "#ffffff", "#b6ff00", "#ff9ebb"),
    *("#00c9a7", "#d28bff", "#e0b07a", "#4da3ff", "#a8ffe0", "#ff7a59", "#d4d400", "#c0d6ff", "#7dd87d", "#ffc8f5"),
)
"""Colours of the labels 0, 1, ..., in turn: light ones, that stand out from ground, road and shadow, with dark text."""
GROUND, TEXT = "#101014", "#ffffff"
_HATCH_PX = 6


def colour_of(label: int) -> str:
    """Of a label."""
    return PALETTE[label % len(PALETTE)]


def pixels_of(record: ImageRecord, split: Split) -> Tensor:
    """The image of a record, uint8 [3, height, width].

    Raises:
        ImageError: it cannot be decoded.
    """
    if record.path is not None:
        return decode_image(record.path, as_stored=record.as_stored, max_pixels=split.max_pixels)
    assert split.render is not None
    return split.render(record)


def fitted(pixels: Tensor, side: int) -> Image.Image:
    """An image uint8 [3, height, width] as a picture of the same shape, no side longer than `side` px."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(1.0, side / max(picture.size))
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def draw_boxes(picture: Image.Image, boxes: np.ndarray, colours: Sequence[str], *, width: int = 1) -> None:
    """Draws lines around boxes, not over what is in them.

    Args:
        picture: RGB, is drawn on.
        boxes: float[N, 4], (x1, y1, x2, y2) px of the picture.
        colours: one a box.
        width: of the lines, px.
    """
    pen = ImageDraw.Draw(picture)
    for (x1, y1, x2, y2), colour in zip(boxes.tolist(), colours, strict=True):
        left, top, right, bottom = np.floor((x1, y1, x2, y2)).astype(int).tolist()
        pen.rectangle((left - width, top - width, right + width, bottom + width), outline=colour, width=width)


def cross_out(picture: Image.Image, boxes: np.ndarray) -> None:
    """Draws the diagonals of boxes.

    Args:
        picture: RGB, is drawn on.
        boxes: float[N, 4], (x1, y1, x2, y2) px of the picture.
    """
    pen = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in np.floor(boxes).astype(int).tolist():
        pen.line((x1, y1, x2, y2), fill=TEXT)
        pen.line((x1, y2, x2, y1), fill=TEXT)


def draw_regions(picture: Image.Image, regions: np.ndarray) -> None:
    """Draws hatched boxes.

    Args:
        picture: RGB, is drawn on.
        regions: float[R, 4], (x1, y1, x2, y2) px of the picture.
    """
    for x1, y1, x2, y2 in np.round(regions).astype(int).tolist():
        width, height = max(1, x2 - x1), max(1, y2 - y1)
        rows, columns = np.ogrid[y1 : y1 + height, x1 : x1 + width]  # of the picture, so that regions that touch go on
        lines = (rows + columns) % _HATCH_PX == 0
        lines[[0, -1], :] = lines[:, [0, -1]] = True
        picture.paste(TEXT, (x1, y1), Image.fromarray(lines.astype(np.uint8) * 255))


HATCHED, CROSSED = "hatched", "crossed"
"""In the place of a colour in a legend: what :func:`draw_regions` and :func:`cross_out` draw."""


def legend(entries: Sequence[tuple[str, str]], width: int, font_size: int) -> Image.Image:
    """A strip of (colour, words), in as many lines as they take.

    Args:
        entries: in order.
        width: of the strip, px.
        font_size: px.
    """
    font, square, line = ImageFont.load_default(font_size), font_size, round(font_size * 1.8)
    spots, x, y = [], font_size, 0
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for colour, words in entries:
        step = square + font_size // 2 + round(ruler.textlength(words, font=font)) + font_size
        if x > font_size and x + step > width:
            x, y = font_size, y + line
        spots.append((x, y, colour, words))
        x += step
    strip = Image.new("RGB", (width, y + line), GROUND)
    pen = ImageDraw.Draw(strip)
    for x, y, colour, words in spots:
        top = y + (line - square) // 2
        box = np.array([[x, top, x + square, top + square]])
        if colour == HATCHED:
            draw_regions(strip, box)
        elif colour == CROSSED:
            cross_out(strip, box)
        else:
            pen.rectangle((x, top, x + square - 1, top + square - 1), fill=colour)
        pen.text((x + square + font_size // 2, y + line // 2), words, font=font, fill=TEXT, anchor="lm")
    return strip
