"""Results drawn by `supervision`, for objects of a few pixels: thin lines around them, not over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoominnet.data.drawing import PALETTE
from zoominnet.prediction.extras import extra

if TYPE_CHECKING:
    from zoominnet.prediction.result import Result

LabelMode = Literal["auto", "on", "off"]

_TEXT = "#101014"
_PX_A_LINE = 2400
"""Lines are 1 px wide, and 2 px wider for each so many px of the image's longer side."""


_STANDING = 12
"""So many classes of a film have their places in its legend."""


def require_drawing() -> Any:
    """The package `supervision`.

    Raises:
        UserError: it is not installed.
    """
    return extra("supervision", "drawing")


def draw(
    result: Result, *, labels: LabelMode = "auto", legend: bool = True, film_classes: Sequence[int] | None = None
) -> Image.Image:
    """The image of a result with its boxes, RGB.

    Lines are 1 px wide, more in large images, and lie around the boxes. With `labels` "auto" a box has its class and score
    where they cover no other box and no other label, if they are not far larger than the box: above it, else below. The
    legend is a strip below the image, so that all that is above has the image's own pixels.

    Args:
        labels: "on" draws all of them, "off" none.
        legend: draw it.
        film_classes: labels that may be found in a film, whose pictures must be of one size: up to 12 all stand in the
            legend of each picture, else it has two lines. None: as many lines as what was found takes.

    Raises:
        UserError: `supervision` is not installed.
    """
    sv = require_drawing()
    scene = Image.fromarray(result.image.permute(1, 2, 0).numpy())
    boxes, found = result.boxes.numpy().astype(float), result.labels.numpy()
    longest = max(scene.size)
    wider = longest // _PX_A_LINE
    line = 1 + 2 * wider
    palette = sv.ColorPalette.from_hex(list(PALETTE))
    if len(result):
        # The least certain first, so that the most certain is seen where lines cross.
        order = np.arange(len(result))[::-1]
        around = np.concatenate((np.floor(boxes[:, :2]) - wider - 1, np.ceil(boxes[:, 2:]) + wider), axis=1)
        detections = sv.Detections(xyxy=around[order], class_id=found[order])
        pixels = np.ascontiguousarray(np.asarray(scene)[:, :, ::-1])  # supervision draws in BGR
        # OpenCV makes 3 px of the thickness 2, and 5 of 4.
        pixels = sv.BoxAnnotator(color=palette, thickness=max(1, 2 * wider)).annotate(
            scene=pixels, detections=detections
        )
        scene = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1]))
    if labels != "off" and len(result):
        texts = [f"{name} {score:.2f}" for name, score in zip(result.names, result.scores.tolist(), strict=True)]
        scene = _draw_labels(sv, scene, palette, boxes, found, texts, line, every=labels == "on")
    if legend:
        counts = Counter(found.tolist())
        stand_still = film_classes is not None and len(film_classes) <= _STANDING
        entries = (
            film_classes if film_classes is not None and stand_still else [each for each, _ in counts.most_common()]
        )
        lines = None if film_classes is None or stand_still else 2
        scene = _with_legend(scene, [(each, result.class_names[each], counts[each]) for each in entries], lines)
    return scene


def font_size(longest: int) -> int:
    """Of labels and legend in an image whose longer side has so many px."""
    return max(10, round(longest / 110))


_PLACES = ("TOP_LEFT", "BOTTOM_LEFT", "TOP_RIGHT", "BOTTOM_RIGHT")


