"""`model.predict`: every form of an image, and boxes in the pixels of the original, however it is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finder import (
    BLUE_LABEL,
    CATEGORIES,
    NAMES,
    RED_LABEL,
    Box,
    Finder,
    assert_boxes,
    info_of,
    save,
    save_tiny,
    scene,
    tiny_model,
)
from orientations import STORED
from PIL import Image, ImageOps

import zoominnet
from zoominnet.data import ImageError, open_split
from zoominnet.engine.inference import predict_split
from zoominnet.errors import UserError
from zoominnet.models.postprocess import PostProcess
from zoominnet.prediction import Detector, Result

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
BOX: Box = (60, 40, 140, 80)
SMALL = scene(400, 300, [BOX], [(200, 150, 240, 250)])


def test_a_result_has_boxes_scores_labels_and_names() -> None:
    result = Finder().predict(SMALL)
    assert isinstance(result, Result)
    assert len(result) == 2
    assert_boxes(result.boxes, [BOX, (200, 150, 240, 250)], 0.5)
    assert result.labels.tolist() == [RED_LABEL, BLUE_LABEL]
    assert result.names == ["car", "bus"]
    assert (result.width, result.height, result.path) == (400, 300, None)
    assert result.boxes.dtype == result.scores.dtype == torch.float32
    assert result.labels.dtype == torch.int64
    assert repr(result) == "<Result: 1 car, 1 bus, 400x300 px>"
    np.testing.assert_array_equal(result.image.permute(1, 2, 0).numpy(), SMALL)


FORMS: dict[str, Any] = {
    "numpy": lambda pixels: pixels,
    "numpy, not contiguous": lambda pixels: np.asfortranarray(pixels)[::-1][::-1],
    "uint8 tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "float tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
    "double tensor with a gradient": lambda pixels: (
        torch.from_numpy(pixels).permute(2, 0, 1) / 255.0
    ).requires_grad_(),
    "PIL": Image.fromarray,
    "PIL with alpha": lambda pixels: Image.fromarray(pixels).convert("RGBA"),
    "PIL, palette": lambda pixels: Image.fromarray(pixels).quantize(8),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same(form: str) -> None:
    result = Finder().predict(FORMS[form](SMALL))
    np.testing.assert_array_equal(result.image.permute(1, 2, 0).numpy(), SMALL)
    assert_boxes(result.boxes, [BOX, (200, 150, 240, 250)], 0.5)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_files_and_str_and_path(tmp_path: Path, suffix: str) -> None:
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    path = save(SMALL, tmp_path / f"street.{suffix}", **options)
    for source in (path, str(path)):
        result = Finder().predict(source)
        assert_boxes(result.boxes, [BOX, (200, 150, 240, 250)], 1)
        assert result.path == path
        assert repr(result) == f"<Result: 1 car, 1 bus in street.{suffix}, 400x300 px>"
        assert result.image.shape == (3, 300, 400)


def test_grey_images() -> None:
    for mode in ("L", "LA", "1", "I;16"):
        image = Image.new("L", (64, 48), 90).convert(mode) if mode != "I;16" else Image.new("I;16", (64, 48), 90 << 8)
        result = Finder().predict(image)
        assert len(result) == 0
        assert result.image.shape == (3, 48, 64)
        assert (result.image == (90 if mode != "1" else result.image[0, 0, 0])).all() or mode == "1"


def test_a_list_gives_a_list_in_order_by_batches() -> None:
    images = [scene(100 + 10 * i, 80, [(10 + i, 10, 40 + i, 40)]) for i in range(5)]
    finder = Finder(128)
    for given in (images, tuple(images)):
        finder.batches.clear()
        results = finder.predict(given, batch_size=2)
        assert isinstance(results, list)
        assert [result.width for result in results] == [100, 110, 120, 130, 140]
        for i, result in enumerate(results):
            assert_boxes(result.boxes, [(10 + i, 10, 40 + i, 40)], 0.5)
        assert finder.batches == [2, 2, 1]
    assert finder.predict([]) == []


def test_batches_fill_over_the_slices_of_several_images() -> None:
    images = [scene(300, 200, [(100, 90, 130, 120)]), scene(90, 90, [(10, 10, 40, 40)]), scene(200, 128, [])]
    finder = Finder(128)
    results = finder.predict(images, slice=True, batch_size=4)
    assert finder.batches == [4, 4, 3]  # 6 slices and the whole, the whole alone, 2 slices and the whole
    assert_boxes(results[0].boxes, [(100, 90, 130, 120)], 1)
    assert_boxes(results[1].boxes, [(10, 10, 40, 40)], 1)
    assert len(results[2]) == 0


REFUSED: dict[str, tuple[Any, str]] = {
    "address": ("https://example.org/a.jpg", "https://example.org/a.jpg: addresses are not opened; download the file"),
    "absent": ("nowhere/a.jpg", "nowhere/a.jpg: no such image file"),
    "folder": (".", r"\.: is a folder; for all that is in it: python -m zoominnet.predict MODEL \."),
    "float array": (np.zeros((9, 9, 3)), r"an array of float64 \[9, 9, 3\] is not an image: give uint8"),
    "channels first": (np.zeros((3, 9, 9), np.uint8), r"an array of uint8 \[3, 9, 9\] is not an image"),
    "grey array": (np.zeros((9, 9), np.uint8), r"an array of uint8 \[9, 9\] is not an image"),
    "batch": (torch.zeros(1, 3, 9, 9), r"a tensor of float32 \[1, 3, 9, 9\] is not an image.*list\(batch\)"),
    "integers": (torch.zeros(3, 9, 9, dtype=torch.int64), r"a tensor of int64 \[3, 9, 9\] is not an image"),
    "0 to 255": (
        torch.full((3, 9, 9), 255.0),
        "a float tensor with values from 255 to 255 is not an image.*divide by 255",
    ),
    "NaN": (torch.full((3, 9, 9), torch.nan), "a float tensor with values from nan to nan"),
    "one pixel": (np.zeros((1, 1, 3), np.uint8), "1x1 px is too small to look for objects in; both sides must be 8 px"),
    "no pixel": (torch.zeros(3, 0, 9), "9x0 px is too small"),
    "number": (7, "int is not an image: give a path, a PIL image"),
    "floating PIL": (Image.new("F", (9, 9)), "a PIL image of mode 'F' has no defined brightness"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_in_one_line(kind: str) -> None:
    given, line = REFUSED[kind]
    with pytest.raises(UserError, match=line) as raised:
        Finder(64).predict(given)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = save(SMALL, tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"cut\.jpg: cannot be decoded"):
        Finder(64).predict(path)
    with pytest.raises(ImageError, match=r"cut\.jpg: cannot be decoded"):
        Finder(64).predict(Image.open(path))


def test_options_that_cannot_be_used_are_refused() -> None:
    finder = Finder(64)
    for options, line in (
        ({"conf": 1.0}, r"--conf: 1\.0 is not in \[0, 1\)"),
        ({"iou": 1.5}, r"--iou: 1\.5 is not in \[0, 1\]"),
        ({"max_det": 0}, "--max-det: 0 is not at least 1"),
        ({"overlap": 1.0}, r"--overlap: 1\.0 is not in \[0, 1\)"),
        ({"slice_size": 8}, "--slice-size: 8 is not at least 32"),
        ({"batch_size": 0}, "--batch-size: 0 is not at least 1"),
        ({"classes": ["boat"]}, "--classes: 'boat' is none of the model's classes, which are pedestrian, car, bus"),
        ({"classes": [3]}, "--classes: '3' is none of the model's classes"),
        ({"classes": []}, "--classes: names no class"),
        ({"classes": "car"}, r"--classes: 'car' is one string; give a list of names, \['car'\]"),
    ):
        with pytest.raises(UserError, match=line):
            finder.predict(SMALL, **options)  # type: ignore[call-overload]


def test_classes_by_name_and_label() -> None:
    finder = Finder()
    assert finder.predict(SMALL, classes=["bus"]).names == ["bus"]
    assert finder.predict(SMALL, classes=[RED_LABEL]).names == ["car"]
    assert finder.predict(SMALL, classes=["1", "bus"]).names == ["car", "bus"]
    assert finder.predict(SMALL, classes=["pedestrian"]).names == []


def test_classes_are_left_out_before_any_limit() -> None:
    """As many of a class are found whatever else there is: here of the least certain one."""
    model = tiny_model(64)
    detector = Detector(model, info_of(model))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    every = detector.predict(image, conf=0.0, iou=1.0, max_det=10**6)
    last = int(every.labels[-1])
    alone = detector.predict(image, conf=0.0, iou=1.0, max_det=5, classes=[last])
    assert set(alone.labels.tolist()) == {last}
    assert len(alone) == 5
    torch.testing.assert_close(alone.scores, every.scores[every.labels == last][:5])


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_the_same_as_evaluation_finds(tmp_path: Path, resize: str) -> None:
    """`predict_split`, whose images come by the dataset and its loader, on files of several sizes."""
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(((100, 80), (64, 64), (50, 120))):
        save(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), tmp_path / "images" / f"{i}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{i}.txt").write_text("1,1,9,9,1,4,0,0\n")
    split = open_split(tmp_path, tmp_path.name)
    model = tiny_model(64)
    detector = Detector(model, info_of(model, resize))
    model.postprocess = PostProcess(score_threshold=0.0, max_detections=40)
    wanted, _ = predict_split(model, split, resize=resize)  # type: ignore[arg-type]
    results = detector.predict([record.path for record in split.records], conf=0.0, max_det=40, batch_size=3)
    for result, other in zip(results, wanted, strict=True):
        boxes = other.boxes.clip(0, np.array([result.width, result.height] * 2))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        assert inside.any()
        np.testing.assert_allclose(result.boxes.numpy(), boxes[inside], atol=1e-3)
        np.testing.assert_allclose(result.scores.numpy(), other.scores[inside], rtol=1e-5)
        np.testing.assert_array_equal(result.labels.numpy(), other.labels[inside])


def test_boxes_end_with_the_image() -> None:
    """Boxes that reach into the margin of a letterbox end at the image, and those within it are none."""

    class Outside(Finder):
        def detect(self, images: torch.Tensor, *_: object) -> list[dict[str, torch.Tensor]]:
            boxes = torch.tensor([[-9.0, 10, 40, 90], [0, 0, 128, 128], [10, 2, 30, 20]])
            return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([0, 1, 2])}]

    result = Outside(128, "letterbox").predict(scene(400, 200, []))  # rows 32 to 96 of the input
    assert result.boxes.tolist() == [[0, 0, 125, 181.25], [0, 0, 400, 200]]


def test_it_leaves_the_model_as_it_was() -> None:
    finder = Finder(64)
    finder.train()
    finder.predict(SMALL)
    assert finder.training
    assert finder.model.training
    with pytest.raises(UserError):
        finder.predict([SMALL, "absent.jpg"])
    assert finder.model.training


def test_load_gives_a_detector(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "model.safetensors")
    model = zoominnet.load(path, score_threshold=0.0, max_detections=3)
    assert isinstance(model, Detector)
    assert (model.class_names, model.category_ids, model.num_classes) == (NAMES, CATEGORIES, 3)
    assert (model.image_size, model.resize, model.path, str(model.device)) == (64, "squash", path, "cpu")
    assert not model.training
    [found] = model([torch.rand(3, 64, 64)])
    assert {name: tuple(x.shape) for name, x in found.items()} == {"boxes": (3, 4), "scores": (3,), "labels": (3,)}
    result = model.predict(SMALL, conf=0.0, max_det=7)
    assert len(result) == 7
    assert model.predict(SMALL, conf=0.9999).names == []
    for absent in (tmp_path / "absent", "https://example.org/model"):
        with pytest.raises(UserError, match="no such file or folder"):
            zoominnet.load(absent)


# Where boxes land: a photograph of 4000 x 3000 px.

WIDTH, HEIGHT = 4000, 3000
REDS: list[Box] = [(200, 150, 300, 260), (1000, 1500, 1080, 1560), (3800, 2850, 3990, 2990), (380, 900, 440, 1000)]
BLUES: list[Box] = [(2000, 1400, 2900, 2100), (3400, 300, 3460, 420)]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return scene(WIDTH, HEIGHT, REDS, BLUES)


# Of a whole image, a px of the input is 4000 / 512 = 8 px; of a slice, one.
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "whole": ({}, 4),
    "slices": ({"slice": True, "batch_size": 8}, 1),
    "large slices": ({"slice": True, "slice_size": 1024, "overlap": 0.3}, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("way", WAYS)
def test_boxes_of_a_photograph_are_in_its_own_pixels(photo: np.ndarray, way: str, resize: str) -> None:
    options, within = WAYS[way]
    result = Finder(512, resize).predict(photo, **options)
    for label, boxes in ((RED_LABEL, REDS), (BLUE_LABEL, BLUES)):
        assert_boxes(result.boxes[result.labels == label], boxes, within)


@pytest.mark.slow
@pytest.mark.parametrize("orientation", STORED)
def test_a_camera_held_otherwise_gives_the_same_boxes(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(photo)
    if (method := STORED[orientation]) is not None:
        image = image.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    image.save(path, exif=exif, quality=95, subsampling=0)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(Image.open(path))).shape, photo.shape)
    finder = Finder(512)
    for given in (path, Image.open(path)):
        result = finder.predict(given, slice=True, slice_size=1024)
        assert (result.width, result.height) == (WIDTH, HEIGHT)
        assert_boxes(result.boxes[result.labels == RED_LABEL], REDS, 3)
        assert_boxes(result.boxes[result.labels == BLUE_LABEL], BLUES, 4)  # the large one by the whole image


@pytest.mark.slow
def test_turned_and_cropped_by_hand_the_boxes_turn_and_move_along(photo: np.ndarray) -> None:
    finder = Finder(512)
    turned = finder.predict(np.rot90(photo), slice=True)  # anticlockwise: (x, y) comes to lie at (y, WIDTH - x)
    x1, y1, x2, y2 = turned.boxes.unbind(1)
    back = torch.stack((WIDTH - y2, x1, WIDTH - y1, x2), dim=1)
    assert_boxes(back[turned.labels == RED_LABEL], REDS, 1)
    assert_boxes(back[turned.labels == BLUE_LABEL], BLUES, 1)

    cropped = finder.predict(photo[120:1620, 150:1950], slice=True)
    boxes = cropped.boxes + torch.tensor([150, 120, 150, 120])
    assert_boxes(boxes[cropped.labels == RED_LABEL], [REDS[0], REDS[1], REDS[3]], 1)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["exif_coco/images/a.jpg", "exif_yolo/images/val/a.jpg"])
def test_the_cases_with_an_orientation(name: str) -> None:
    path = SHARED / "cases" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    result = Finder().predict(path)
    assert (result.width, result.height) == (400, 300)
    assert_boxes(result.boxes, [BOX], 1)
