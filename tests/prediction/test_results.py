"""The forms of a result: hand-worked lines, pycocotools, supervision, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finder import GREY, NAMES, scene
from PIL import Image

from zoominnet.data import VISDRONE_CLASSES
from zoominnet.errors import UserError
from zoominnet.prediction import Result
from zoominnet.prediction.drawing import PALETTE

EXTRA = "which is not installed: pip install 'zoominnet[predict]'"


def result_of(
    rows: list[tuple[tuple[float, float, float, float], float, int]],
    pixels: np.ndarray,
    names: tuple[str, ...] = NAMES,
    ids: tuple[int, ...] = (1, 4, 9),
) -> Result:
    return Result(
        boxes=torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        scores=torch.tensor([row[1] for row in rows]),
        labels=torch.tensor([row[2] for row in rows], dtype=torch.int64),
        width=pixels.shape[1],
        height=pixels.shape[0],
        class_names=names,
        category_ids=ids,
        _pixels=torch.from_numpy(pixels).permute(2, 0, 1),
    )


PLAIN = scene(200, 100, [])
TWO = [((20.0, 10.0, 60.0, 35.0), 0.75, 1), ((100.0, 50.0, 140.0, 90.0), 0.5, 2)]
RESULT, EMPTY = result_of(TWO, PLAIN), result_of([], PLAIN)


def test_coco() -> None:
    assert RESULT.to_coco(7) == [
        {"image_id": 7, "category_id": 4, "bbox": [20, 10, 40, 25], "score": 0.75},
        {"image_id": 7, "category_id": 9, "bbox": [100, 50, 40, 40], "score": 0.5},
    ]
    assert EMPTY.to_coco(7) == []
    json.dumps(RESULT.to_coco(7))


def test_yolo() -> None:
    assert RESULT.to_yolo() == (
        "1 0.20000000 0.22500000 0.20000000 0.25000000 0.750000\n2 0.60000000 0.70000000 0.20000000 0.40000000 0.500000\n"
    )
    assert EMPTY.to_yolo() == ""


def test_visdrone_s_numbers_are_of_the_names() -> None:
    """Whatever numbers the training data had."""
    names = ("car", "pedestrian", "motor")
    result = result_of(TWO, PLAIN, names, (0, 1, 2))
    assert result.to_visdrone() == (
        "20.00,10.00,40.00,25.00,0.750000,1,-1,-1\n100.00,50.00,40.00,40.00,0.500000,10,-1,-1\n"
    )
    assert result_of([], PLAIN, VISDRONE_CLASSES, tuple(range(1, 11))).to_visdrone() == ""
    with pytest.raises(UserError, match=r"VisDrone's format has no class 'boat'.*--save coco yolo"):
        result_of(TWO, PLAIN, ("car", "boat", "bus")).to_visdrone()


def test_supervision() -> None:
    detections = RESULT.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, [row[0] for row in TWO])
    np.testing.assert_array_equal(detections.confidence, [0.75, 0.5])
    np.testing.assert_array_equal(detections.class_id, [1, 2])
    assert detections.data["class_name"].tolist() == ["car", "bus"]
    assert [name for *_, name in ((d, "") for d in detections)] == ["", ""]  # it can be walked
    empty = EMPTY.to_supervision()
    assert len(empty) == 0
    assert empty.xyxy.shape == (0, 4)
    merged = type(detections).merge([detections, empty])
    assert len(merged) == 2


def labels_drawn(rows: list[tuple[tuple[float, float, float, float], float, int]]) -> np.ndarray:
    """bool [H, W]: what labels change in a picture of 200 x 160 px."""
    result = result_of(rows, scene(200, 160, []))
    return (np.asarray(result.plot(legend=False)) != np.asarray(result.plot(labels="off", legend=False))).any(axis=2)


def test_a_label_goes_where_no_object_is() -> None:
    large = ((20.0, 50.0, 110.0, 110.0), 0.9, 1)
    above, below = ((22.0, 40.0, 108.0, 47.0), 0.8, 2), ((22.0, 113.0, 108.0, 120.0), 0.8, 2)
    assert labels_drawn([large])[:50].any()
    changed = labels_drawn([large, above])
    assert not changed[40:47, 22:108].any()
    assert changed[110:130].any()  # below instead
    changed = labels_drawn([large, above, below])
    for x1, y1, x2, y2 in (above[0], below[0]):
        assert not changed[int(y1) : int(y2), int(x1) : int(x2)].any()


def colour_of(label: int) -> tuple[int, ...]:
    return tuple(int(PALETTE[label][i : i + 2], 16) for i in (1, 3, 5))


def test_lines_lie_around_the_boxes_and_leave_the_objects_alone() -> None:
    picture = np.asarray(RESULT.plot(labels="off", legend=False))
    assert picture.shape == PLAIN.shape
    for (x1, y1, x2, y2), _, label in TWO:
        left, top, right, bottom = int(x1), int(y1), int(x2), int(y2)
        assert (picture[top:bottom, left:right] == GREY).all()
        around = picture[top - 1 : bottom + 1, left - 1 : right + 1].copy()
        around[1:-1, 1:-1] = colour_of(label)
        assert (around == colour_of(label)).all()
    changed = (picture != GREY).any(axis=2).sum()
    assert changed == sum(2 * (x2 - x1 + 1) + 2 * (y2 - y1 + 1) for (x1, y1, x2, y2), *_ in TWO)


def test_labels_are_off_where_they_would_hide_an_object() -> None:
    crowd = [
        ((10.0 + 12 * (i % 12), 30.0 + 12 * (i // 12), 20.0 + 12 * (i % 12), 40.0 + 12 * (i // 12)), 0.9, 1)
        for i in range(60)
    ]
    alone = ((150.0, 10.0, 199.0, 90.0), 0.8, 2)
    image = scene(200, 110, [])
    lines = np.asarray(result_of(crowd, image).plot(labels="off", legend=False))
    np.testing.assert_array_equal(np.asarray(result_of(crowd, image).plot(legend=False)), lines)
    every = np.asarray(result_of(crowd, image).plot(labels="on", legend=False))
    assert (every != lines).any()
    # That of a large object is on, and covers no other box.
    with_one = [alone, ((10.0, 30.0, 20.0, 40.0), 0.5, 1)]
    on = np.asarray(result_of(with_one, image).plot(legend=False))
    off = np.asarray(result_of(with_one, image).plot(labels="off", legend=False))
    assert (on != off).any()
    assert (on[30:40, 10:20] == off[30:40, 10:20]).all()


def test_the_legend_stands_below_the_image() -> None:
    bare, with_legend = np.asarray(RESULT.plot(legend=False)), np.asarray(RESULT.plot())
    assert with_legend.shape[0] > bare.shape[0]
    np.testing.assert_array_equal(with_legend[: bare.shape[0]], bare)
    strip = with_legend[bare.shape[0] :].reshape(-1, 3)
    for label, there in ((0, False), (1, True), (2, True)):
        assert (strip == colour_of(label)).all(axis=1).any() == there


def test_nothing_found_is_drawn_too(tmp_path: Path) -> None:
    assert (np.asarray(EMPTY.plot())[:100] == GREY).all()
    EMPTY.plot(tmp_path / "empty.png", legend=False)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "empty.png")), PLAIN)


@pytest.mark.parametrize("size", [(8, 8), (9, 400), (400, 9)])
def test_boxes_at_the_border_and_odd_images(size: tuple[int, int]) -> None:
    width, height = size
    rows = [((0.0, 0.0, float(width), float(height)), 0.9, 0), ((0.3, 0.3, 0.9, 0.8), 0.8, 1)]
    for labels in ("auto", "on", "off"):
        picture = result_of(rows, scene(width, height, [])).plot(labels=labels)  # type: ignore[arg-type]
        assert picture.width == width


def test_large_images_have_thicker_lines() -> None:
    result = result_of([((400.0, 400.0, 900.0, 900.0), 0.9, 0)], scene(4000, 1200, []))
    row = (np.asarray(result.plot(legend=False, labels="off"))[600] == colour_of(0)).all(axis=1)
    assert np.flatnonzero(row).tolist() == [397, 398, 399, 900, 901, 902]


@pytest.mark.parametrize("name", ["out.jpg", "out.PNG", "out.webp"])
def test_plot_writes_a_picture_and_replaces_it(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        picture = RESULT.plot(tmp_path / name)
        assert Image.open(tmp_path / name).size == picture.size


def test_plot_refuses_names_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.gif: pictures are written as \.jpg, \.jpeg, \.png, \.webp"):
        RESULT.plot(tmp_path / "out.gif")
    with pytest.raises(UserError, match=r"there is no folder .*; make it"):
        RESULT.plot(tmp_path / "absent" / "out.jpg")


@pytest.mark.parametrize(("call", "purpose"), [("plot", "drawing"), ("to_supervision", "to_supervision")])
def test_without_the_extra_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch, call: str, purpose: str
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError) as raised:
        getattr(RESULT, call)()
    assert str(raised.value) == f"{purpose} needs the package supervision, {EXTRA}"
    assert len(RESULT.to_coco(1)) == 2  # the rest works without it
    assert RESULT.to_yolo()
