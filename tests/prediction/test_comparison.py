"""What several models find and see in the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoominnet
from zoominnet.data import DataReport, ImageRecord, Split
from zoominnet.kernels import akdp_mask
from zoominnet.models import ARCHITECTURES
from zoominnet.models.anchors import Anchors
from zoominnet.prediction.comparison import MARGIN_PX, TILE_PX, TITLE_PX, activation, compare_on_split, key_positions

NAMES = ("person", "cycle", "car", "truck or bus")


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Two images of 192 x 96 px: one without objects, one with ten."""
    rng = np.random.default_rng(0)
    records = []
    for i, count in enumerate((0, 10)):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (96, 192, 3), dtype=np.uint8)).save(path)
        corners = rng.uniform((0, 0), (170, 80), (count, 2))
        boxes = np.concatenate((corners, corners + 12), axis=1).astype(np.float32).reshape(-1, 4)
        none = np.zeros((0, 4), dtype=np.float32)
        labels = np.arange(count, dtype=np.int64) % 4
        records.append(ImageRecord(path, i, 192, 96, boxes, labels, none, np.zeros(0, dtype=np.int64)))
    return Split("val", records, NAMES, (1, 2, 3, 4), DataReport())


def tile(picture: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = column * (TILE_PX + MARGIN_PX), TITLE_PX + row * (TILE_PX + MARGIN_PX)
    return np.asarray(picture.crop((left, top, left + TILE_PX, top + TILE_PX)))


def test_three_pictures_of_the_images_with_objects(split: Split) -> None:
    models = {"teacher": "demo-teacher", "student": "demo-fa"}
    pictures = compare_on_split(models, split, count=3, mask_of="fa", image_size=128)
    columns = {"detections": 3, "masks": 6, "activations": 3}
    for kind, picture in pictures.items():
        assert picture.width == columns[kind] * (TILE_PX + MARGIN_PX) - MARGIN_PX
        legend = TITLE_PX if kind == "detections" else 0
        assert picture.height == TITLE_PX + TILE_PX + MARGIN_PX + legend  # the image without objects is not shown
    assert np.array_equal(tile(pictures["masks"], 0, 0), tile(pictures["activations"], 0, 0))
    for level, grid in enumerate(Anchors(ARCHITECTURES["fa"])(128, 128)):
        boxes = torch.from_numpy(split.records[1].boxes) * torch.tensor([128 / 192, 128 / 96]).repeat(2)
        mask = akdp_mask([grid], [boxes])[0][0].numpy()
        lit = tile(pictures["masks"], 0, level + 1) == tile(pictures["masks"], 0, 0)
        cells = lit.all(axis=-1).reshape(*(part for side in mask.shape for part in (side, TILE_PX // side)))
        assert np.array_equal(cells.mean(axis=(1, 3)) > 0.5, mask)


def test_boxes_lie_where_the_objects_are(split: Split) -> None:
    """The ground truth of a wide image, drawn on a square picture: only near the boxes do pixels differ from the image's."""
    pictures = compare_on_split({}, split, count=1, mask_of="fa", image_size=128)
    changed = (tile(pictures["detections"], 0, 0) != tile(pictures["masks"], 0, 0)).any(axis=-1)
    near = np.zeros_like(changed)
    for box in split.records[1].boxes * np.float32([2, 4, 2, 4]):
        x1, y1, x2, y2 = box.round().astype(int)
        assert changed[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3].any()
        near[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4] = True
    assert not (changed & ~near).any()


def test_an_activation_is_brightest_where_the_map_is_largest() -> None:
    detector = zoominnet.load("demo-fa")
    pixels = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = detector.model.features(pixels[None].float() / 255)[0][0].abs().mean(dim=0)
    shown = np.asarray(activation(detector, pixels), dtype=np.int64).sum(axis=-1)
    cell = TILE_PX // values.shape[-1]
    by_cell = torch.from_numpy(shown[cell // 2 :: cell, cell // 2 :: cell])
    # The extreme twentieths are one colour, the others in their order.
    order = values.flatten().argsort()
    darkest, between, brightest = by_cell.flatten()[order].split([51, 922, 51])
    assert (darkest == by_cell.min()).all()
    assert (brightest == by_cell.max()).all()
    assert (between.diff() >= 0).all()
    assert len(between.unique()) > 100


def test_no_box_no_key_position() -> None:
    none = np.zeros((0, 4), dtype=np.float32)
    record = ImageRecord(None, 0, 64, 64, none, np.zeros(0, dtype=np.int64), none, np.zeros(0, dtype=np.int64))
    level = Anchors(ARCHITECTURES["fa"])(64, 64)[0]
    picture = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    assert np.asarray(key_positions(record, picture, level, 64)).max() == int(200 * 0.35)
