"""What several models find in the same synthetic scenes, side by side in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.data import ImageRecord, SyntheticScenes
from zoominnet.engine.checkpoint import load_model
from zoominnet.kernels import akdp_mask
from zoominnet.models import ARCHITECTURES
from zoominnet.models.anchors import Anchors
from zoominnet.prediction.detector import Detector
from zoominnet.prediction.drawing import PALETTE
from zoominnet.prediction.result import Result

TILE_PX = 384
MARGIN_PX, TITLE_PX = 6, 22
MIN_OBJECTS = 8
"""Of a scene that is shown."""
CONF = 0.05
"""Of each model as many boxes are drawn as there are objects, its best, above this score: one threshold for all would say
more of how certain a model is than of what it finds, and one that learnt a teacher's probabilities is less certain."""
_BACKGROUND, _TEXT = "#ffffff", "#101014"


def compare_on_scenes(
    models: Mapping[str, str | Path],
    scene: TrainConfig,
    *,
    seed: int,
    split: str,
    count: int,
    mask_of: str | None = None,
) -> Image.Image:
    """A row a scene: the ground truth, what each model finds, and the key positions of a student.

    Args:
        models: by title, what :func:`zoominnet.load` takes.
        scene: whose synthetic scenes, at the teacher's size.
        seed, split: of the scenes.
        count: of scenes, the first that have `MIN_OBJECTS` objects.
        mask_of: the architecture whose finest level's mask is shown; None: no mask.
    """
    options = {"seed": seed, "split": split, "zoom": scene.synthetic_zoom, "classes": scene.synthetic_classes}
    scenes = SyntheticScenes(1000, size=scene.teacher_size, **options)  # type: ignore[arg-type]
    shown = SyntheticScenes(1000, size=TILE_PX, **options)  # type: ignore[arg-type]
    detectors = {title: Detector(*load_model(Path(path))) for title, path in models.items()}
    titles = ["ground truth", *(f"{title}, {each.image_size} px" for title, each in detectors.items())]
    rows = []
    for record in islice((each for each in scenes if len(each.boxes) >= MIN_OBJECTS), count):
        picture = shown.render(record)
        truth = torch.from_numpy(record.boxes)
        found = [
            Result(
                truth,
                torch.ones(len(truth)),
                torch.from_numpy(record.labels),
                record.width,
                record.height,
                scenes.class_names,
                tuple(range(len(scenes.class_names))),
            ),
            *(
                detector.predict(scenes.render(record), conf=CONF, max_det=len(truth))
                for detector in detectors.values()
            ),
        ]
        rows.append([drawn(result, picture) for result in found])
        if mask_of is not None:
            rows[-1].append(key_positions(record, picture, mask_of, scene))
    if mask_of is not None:
        titles.append(f"key positions, finest level of {mask_of}")
    return grid(titles, rows, scenes.class_names)


def drawn(result: Result, picture: Tensor) -> Image.Image:
    """A result's boxes on another rendering of its scene, uint8 [3, side, side]."""
    side = picture.shape[-1]
    boxes = result.boxes * (side / result.width)
    larger = Result(
        boxes, result.scores, result.labels, side, side, result.class_names, result.category_ids, _pixels=picture
    )
    return larger.plot(labels="off", legend=False)


def key_positions(record: ImageRecord, picture: Tensor, student: str, scene: TrainConfig) -> Image.Image:
    """The finest level's AKDP mask of a student's anchors, lit up on the picture."""
    finest, *_ = Anchors(ARCHITECTURES[student])(scene.image_size, scene.image_size)
    boxes = torch.from_numpy(record.boxes) * (scene.image_size / record.width)
    mask = akdp_mask([finest], [boxes])[0][0].float()
    side = picture.shape[-1]
    lit = torch.nn.functional.interpolate(mask[None, None], (side, side))[0, 0]
    pixels = picture.float() * (0.35 + 0.65 * lit)
    return Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())


def grid(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], class_names: Sequence[str]) -> Image.Image:
    """Pictures of one size in rows, a title over each column, the classes' colours below."""
    side = rows[0][0].width
    step = side + MARGIN_PX
    bottom = TITLE_PX + len(rows) * step
    canvas = Image.new("RGB", (len(titles) * step - MARGIN_PX, bottom + TITLE_PX), _TEXT)
    canvas.paste(_BACKGROUND, (0, 0, canvas.width, bottom))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.text((column * step + side // 2, TITLE_PX // 2), title, fill=_TEXT, font=font, anchor="mm")
        for row, tiles in enumerate(rows):
            canvas.paste(tiles[column], (column * step, TITLE_PX + row * step))
    x, middle = MARGIN_PX, bottom + TITLE_PX // 2
    for name, colour in zip(class_names, PALETTE, strict=False):
        pen.rectangle((x, middle - 5, x + 10, middle + 5), fill=colour)
        pen.text((x + 16, middle), name, fill=_BACKGROUND, font=font, anchor="lm")
        x += 36 + round(pen.textlength(name, font=font))
    return canvas
