"""Photos with boxes and maps over them, as SVG elements: each photo is in the page once, whatever lies over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from zoominnet.data import ResizeGeometry, ResizeMode
from zoominnet.data.drawing import PALETTE
from zoominnet.data.transforms import resize_image
from zoominnet.evaluation.errors import CORRECT, DETECTION_OUTCOMES, FOUND, IGNORED, LEFT_OUT, MISSED
from zoominnet.prediction.comparison import coloured
from zoominnet.reporting.markup import escape, jpeg_url, png_url
from zoominnet.reporting.material import Material, Measurement

PHOTO_PX, INPUT_PX = 960, 384
"""The longer side of a photo that boxes lie over, and the side of a model's input that maps lie over."""
DIMMED = 170
"""Of 255, how dark it is where a mask is not."""


def photo(material: Material, index: int) -> str:
    """The element that shows an image, in its own px."""
    record, name = material.records[index], f"photo-{index}"
    if name not in material.defined:
        picture = _picture(material.pixels(index))
        picture.thumbnail((PHOTO_PX, PHOTO_PX))
        material.defined[name] = _image(name, jpeg_url(picture), record.width, record.height)
    return f'<use href="#{name}"/>'


def model_input(material: Material, index: int, resize: ResizeMode) -> str:
    """The element that shows an image as a model is fed it, on a square of side 1."""
    name = f"input-{index}-{resize}"
    if name not in material.defined:
        record = material.records[index]
        geometry = ResizeGeometry.fit(record.width, record.height, INPUT_PX, resize)
        url = jpeg_url(_picture(resize_image(material.pixels(index), geometry)))
        material.defined[name] = _image(name, url, 1, 1)
    return f'<use href="#{name}"/>'


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _image(name: str, url: str, width: float, height: float) -> str:
    return f'<image id="{name}" width="{width}" height="{height}" preserveAspectRatio="none" href="{url}"/>'


def tile(inside: str, width: float, height: float, caption: str, *, run: int | None = None, label: str = "") -> str:
    """A figure of the size of its contents.

    Args:
        inside: SVG elements.
        width, height: of their coordinates.
        caption: HTML below.
        run: whose it is; None: of no one run.
        label: what the picture shows, for who cannot see it.
    """
    kind = "tile" if run is None else f"tile run-{run}"
    return (
        f'<figure class="{kind}"><svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{inside}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def rectangle(box: Sequence[float], kind: str, title: str, colour: str | None = None) -> str:
    """A box with what it says when it is pointed at.

    Args:
        box: (x1, y1, x2, y2).
        kind: its class in page.css.
        title: what it says.
        colour: of its line; None: that of its class.
    """
    x1, y1, x2, y2 = box
    style = f' style="stroke:{colour}"' if colour else ""
    return (
        f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"{style}>'
        f"<title>{escape(title)}</title></rect>"
    )


def truth_over(material: Material, index: int) -> str:
    """An image with its boxes in the colours of their classes, ignored regions hatched."""
    record = material.records[index]
    regions = [rectangle(box, "region", "ignored region") for box in record.ignored.tolist()]
    boxes = [
        rectangle(box, "box", material.class_names[label], PALETTE[label % len(PALETTE)])
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
    ]
    return "".join([photo(material, index), *regions, *boxes])


def outcomes_over(material: Material, index: int, measurement: Measurement) -> str:
    """An image with a model's detections in the colours of what they are, and the boxes that it does not find dashed."""
    record, found, errors = material.records[index], measurement.certain[index], measurement.errors[index]
    names = material.class_names
    missed = [
        rectangle(box, "box missed", f"{names[label]}: not found")
        for box, label, outcome in zip(record.boxes.tolist(), record.labels.tolist(), errors.boxes, strict=True)
        if outcome not in (FOUND, LEFT_OUT)
    ]
    boxes = []
    for i in np.argsort(found.scores):  # the most certain last, over the others
        outcome, about = int(errors.detections[i]), int(errors.about[i])
        kind = DETECTION_OUTCOMES[outcome]
        of = f", a {names[int(record.labels[about])]}" if about >= 0 and outcome != CORRECT else ""
        boxes.append(
            rectangle(
                found.boxes[i].tolist(),
                f"box {kind}",
                f"{names[int(found.labels[i])]} {found.scores[i]:.2f}: {kind}{of}",
            )
        )
    return "".join([photo(material, index), *missed, *boxes])


def outcome_words(measurement: Measurement, index: int) -> str:
    """An image's counts in words."""
    errors = measurement.errors[index]
    right, counted = int((errors.detections == CORRECT).sum()), int((errors.detections != IGNORED).sum())
    boxes = int((errors.boxes != LEFT_OUT).sum())
    missed = int((errors.boxes == MISSED).sum())
    return f"F1 {errors.f1:.2f}: {right} of {boxes} found, {missed} missed, {counted - right} wrong"


def mask_over(material: Material, index: int, resize: ResizeMode, mask: Tensor) -> str:
    """An image as a model is fed it, dark where a mask, bool [H, W], is not."""
    alpha = Image.fromarray(np.where(mask.numpy(), 0, DIMMED).astype(np.uint8))
    picture = Image.merge("LA", (Image.new("L", alpha.size, 0), alpha))
    return model_input(material, index, resize) + _cells(png_url(picture))


def map_of(values: Tensor) -> str:
    """A map [H, W] of 0..1 in colours, a square a cell, on a square of side 1."""
    return _cells(png_url(coloured(values)))


def _cells(url: str) -> str:
    return f'<image class="cells" width="1" height="1" preserveAspectRatio="none" href="{url}"/>'


def class_legend(names: Sequence[str]) -> str:
    """The colours of the classes."""
    entries = (
        f'<li><span class="swatch" style="background:{PALETTE[i % len(PALETTE)]}"></span>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(entries)}<li><span class="swatch region"></span>ignored region</li></ul>'


def outcome_legend() -> str:
    """The colours of what detections are."""
    kinds = [*DETECTION_OUTCOMES, "missed"]
    entries = (f'<li><span class="swatch box {kind}"></span>{escape(_WORDS.get(kind, kind))}</li>' for kind in kinds)
    return f'<ul class="legend">{"".join(entries)}</ul>'


_WORDS = {
    "class": "wrong class",
    "location": "wrong location",
    "both": "both wrong",
    "ignored": "in an ignored region",
    "missed": "box that is not found",
}
