"""What several models find and see in the same images, side by side in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.data import ImageRecord, ResizeGeometry, Split, SyntheticScenes
from zoominnet.data.drawing import PALETTE, pixels_of
from zoominnet.data.transforms import resize_image
from zoominnet.distill.masks import MASKS
from zoominnet.distill.options import DistillOptions
from zoominnet.engine.checkpoint import load_model
from zoominnet.kernels import AnchorGrid
from zoominnet.models import ARCHITECTURES, RetinaNet
from zoominnet.models.anchors import Anchors
from zoominnet.prediction.detector import Detector
from zoominnet.prediction.result import Result

TILE_PX = 384
MARGIN_PX, TITLE_PX = 6, 22
TWENTIETH = 0.05
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
        truth, pixels = ground_truth(record, scenes.class_names), scenes.render(record)
        found = [each.predict(pixels, conf=CONF, max_det=len(truth.boxes)) for each in detectors.values()]
        rows.append([drawn(result, picture) for result in (truth, *found)])
        if mask_of is not None:
            finest, *_ = Anchors(ARCHITECTURES[mask_of])(scene.image_size, scene.image_size)
            rows[-1].append(key_positions(record, picture, finest, scene.image_size))
    if mask_of is not None:
        titles.append(f"key positions, finest level of {mask_of}")
    return grid(titles, rows, scenes.class_names)


def compare_on_split(
    models: Mapping[str, str | Path], split: Split, *, count: int, mask_of: str, image_size: int
) -> dict[str, Image.Image]:
    """Three pictures with a row an image of a split, the first `count` that have `MIN_OBJECTS` objects.

    Args:
        models: by title, what :func:`zoominnet.load` takes.
        split: of the classes that the models know.
        count: of images.
        mask_of: the student whose masks are shown.
        image_size: of its input, px.

    Returns:
        "detections": the ground truth, and what each model finds (as the paper's Figure 11); "masks": the AKDP mask of each
        level (Figure 5); "activations": of each model's finest map the mean size of its channels, from its own smallest, dark, to
        its own largest, bright (Figure 9).
    """
    detectors = {title: Detector(*load_model(Path(path))) for title, path in models.items()}
    sized = [f"{title}, {each.image_size} px" for title, each in detectors.items()]
    levels = Anchors(ARCHITECTURES[mask_of])(image_size, image_size)
    rows: dict[str, list[list[Image.Image]]] = {"detections": [], "masks": [], "activations": []}
    for record in islice((each for each in split.records if len(each.boxes) >= MIN_OBJECTS), count):
        pixels = pixels_of(record, split)
        picture = resize_image(pixels, ResizeGeometry.fit(record.width, record.height, TILE_PX, "squash"))
        truth = ground_truth(record, split.class_names)
        found = [each.predict(pixels, conf=CONF, max_det=len(truth.boxes)) for each in detectors.values()]
        rows["detections"].append([drawn(result, picture) for result in (truth, *found)])
        plain = Image.fromarray(picture.permute(1, 2, 0).numpy())
        rows["masks"].append([plain, *(key_positions(record, picture, each, image_size) for each in levels)])
        rows["activations"].append([plain, *(activation(each, pixels) for each in detectors.values())])
    named = [f"P{level}" for level in ARCHITECTURES[mask_of].levels]
    return {
        "detections": grid(["ground truth", *sized], rows["detections"], split.class_names),
        "masks": grid(["image", *(f"key positions, {each} of {mask_of}" for each in named)], rows["masks"]),
        "activations": grid(["image", *sized], rows["activations"]),
    }


def ground_truth(record: ImageRecord, class_names: tuple[str, ...]) -> Result:
    """The boxes of a record in the form of what a model finds."""
    boxes, labels = torch.from_numpy(record.boxes), torch.from_numpy(record.labels)
    ids = tuple(range(len(class_names)))
    return Result(boxes, torch.ones(len(boxes)), labels, record.width, record.height, class_names, ids)


def drawn(result: Result, picture: Tensor) -> Image.Image:
    """A result's boxes on another rendering of its image, uint8 [3, side, side]."""
    side = picture.shape[-1]
    boxes = result.boxes * torch.tensor([side / result.width, side / result.height]).repeat(2)
    larger = Result(
        boxes, result.scores, result.labels, side, side, result.class_names, result.category_ids, _pixels=picture
    )
    return larger.plot(labels="off", legend=False)


def key_positions(record: ImageRecord, picture: Tensor, level: AnchorGrid, image_size: int) -> Image.Image:
    """The AKDP mask of a level of a student's anchors, whose input has the side `image_size` px, lit up on the picture."""
    (mask,) = masks_of(record, [level], ResizeGeometry.fit(record.width, record.height, image_size, "squash"))
    side = picture.shape[-1]
    lit = torch.nn.functional.interpolate(mask[None, None].float(), (side, side))[0, 0]
    pixels = picture.float() * (0.35 + 0.65 * lit)
    return Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())


def masks_of(
    record: ImageRecord, levels: Sequence[AnchorGrid], geometry: ResizeGeometry, options: DistillOptions | None = None
) -> list[Tensor]:
    """The key positions of an image: bool [H, W] a level.

    Args:
        record: the image's boxes.
        levels: a student's anchors.
        geometry: how the image becomes the student's input.
        options: of the distillation; None: the paper's.
    """
    options = options or DistillOptions()
    boxes = geometry.to_output(torch.from_numpy(record.boxes))
    return [mask[0] for mask in MASKS[options.boxes](levels, [boxes], options, "auto")]


def activation(detector: Detector, pixels: Tensor) -> Image.Image:
    """:func:`activation_map` in colours, dark to bright."""
    return coloured(activation_map(detector, pixels)).resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)


def coloured(values: Tensor) -> Image.Image:
    """A picture of a map [H, W] of 0..1, a pixel a cell."""
    return ImageOps.colorize(Image.fromarray((255 * values).byte().numpy()), "#000010", "#fffbe0", mid="#d04020")


@torch.no_grad()
def activation_map(detector: Detector, pixels: Tensor) -> Tensor:
    """The finest map of a model for an image, uint8 [3, height, width]: the mean of its channels' absolute values, [H, W], its
    own range brought to 0..1. The least and the greatest twentieth of the cells are 0 and 1: where no mask has it learn,
    a student's map may be many times as large as elsewhere."""
    size = detector.image_size
    geometry = ResizeGeometry.fit(pixels.shape[-1], pixels.shape[-2], size, detector.info.resize)
    model = detector.model
    assert isinstance(model, RetinaNet)
    image = resize_image(pixels, geometry)[None].to(model.mean.device).float() / 255
    values = model.features(image)[0][0].float().abs().mean(dim=0).cpu()
    low, high = values.quantile(torch.tensor([TWENTIETH, 1 - TWENTIETH]))
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def grid(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], class_names: Sequence[str] = ()) -> Image.Image:
    """Pictures of one size in rows, a title over each column, the classes' colours below where there are any."""
    side = rows[0][0].width
    step = side + MARGIN_PX
    bottom = TITLE_PX + len(rows) * step
    canvas = Image.new("RGB", (len(titles) * step - MARGIN_PX, bottom + TITLE_PX * bool(class_names)), _TEXT)
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
