"""Validation images in TensorBoard: what is on them, and that a training does not notice."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoominnet
from zoominnet.data import DataReport, ImageRecord, Split
from zoominnet.data.drawing import colour_of
from zoominnet.engine.log import NoLog, RunLog
from zoominnet.engine.pictures import PICTURES, SIDE_PX, TITLE_PX, truth_and_found, validation_pictures
from zoominnet.evaluation import Detections

BOX = np.array([[100, 40, 200, 120]], dtype=np.float32)
NONE = np.zeros((0, 4), dtype=np.float32)


def black(count: int, boxes: dict[int, np.ndarray]) -> Split:
    """Black images of 960 x 480 px."""
    records = [
        ImageRecord(None, i, 960, 480, boxes.get(i, NONE), np.full(len(boxes.get(i, NONE)), 1, dtype=np.int64))
        for i in range(count)
    ]
    return Split(
        "val",
        records,
        ("a", "b", "c"),
        (1, 2, 3),
        DataReport(),
        render=lambda record: torch.zeros(3, 480, 960, dtype=torch.uint8),
    )


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores), np.array(labels, dtype=np.int64))


def bounds(picture: Image.Image, label: int) -> tuple[int, int, int, int]:
    """The smallest box that holds all pixels of a label's colour."""
    colour = tuple(int(colour_of(label)[i : i + 2], 16) for i in (1, 3, 5))
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_truth_is_left_and_the_best_detections_right() -> None:
    """At half size. Of three detections of one box the best is drawn, not a worse one, nor one that is next to nothing."""
    split = black(1, {0: BOX})
    picture = truth_and_found(
        split, 0, found([[0, 0, 9, 9], [300, 200, 400, 300], [8, 8, 9, 9]], [0.8, 0.9, 0.01], [0, 2, 0])
    )
    half = picture.crop((0, 0, SIDE_PX, TITLE_PX + 240))
    assert bounds(half, 1) == (49, TITLE_PX + 19, 101, TITLE_PX + 61)
    half = picture.crop((SIDE_PX + 2, 0, 2 * SIDE_PX + 2, TITLE_PX + 240))
    assert bounds(half, 2) == (149, TITLE_PX + 99, 201, TITLE_PX + 151)
    colours = {tuple(each) for each in np.asarray(picture).reshape(-1, 3).tolist()}
    assert tuple(int(colour_of(0)[i : i + 2], 16) for i in (1, 3, 5)) not in colours


def test_a_detection_that_is_next_to_nothing_is_not_drawn() -> None:
    picture = truth_and_found(black(1, {0: BOX}), 0, found([[300, 200, 400, 300]], [0.04], [2]))
    with pytest.raises(ValueError, match="zero-size"):
        bounds(picture, 2)


def test_images_with_objects_at_equal_distances() -> None:
    split = black(21, dict.fromkeys(range(1, 21), BOX))
    pictures = validation_pictures(split, [found([], [], [])] * 21)
    assert list(pictures) == [f"image {i}" for i in (1, 6, 11, 16)]
    assert len(pictures) == PICTURES
    assert list(validation_pictures(black(5, {3: BOX}), [found([], [], [])] * 5)) == ["image 3"]
    assert validation_pictures(black(2, {}), [found([], [], [])] * 2) == {}


def read_back(folder: Path) -> dict[str, list[tuple[int, Image.Image]]]:
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(each.step, Image.open(io.BytesIO(each.encoded_image_string))) for each in board.Images(tag)]
        for tag in board.Tags()["images"]
    }


def test_tensorboard_reads_them(tmp_path: Path) -> None:
    log = RunLog(tmp_path, pytest.fail)
    for step in (5, 9):
        log.write_pictures("val", step, lambda step=step: {"image 3": Image.new("RGB", (40, 30), (step * 20, 0, 0))})
    log.close()
    images = read_back(tmp_path)
    assert list(images) == ["val/image 3"]
    assert [step for step, _ in images["val/image 3"]] == [5, 9]
    for step, picture in images["val/image 3"]:
        assert picture.size == (40, 30)
        assert np.abs(np.asarray(picture).astype(int) - (step * 20, 0, 0)).max() <= 3  # JPEG


def test_no_work_where_tensorboard_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, pytest.fail)
    monkeypatch.setattr(log, "_board", None)
    for each in (log, NoLog()):
        each.write_pictures("val", 1, lambda: pytest.fail("was made"))


def test_pictures_that_cannot_be_made_are_reported_once_and_scalars_go_on(tmp_path: Path) -> None:
    warnings: list[str] = []
    log = RunLog(tmp_path, warnings.append)

    def fail() -> dict[str, Image.Image]:
        raise OSError("the file is gone")

    for step in (1, 2):
        log.write_pictures("val", step, fail)
        log.write("val", step, {"AP": 0.5})
    log.close()
    assert warnings == [
        f"{tmp_path}: the pictures of validation images cannot be written (the file is gone); training goes on without"
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [each.step for each in board.Scalars("val/AP")] == [1, 2]


@pytest.mark.slow
def test_a_training_does_not_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, optimiser and metrics are the same to the last bit with pictures and without; after each validation there are some."""
    options: dict[str, Any] = {
        "synthetic_images": (8, 3),
        "image_size": 64,
        "batch_size": 4,
        "workers": 0,
        "backbone": "resnet18",
        "weights": "none",
        "student": "snet",
        "distill": False,
        "channels": 16,
        "epochs": 2,
        "log_every": 1,
        "device": "cpu",
        "amp": "off",
        "norm_eval": False,
        "frozen_stages": 0,
    }
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(RunLog, "write_pictures", lambda *arguments: None)
        zoominnet.train(zoominnet.TrainConfig(**options, out=tmp_path / name), console=Console(quiet=True))
    files = ("model.safetensors", "optimizer.safetensors")
    for step in ("step-00000002", "step-00000004"):
        for file in files:
            with_, without = (tmp_path / name / "student" / "checkpoints" / step / file for name in ("with", "without"))
            if file == "model.safetensors":  # its metadata hold the run's folder
                one, other = load_file(with_), load_file(without)
                assert one.keys() == other.keys()
                assert all(torch.equal(one[key], other[key]) for key in one)
            else:
                assert with_.read_bytes() == without.read_bytes()
    metrics = [(tmp_path / name / "student" / "metrics.jsonl").read_text() for name in ("with", "without")]
    assert metrics[0] == metrics[1]
    images = read_back(tmp_path / "with" / "student")
    assert images
    assert all([step for step, _ in pictures] == [2, 4] for pictures in images.values())
    assert read_back(tmp_path / "without" / "student") == {}
