"""A detector whose findings are known: it looks for red and blue rectangles, and is right about them to a part of a px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from zoominnet.data import VISDRONE_CLASSES
from zoominnet.engine.checkpoint.model_file import ModelInfo, save_model
from zoominnet.models import RetinaNet, build_model
from zoominnet.models.postprocess import PostProcess
from zoominnet.prediction import Detector

NAMES, CATEGORIES = ("pedestrian", "car", "bus"), (1, 4, 9)
GREY, RED, BLUE = (128, 128, 128), (220, 30, 30), (30, 30, 220)
RED_LABEL, BLUE_LABEL = 1, 2


def tiny_model(image_size: int, classes: int = len(NAMES)) -> RetinaNet:
    torch.manual_seed(0)
    return build_model("snet", "resnet18", num_classes=classes, image_size=image_size, channels=8).eval()


def info_of(model: RetinaNet, resize: str = "squash", names: tuple[str, ...] = NAMES) -> ModelInfo:
    return ModelInfo.of(model, names, CATEGORIES[: len(names)], {"resize": resize}, None)


def save_tiny(path: Path, image_size: int = 64, names: tuple[str, ...] = NAMES, resize: str = "squash") -> Path:
    """An untrained model's file."""
    model = tiny_model(image_size, len(names))
    ids = CATEGORIES if len(names) == len(CATEGORIES) else tuple(range(1, len(names) + 1))
    save_model(path, model.state_dict(), ModelInfo.of(model, names, ids, {"resize": resize}, None))
    return path


def save_visdrone(path: Path) -> Path:
    return save_tiny(path, names=VISDRONE_CLASSES)


class Finder(Detector):
    """Finds each rectangle of red or blue on grey, as far as the input shows it, with a score of 0.9."""

    def __init__(self, image_size: int = 512, resize: str = "squash") -> None:
        model = tiny_model(image_size)
        super().__init__(model, info_of(model, resize))
        self.batches: list[int] = []

    def detect(self, images: Tensor, process: PostProcess, labels: list[int] | None) -> list[dict[str, Tensor]]:
        self.batches.append(len(images))
        return [self._of_image(image * 255, process, labels) for image in images]

    def _of_image(self, image: Tensor, process: PostProcess, wanted: list[int] | None) -> dict[str, Tensor]:
        found: list[tuple[list[float], float, int]] = []
        for label, strong, weak in ((RED_LABEL, 0, 2), (BLUE_LABEL, 2, 0)):
            cover = ((image[strong] - image[weak]) / (RED[0] - RED[2])).clamp(0, 1).numpy()
            cover[cover < 0.15] = 0  # the margin of a letterbox is a little red
            pieces, _ = ndimage.label(cover > 0)
            for rows, columns in ndimage.find_objects(pieces):
                part = cover[rows, columns]
                if part.max() < 0.3:
                    continue
                box = []
                for axis, start in ((0, columns.start), (1, rows.start)):
                    profile = part.max(axis=axis)
                    centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum() + start
                    box.append((centre - profile.sum() / 2, centre + profile.sum() / 2))
                found.append(([box[0][0], box[1][0], box[0][1], box[1][1]], 0.9, label))
        kept = [each for each in found if each[1] > process.score_threshold and (wanted is None or each[2] in wanted)]
        kept = kept[: process.max_detections]
        return {
            "boxes": torch.tensor([each[0] for each in kept], dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor([each[1] for each in kept]),
            "labels": torch.tensor([each[2] for each in kept], dtype=torch.int64),
        }


Box = tuple[int, int, int, int]


def scene(width: int, height: int, reds: list[Box], blues: list[Box] | None = None) -> np.ndarray:
    """uint8 [height, width, 3]."""
    pixels = np.full((height, width, 3), GREY, dtype=np.uint8)
    for colour, boxes in ((RED, reds), (BLUE, blues or [])):
        for x1, y1, x2, y2 in boxes:
            pixels[y1:y2, x1:x2] = colour
    return pixels


def save(pixels: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def assert_boxes(found: Tensor, wanted: list[Box], within: float) -> None:
    """The same boxes in any order, each side within so many px."""
    assert len(found) == len(wanted), (found.tolist(), wanted)
    order = sorted(found.tolist(), key=lambda box: (round(box[0] / 8), box[1]))
    for box, other in zip(order, sorted(wanted, key=lambda box: (round(box[0] / 8), box[1])), strict=True):
        np.testing.assert_allclose(box, other, atol=within)
