"""Labels that have a box in them: polygons, corners, masks, fields behind the box, ids and numbers of other types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import HEIGHT, WIDTH, coco, make_image, put, visdrone, yolo
from pycocotools import mask as coco_mask

from zoominnet.data import DataError, open_split
from zoominnet.data.records import DOUBTFUL_IMAGE

BOX = [10, 20, 40, 60]  # px of a 100 x 80 image
CENTER = "0.25 0.5 0.3 0.5"
CORNERS = "0.1 0.25 0.4 0.25 0.4 0.75 0.1 0.75"
POLYGON, CORNERS_NOTE = "box around a polygon", "box around four corners"
CONFIDENCE, TRACK = "confidence behind the box left unread", "track id behind the box left unread"
BOTH = "confidence and track id behind the box left unread"


@pytest.mark.parametrize(
    ("lines", "notes"),
    [
        (f"0 {CENTER}", []),
        (f"0 {CENTER} 0.93", [CONFIDENCE]),
        (f"0 {CENTER} 1", [CONFIDENCE]),
        (f"0 {CENTER} 17", [TRACK]),
        (f"0 {CENTER} 0.93 17", [BOTH]),
        (f"0 {CENTER} 0.93 17\n1 0.5 0.5 0.1 0.1 0.5 1", [BOTH, BOTH]),  # a track's id of 1, told by the other line
        (f"0 {CORNERS}", [CORNERS_NOTE]),
        (f"0 {CORNERS} 0.5", [CONFIDENCE, CORNERS_NOTE]),
        (f"0 {CORNERS} 0.5 12", [BOTH, CORNERS_NOTE]),
        ("0 0.1 0.25 0.4 0.5 0.25 0.75", [POLYGON]),
        ("0 0.1 0.25 0.4 0.5 0.25 0.75 0.9", [CONFIDENCE, POLYGON]),
        ("0 0.2 0.25 0.4 0.3 0.4 0.7 0.2 0.75 0.1 0.5", [POLYGON]),
    ],
)
def test_yolo_lines_with_a_box_in_them(tmp_path: Path, lines: str, notes: list[str]) -> None:
    yolo(tmp_path, "val", {"a": lines})
    put(tmp_path / "data.yaml", "names: [drone, bird]")
    split = open_split(tmp_path, "val", strict=True)
    np.testing.assert_allclose(split.records[0].boxes[0], BOX, atol=1e-5)  # float32
    assert split.records[0].labels[0] == 0
    assert split.report.counts == {note: notes.count(note) for note in notes}


def test_a_polygon_partly_outside_is_clipped_and_one_without_area_is_no_object(tmp_path: Path) -> None:
    yolo(tmp_path, "val", {"a": "0 -0.05 0.25 0.4 0.5 0.25 0.75\n0 0.1 0.1 0.2 0.1 0.3 0.1"})
    put(tmp_path / "data.yaml", "names: [drone]")
    split = open_split(tmp_path, "val")
    np.testing.assert_allclose(split.records[0].boxes, [[0, 20, 40, 60]], atol=1e-5)
    assert split.report.of_kind("no object") == {"side of zero": 1}


@pytest.mark.parametrize(
    "line",
    [
        "0 0.15 0.13 0.35 0.13 0.35",  # a polygon cut off: its box would leave the image
        "0 0.1 0.25 0.4 1.3 0.25 0.75",  # a visibility or px among the points
        "0 25 40 30 40",
        "0 0.25 0.5 0.3 0.5 -3",
    ],
)
def test_what_is_neither_box_nor_polygon_leaves_its_image_out(tmp_path: Path, line: str) -> None:
    yolo(tmp_path, "val", {"a": f"0 {CENTER}\n{line}", "b": f"0 {CENTER}"})
    put(tmp_path / "data.yaml", "names: [drone]")
    split = open_split(tmp_path, "val")
    assert [record.path.stem for record in split.records if record.path] == ["b"]
    assert split.report.of_kind("image") == {DOUBTFUL_IMAGE: 1}


@pytest.mark.parametrize("behind", ["", " 0.9", " 0.9 3"])
def test_poses_by_the_shape_that_the_data_yaml_gives(tmp_path: Path, behind: str) -> None:
    yolo(tmp_path, "val", {"a": f"0 {CENTER} 0.2 0.3 2 0.9 0.9 1{behind}", "b": f"0 {CENTER} 0.2 0.3 2", "c": ""})
    put(tmp_path / "data.yaml", "names: [person]\nkpt_shape: [2, 3]")
    split = open_split(tmp_path, "val")
    np.testing.assert_allclose(split.records[0].boxes, [BOX], atol=1e-5)
    assert split.report.counts["keypoints behind the box left unread"] == 1
    assert split.report.counts["not the keypoints that kpt_shape says"] == 1
    assert [record.path.stem for record in split.records if record.path] == ["a", "c"]


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    masks = [np.zeros((HEIGHT, WIDTH), dtype=np.uint8) for _ in range(12)]
    for mask in masks:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, HEIGHT - 5), rng.integers(0, WIDTH - 5)
            mask[y : y + rng.integers(2, 30), x : x + rng.integers(2, 30)] = 1
    masks[0][:], masks[1][-1, -3:] = 1, 1
    return masks


def plain_counts(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F").astype(int)
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat, prepend=0)), [flat.size]])).tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_the_box_around_a_mask(tmp_path: Path, compressed: bool) -> None:
    """Against the mask itself, and as crowds as well as objects."""
    make_image(tmp_path / "images" / "a.jpg")
    wanted, annotations = [], []
    for index, mask in enumerate(random_masks()):
        rows, columns = np.nonzero(mask)
        wanted.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        rle: dict[str, Any] = {"size": [HEIGHT, WIDTH], "counts": plain_counts(mask)}
        if compressed:
            rle["counts"] = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        annotations.append({"image_id": 7, "category_id": 5, "segmentation": rle, "iscrowd": index % 2})
    coco(tmp_path / "instances_val.json", annotations=annotations)
    split = open_split(tmp_path, "val", strict=True)
    np.testing.assert_array_equal(split.records[0].boxes, wanted[::2])
    np.testing.assert_array_equal(split.records[0].ignored, wanted[1::2])
    assert split.report.counts == {"box around a mask (RLE)": 12}


@pytest.mark.parametrize(
    ("annotation", "note"),
    [
        ({"segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]}, POLYGON),
        ({"segmentation": [[10, 20, 20, 20, 20, 40], [30, 50, 40, 50, 40, 60]]}, POLYGON),  # two parts of one object
        ({"segmentation": [10, 20, 40, 20, 40, 60, 10, 60]}, POLYGON),
        ({"segmentation": [[10, 20], [40, 20], [40, 60], [10, 60]]}, POLYGON),
        ({"segmentation": [["10", "20", "40", "20", "40", "60"]], "bbox": []}, POLYGON),
        ({"segmentation": [[10, 20, 40, 20, 40, 60]], "bbox": None}, POLYGON),
        ({"segmentation": [[10, 20, 40, 20, 40, 60]], "bbox": [0, 0, 0, 0]}, POLYGON),
        ({"segmentation": [[1, 2, 3, 2, 3, 4]], "bbox": [10, 20, 30, 40]}, None),
        ({"bbox": ["10", "20.0", 30, "4e1"]}, "number written as a string"),
    ],
)
def test_coco_annotations_with_a_box_in_them(tmp_path: Path, annotation: dict[str, Any], note: str | None) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    coco(tmp_path / "instances_val.json", annotations=[{"image_id": 7, "category_id": 5, **annotation}])
    split = open_split(tmp_path, "val", strict=True)
    np.testing.assert_array_equal(split.records[0].boxes, [BOX])
    assert split.report.counts == ({note: 1} if note else {})


@pytest.mark.parametrize("image_id", [7, 7.0, "7", "007", "7.0", " 7 "])
@pytest.mark.parametrize("written", [7, 7.0, "0007"])
def test_ids_of_other_types(tmp_path: Path, image_id: object, written: object) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    annotation = {"image_id": image_id, "category_id": "5", "bbox": [10, 20, 30, 40], "iscrowd": "0"}
    entry = {"id": written, "file_name": "a.jpg", "width": "100", "height": 80.0}
    categories = [{"id": "5", "name": "car"}, {"id": 0.0, "name": "person"}]
    coco(tmp_path / "instances_val.json", [entry], [annotation], categories=categories)
    split = open_split(tmp_path, "val", strict=True)
    (record,) = split.records
    assert (record.image_id, split.category_ids, split.class_names) == (7, (0, 5), ("person", "car"))
    assert record.labels.tolist() == [1]
    assert set(split.report.counts) == {"id written as a float or a string"}


def test_ids_that_are_no_numbers(tmp_path: Path) -> None:
    for name in "ab":
        make_image(tmp_path / "images" / f"{name}.jpg")
    images = [{"id": "uuid-b", "file_name": "b.jpg"}, {"id": "uuid-a", "file_name": "a.jpg"}]
    annotations = [
        {"image_id": "uuid-b", "category_id": "van", "bbox": [10, 20, 30, 40]},
        {"image_id": "a.jpg", "category_id": "car", "bbox": [1, 2, 30, 40]},  # the file's name in place of its id
    ]
    categories = [{"id": "van", "name": "van"}, {"id": "car", "name": "car"}]
    coco(tmp_path / "instances_val.json", images, annotations, categories=categories)
    split = open_split(tmp_path, "val", strict=True)
    assert split.class_names == ("car", "van")
    found = {record.path.name: (record.image_id, record.labels.tolist()) for record in split.records if record.path}
    assert found == {"a.jpg": (2, [0]), "b.jpg": (1, [1])}
    assert split.report.counts["image named by its file, not by its id"] == 1


def test_annotations_of_no_image_at_all_are_refused(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    coco(tmp_path / "instances_val.json", annotations=[{"image_id": 8, "category_id": 5, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(DataError, match="none of its 1 annotations belongs to one of its images"):
        open_split(tmp_path, "val")


@pytest.mark.parametrize(("flag", "crowd"), [("1", True), (1.0, True), ("true", True), ("false", False), (None, False)])
def test_crowds_stay_ignored_regions(tmp_path: Path, flag: object, crowd: bool) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    annotation = {"image_id": 7, "category_id": 5, "bbox": [10, 20, 30, 40], "iscrowd": flag}
    coco(tmp_path / "instances_val.json", annotations=[annotation])
    (record,) = open_split(tmp_path, "val").records
    assert (len(record.ignored), len(record.boxes)) == ((1, 0) if crowd else (0, 1))


def test_an_image_stays_where_what_is_left_out_is_no_object(tmp_path: Path) -> None:
    lines = ["10,20,0,40,1,4,0,0", "200,20,30,40,1,4,0,0", "10,20,30,40,1,4,0,0", "10,20,30,40,1,4,0,0"]
    visdrone(tmp_path / "train", {"a": "\n".join(lines), "b": "10,20,30,40,1,4,0,0\n10,20,30"})
    split = open_split(tmp_path, "train")
    assert [(record.image_id, len(record.boxes)) for record in split.records] == [(1, 1)]
    assert split.report.of_kind("no object") == {"side of zero": 1, "outside the image": 1, "duplicate": 1}
    assert split.report.of_kind("label") == {"not 8 fields": 1}
    assert split.report.places[DOUBTFUL_IMAGE] == [str(tmp_path / "train" / "images" / "b.jpg")]
    kept = open_split(tmp_path, "train", keep_doubtful=True)
    assert [(record.image_id, len(record.boxes)) for record in kept.records] == [(1, 1), (2, 1)]
    assert DOUBTFUL_IMAGE not in kept.report.counts
