"""A few validation images, always the same, with their boxes and with what the model finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoominnet.data import Split
from zoominnet.data.drawing import GROUND, TEXT, colour_of, draw_boxes, draw_regions, fitted, legend, pixels_of
from zoominnet.evaluation import Detections

PICTURES, SIDE_PX, TITLE_PX, FONT_PX = 4, 480, 20, 13
CONF = 0.05
"""As many of the model's boxes are drawn as there are objects, its best, above this score: one threshold for a whole training
would leave its beginning empty."""


def validation_pictures(split: Split, found: Sequence[Detections]) -> dict[str, Image.Image]:
    """At most `PICTURES` images with objects, at equal distances: ground truth on the left, the model's boxes on the right.

    Args:
        split: the images.
        found: in all of them.

    Returns:
        RGB, by the number of the image in the split.

    Raises:
        ImageError: an image cannot be decoded.
    """
    with_objects = [i for i, record in enumerate(split.records) if len(record.boxes)]
    count = min(PICTURES, len(with_objects))
    chosen = [with_objects[i * len(with_objects) // count] for i in range(count)]
    return {f"image {i}": truth_and_found(split, i, found[i]) for i in chosen}


def truth_and_found(split: Split, index: int, found: Detections) -> Image.Image:
    """An image of a split twice: with its boxes, and with as many of the best detections."""
    record = split.records[index]
    picture = fitted(pixels_of(record, split), SIDE_PX)
    scale = np.tile((picture.width / record.width, picture.height / record.height), 2)
    draw_regions(picture, record.ignored * scale)
    best = found.select(found.scores > CONF).best_first().select(slice(len(record.boxes)))
    whole = Image.new("RGB", (2 * picture.width + 2, picture.height + TITLE_PX), GROUND)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT_PX)
    for i, (title, boxes, labels) in enumerate(
        (
            (f"ground truth: {len(record.boxes)}", record.boxes, record.labels),
            (f"model: {len(best)}", best.boxes, best.labels),
        )
    ):
        half = picture.copy()
        draw_boxes(half, boxes * scale, [colour_of(label) for label in labels.tolist()])
        left = i * (picture.width + 2)
        whole.paste(half, (left, TITLE_PX))
        pen.text((left + 2, TITLE_PX // 2), title, font=font, fill=TEXT, anchor="lm")
    classes = [
        (colour_of(label), split.class_names[label]) for label in np.union1d(record.labels, best.labels).tolist()
    ]
    strip = legend(classes, whole.width, FONT_PX)
    framed = Image.new("RGB", (whole.width, whole.height + strip.height), GROUND)
    framed.paste(whole, (0, 0))
    framed.paste(strip, (0, whole.height))
    return framed
