"""Small data sets on disk for the tests of the readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from zoominnet.data import Batch, DataReport, DetectionDataset, ImageRecord, Split

WIDTH, HEIGHT = 100, 80
SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SHARED_DATA = SHARED / "data"

SCENE_SIZE = (400, 300)
SCENE_BOX = (60, 40, 140, 80)
"""The red rectangle of `draw_scene`, (x1, y1, x2, y2) px, as in ../shared/cases."""
_GRAY, _RED = (128, 128, 128), (220, 30, 30)


def shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


def make_image(path: Path, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 60)).save(path, **options)
    return path


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def visdrone(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    """A VisDrone folder of 100 x 80 images by the contents of their txt files; None leaves the file out."""
    for name, content in files.items():
        make_image(folder / "images" / f"{name}.jpg")
        if content is not None:
            put(folder / "annotations" / f"{name}.txt", content)
    return folder


def coco(path: Path, images: list[Any] | None = None, annotations: list[Any] | None = None, **keys: Any) -> Path:
    document: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "a.jpg"}] if images is None else images,
        "annotations": annotations or [],
        "categories": [{"id": 5, "name": "car"}, {"id": 0, "name": "person"}],
    }
    return put(path, json.dumps({**document, **keys}))


def yolo(root: Path, split: str, files: dict[str, str], *, split_first: bool = False) -> Path:
    for name, content in files.items():
        images, labels = (
            (f"{split}/images", f"{split}/labels") if split_first else (f"images/{split}", f"labels/{split}")
        )
        make_image(root / images / f"{name}.jpg")
        put(root / labels / f"{name}.txt", content)
    return root


def assert_same_records(first: Split, second: Split) -> None:
    assert len(first.records) == len(second.records)
    for one, other in zip(first.records, second.records, strict=True):
        assert (one.image_id, one.width, one.height) == (other.image_id, other.width, other.height)
        assert one.path is not None
        assert other.path is not None
        assert one.path.resolve() == other.path.resolve()
        for name in ("boxes", "labels", "ignored", "ignored_labels"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b, err_msg=name)


def draw_scene(box: tuple[int, int, int, int] = SCENE_BOX, size: tuple[int, int] = SCENE_SIZE) -> np.ndarray:
    """uint8[height, width, 3]: grey with one red rectangle."""
    pixels = np.full((size[1], size[0], 3), _GRAY, dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = _RED
    return pixels


def save_scene(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_scene()).save(path, quality=95)
    return path


def assert_boxes_on_red(split: Split, boxes: int | None = None) -> None:
    """In each training sample, squashed and letterboxed, mirrored and not: the pixel in the middle of each box is red,
    and so are those just inside its corners; those just outside are grey.

    Args:
        boxes: how many there must be in all.
    """
    for resize in ("squash", "letterbox"):
        for flip, epochs in ((False, 1), (True, 4)):
            dataset = DetectionDataset(split, 400, flip=flip, seed=0, resize=resize)
            for key in ((epoch, index) for epoch in range(epochs) for index in range(len(dataset))):
                sample = dataset[key]
                for x1, y1, x2, y2 in sample.target["boxes"].tolist():
                    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
                    inside = [(x1 + 4, y1 + 4), (x2 - 4, y2 - 4)]
                    outside = [(x1 - 4, middle[1]), (x2 + 4, middle[1]), (middle[0], y1 - 4), (middle[0], y2 + 4)]
                    for points, red in (([middle, *inside], True), (outside, False)):
                        for x, y in points:
                            r, g, _ = sample.image[:, round(y), round(x)].tolist()
                            assert (r - g > 100) if red else (abs(r - g) < 40), (x, y, r, g, red)
    if boxes is not None:
        assert sum(len(record.boxes) for record in split.records) == boxes


def _boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def noise_split(folder: Path, count: int = 6, width: int = 40, height: int = 20) -> Split:
    """`count` noise images as PNG with two boxes each, the last without objects."""
    folder.mkdir(exist_ok=True)
    records = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        record = ImageRecord(path, image_id=100 + index, width=width, height=height)
        if index < count - 1:
            record = replace(
                record,
                boxes=_boxes((4, 2, 12, 10), (0, 0, width, height)),
                labels=np.array([3, index % 10], dtype=np.int64),
                ignored=_boxes((20, 0, 40, 5)),
                ignored_labels=np.array([-1], dtype=np.int64),
            )
        records.append(record)
    return Split("train", records, tuple(f"class {i}" for i in range(10)), tuple(range(1, 11)), DataReport())


def assert_same_batch(one: Batch, other: Batch) -> None:
    """Bit for bit."""
    assert torch.equal(one.images, other.images)
    assert len(one.targets) == len(other.targets)
    for a, b in zip(one.targets, other.targets, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            left, right = a[name], b[name]  # type: ignore[literal-required]
            assert torch.equal(left, right) if isinstance(left, Tensor) else left == right
