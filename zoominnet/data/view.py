"""Contact sheets: images with their labels, so that faults in these are seen before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import box_iou

from zoominnet.data.drawing import (
    CROSSED,
    GROUND,
    HATCHED,
    TEXT,
    colour_of,
    cross_out,
    draw_boxes,
    draw_regions,
    fitted,
    legend,
    pixels_of,
)
from zoominnet.data.images import ImageError
from zoominnet.data.records import DataError, ImageRecord, Split

TWICE_IOU = 0.9
"""Two boxes of an image with so high an IoU are taken for one object that was labelled twice."""
DOUBT = "#ff2020"
GAP_PX, FONT_PX = 6, 13
MAX_DOUBTS = 3
"""So many doubtful labels of an image are put in words."""


def choose(records: Sequence[ImageRecord], count: int, seed: int) -> list[ImageRecord]:
    """`count` of the records at random, or all, in their order."""
    if count >= len(records):
        return list(records)
    return [records[i] for i in sorted(np.random.default_rng(seed).choice(len(records), count, replace=False).tolist())]


def named(records: Sequence[ImageRecord], files: Sequence[str]) -> list[ImageRecord]:
    """The records of the images of these names, with as many folders as tell them apart, in the order of the names.

    Raises:
        DataError: no image has such a name.
    """
    found = []
    for file in files:
        parts = Path(file).parts
        own = [each for each in records if each.path is not None and each.path.parts[-len(parts) :] == parts]
        if not own:
            raise DataError(f"--only {file}: no image that can be used has that name; `zoominnet data check` tells why")
        found += own
    return found


def labelled_twice(boxes: np.ndarray) -> np.ndarray:
    """bool[N]: which of the boxes, float[N, 4], lie on another one with an IoU of at least `TWICE_IOU`."""
    iou = box_iou(*[torch.from_numpy(boxes.astype(np.float64))] * 2).fill_diagonal_(0)
    return (iou >= TWICE_IOU).any(dim=1).numpy()


@dataclass(frozen=True)
class Sheet:
    """Attributes:
    picture: RGB.
    images, boxes: in it.
    doubtful: labels that could not be understood of its images.
    twice: boxes that lie on another one.
    unreadable: images that could not be decoded, with the reason.
    """

    picture: Image.Image
    images: int
    boxes: int
    doubtful: int
    twice: int
    unreadable: tuple[str, ...]


def contact_sheets(
    split: Split, records: Sequence[ImageRecord], *, per_sheet: int, columns: int, tile: int
) -> Iterator[Sheet]:
    """Pictures of images with their labels.

    Boxes have the colours of their classes, ignored regions are hatched. An image with labels that could not be understood
    has a red frame and says which; boxes that lie on another one are crossed out.

    Args:
        split: the images.
        records: those to show.
        per_sheet: images of a sheet.
        columns: of a sheet.
        tile: the longer side of an image, px.
    """
    for start in range(0, len(records), per_sheet):
        yield _sheet(split, records[start : start + per_sheet], columns, tile)


def _sheet(split: Split, records: Sequence[ImageRecord], columns: int, tile: int) -> Sheet:
    tiles, unreadable, counts, twice = [], [], Counter[int](), 0
    for record in records:
        counts.update(record.labels.tolist())
        twice += int(labelled_twice(record.boxes).sum())
        try:
            tiles.append(_tile(split, record, tile))
        except ImageError as error:
            unreadable.append(str(error))
    columns = min(columns, max(1, len(tiles)))
    width = columns * (tile + GAP_PX) + GAP_PX
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(each.height for each in row) + GAP_PX for row in rows]
    regions = sum(len(record.ignored) for record in records)
    entries = [(colour_of(label), f"{split.class_names[label]}: {counts[label]}") for label in sorted(counts)]
    entries += [(HATCHED, f"ignored region: {regions}")] * bool(regions)
    entries += [(CROSSED, f"boxes that lie on another one (IoU {TWICE_IOU:g}): {twice}")] * bool(twice)
    doubtful = sum(len(record.doubts) for record in records)
    entries += [(DOUBT, f"red frame: labels that could not be understood: {doubtful}")] * bool(doubtful)
    strip = legend(entries or [(GROUND, "no box")], width, FONT_PX + 2)
    sheet = Image.new("RGB", (width, sum(heights) + GAP_PX + strip.height), GROUND)
    y = GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, each in enumerate(row):
            sheet.paste(each, (GAP_PX + column * (tile + GAP_PX), y))
        y += height
    sheet.paste(strip, (0, y))
    return Sheet(sheet, len(tiles), counts.total(), doubtful, twice, tuple(unreadable))


def _tile(split: Split, record: ImageRecord, side: int) -> Image.Image:
    """An image with its labels, and below it its name and what is doubtful."""
    picture = fitted(pixels_of(record, split), side)
    scale = np.tile((picture.width / record.width, picture.height / record.height), 2)
    draw_regions(picture, record.ignored * scale)
    draw_boxes(picture, record.boxes * scale, [colour_of(label) for label in record.labels.tolist()])
    cross_out(picture, record.boxes[labelled_twice(record.boxes)] * scale)
    if record.doubts:
        ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=DOUBT, width=3)
    name = f"image {record.image_id}" if record.path is None else record.path.name
    lines = [(f"{name}  {record.width}x{record.height}, boxes: {len(record.boxes)}", TEXT)]
    lines += [(_short(doubt), DOUBT) for doubt in record.doubts[:MAX_DOUBTS]]
    if len(record.doubts) > MAX_DOUBTS:
        lines.append((f"and {len(record.doubts) - MAX_DOUBTS} more", DOUBT))
    font, step = ImageFont.load_default(FONT_PX), FONT_PX + 4
    whole = Image.new("RGB", (side, picture.height + step * len(lines) + 2), GROUND)
    whole.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole)
    for i, (words, colour) in enumerate(lines):
        pen.text((2, picture.height + 1 + i * step), words, font=font, fill=colour)
    return whole


def _short(doubt: str) -> str:
    """A verdict with the place, without the folders of its file, which the name above tells."""
    verdict, _, place = doubt.partition(": ")
    return f"{verdict}: {place.rpartition('/')[2]}"