def _draw_labels(
    sv: Any,
    scene: Image.Image,
    palette: Any,
    boxes: np.ndarray,
    found: np.ndarray,
    texts: list[str],
    line: int,
    *,
    every: bool,
) -> Image.Image:
    size, padding = font_size(max(scene.size)), 2
    font = ImageFont.load_default(size)
    ruler = ImageDraw.Draw(scene)
    taken = boxes.copy()
    places: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        left, top, right, bottom = ruler.textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * padding, bottom - top + 2 * padding
        place = _place_of(i, width, height + line, boxes, taken, scene.size)
        if place is None and every:
            place = "TOP_LEFT", (0.0, 0.0, 0.0, 0.0)
        if place is not None:
            places.setdefault(place[0], []).append(i)
            taken = np.concatenate((taken, [place[1]]))
    for name, members in places.items():
        annotator = sv.RichLabelAnnotator(
            color=palette,
            text_color=sv.Color.from_hex(_TEXT),
            font_size=size,
            text_padding=padding,
            text_position=getattr(sv.Position, name),
            text_offset=(0, -line if name.startswith("TOP") else line),
        )
        detections = sv.Detections(xyxy=boxes[members], class_id=found[members])
        scene = annotator.annotate(scene=scene, detections=detections, labels=[texts[i] for i in members])
    return scene


def _place_of(
    i: int, width: float, height: float, boxes: np.ndarray, taken: np.ndarray, image_size: tuple[int, int]
) -> tuple[str, tuple[float, float, float, float]] | None:
    """Where the label of box `i` hides nothing, as supervision names it, and the label's own box; None where nowhere.

    Args:
        width, height: of the label, px.
        taken: boxes [M, 4] that it must not cover: those of all objects, its own first at `i`, and of labels.
    """
    x1, y1, x2, y2 = boxes[i]
    if width * height > 3 * max((x2 - x1) * (y2 - y1), 64):
        return None  # a label far larger than its object says more about the ground that it hides
    spots = {
        "TOP_LEFT": (x1, y1 - height, x1 + width, y1),
        "BOTTOM_LEFT": (x1, y2, x1 + width, y2 + height),
        "TOP_RIGHT": (x2 - width, y1 - height, x2, y1),
        "BOTTOM_RIGHT": (x2 - width, y2, x2, y2 + height),
    }
    others = np.delete(taken, i, axis=0)
    for name in _PLACES:
        left, top, right, bottom = spots[name]
        if left < 0 or top < 0 or right > image_size[0] or bottom > image_size[1]:
            continue
        hit = (others[:, 0] < right) & (others[:, 2] > left) & (others[:, 1] < bottom) & (others[:, 3] > top)
        if not hit.any():
            return name, spots[name]
    return None


def _with_legend(scene: Image.Image, entries: list[tuple[int, str, int]], lines: int | None) -> Image.Image:
    """The picture with a strip below it: of each (label, name, number) the colour and the words.

    Args:
        lines: the strip has so many, and what does not fit is counted at the end; None: as many as it takes.
    """
    size = font_size(max(scene.size))
    font = ImageFont.load_default(size)
    ruler = ImageDraw.Draw(scene)
    gap, row, square = size, round(size * 1.8), size + size // 2

    def width_of(text: str) -> int:
        return square + round(ruler.textlength(text, font=font)) + gap

    spots: list[tuple[int, int, str, str]] = []  # x, line, colour, text
    x, line = gap, 0
    for i, (label, name, count) in enumerate(entries):
        width = width_of(f"{name}: 0000")  # so that what is beside it stands still in a film
        if x > gap and x + width > scene.width:
            x, line = gap, line + 1
        rest = f"and {len(entries) - i} more"
        last = lines is not None and line == lines - 1 and i < len(entries) - 1
        if lines is not None and (line == lines or (last and x > gap and x + width + width_of(rest) > scene.width)):
            spots.append((x, min(line, lines - 1), _TEXT, rest))
            break
        spots.append((x, line, PALETTE[label % len(PALETTE)], f"{name}: {count}"))
        x += width
    spots = spots or [(gap, 0, _TEXT, "nothing found")]
    strip = Image.new("RGB", (scene.width, row * (lines or spots[-1][1] + 1)), _TEXT)
    pen = ImageDraw.Draw(strip)
    for x, line, colour, text in spots:
        middle = line * row + row // 2
        top = middle - size // 2
        pen.rectangle((x, top, x + size - 1, top + size - 1), fill=colour)
        pen.text((x + square, middle), text, font=font, fill="#ffffff", anchor="lm")
    picture = Image.new("RGB", (scene.width, scene.height + strip.height))
    picture.paste(scene, (0, 0))
    picture.paste(strip, (0, scene.height))
    return picture
