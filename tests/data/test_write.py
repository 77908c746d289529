"""Converted data sets read back to the same boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_sets import assert_boxes_on_red, coco, draw_scene, make_image, put, shared, visdrone, yolo
from PIL import Image
from test_orientation import annotate, save_turned

from zoominnet.data import ANY_CLASS, DataError, DataReport, ImageRecord, Split, open_split
from zoominnet.data.__main__ import main
from zoominnet.data.write import write_visdrone, write_yolo


def random_split(folder: Path, sizes: list[tuple[int, int]], names: tuple[str, ...]) -> Split:
    """Images with float32 boxes at random, of any size that a record may hold; the first touch the image's sides."""
    rng = np.random.default_rng(5)
    records = []
    for index, (width, height) in enumerate(sizes, start=1):
        path = make_image(folder / f"sub {index}" / f"bild.{index}.ä.png", width, height)
        size = np.array([width, height], dtype=np.float32)
        corners = (rng.random((40, 2)) * (size - 1)).astype(np.float32)
        sides = np.maximum(np.float32(1), (rng.random((40, 2)) ** 3 * (size - corners)).astype(np.float32))
        ends = np.minimum(size, corners + sides)
        corners = np.minimum(corners, ends - 1)
        boxes = np.concatenate([corners, ends], axis=1)
        boxes[0] = [0, 0, width, height]
        boxes = np.unique(boxes[(boxes[:, 2:] - boxes[:, :2] >= 1).all(1)], axis=0)
        labels = rng.integers(0, len(names), len(boxes))
        regions = np.array([[0, 0, 1, 1], [0, 0, width, height]], dtype=np.float32)
        records.append(ImageRecord(path, index, width, height, boxes, labels, regions, np.array([ANY_CLASS, 1])))
    return Split("train", records, names, tuple(range(1, len(names) + 1)), DataReport(), image_root=folder)


SIZES = [(1, 1), (3, 2), (640, 512), (1360, 765), (4093, 211), (20_000, 17)]


@pytest.mark.parametrize("image_files", ["copy", "link"])
def test_yolo_reads_back_bit_equal(tmp_path: Path, image_files: str) -> None:
    split = random_split(tmp_path / "from", SIZES, ("drone", "größer: 'x'", "no"))
    write_yolo([split], tmp_path / "to", image_files=image_files)
    again = open_split(tmp_path / "to", "train", strict=True, check_images="decode")
    assert again.class_names == split.class_names
    for one, other in zip(split.records, again.records, strict=True):
        assert one.path is not None
        assert other.path is not None
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.path.samefile(other.path) == (image_files == "link")
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_visdrone_reads_back_bit_equal_with_its_regions(tmp_path: Path) -> None:
    split = random_split(tmp_path / "from", SIZES, ("car", "pedestrian", "bus"))
    write_visdrone([split], tmp_path / "to")
    again = open_split(tmp_path / "to", "train", strict=True)
    names = [[s.class_names[label] for r in s.records for label in r.labels] for s in (split, again)]
    assert names[0] == names[1]
    for one, other in zip(split.records, again.records, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.ignored, other.ignored)
        assert other.ignored_labels.tolist() == [ANY_CLASS, 0]  # class 1 of the original is a pedestrian
    with pytest.raises(DataError, match=r"VisDrone's format has no class 'drone'"):
        write_visdrone([random_split(tmp_path / "other", SIZES, ("drone", "car"))], tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("to", ["coco", "yolo", "visdrone"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("made_on", ["upright", "stored"])
def test_turned_images_keep_their_boxes_on_the_object(
    tmp_path: Path, to: str, orientation: int, made_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = save_turned(tmp_path / "from" / "images" / "a.jpg", draw_scene(), orientation, quality=95)
    pixels = draw_scene() if made_on == "upright" or orientation < 5 else stored
    rows, columns = np.nonzero(pixels[..., 0] > pixels[..., 1])
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    annotate(tmp_path / "from" / "instances_val.json", box, width=pixels.shape[1], height=pixels.shape[0])
    output = tmp_path / ("from/instances_again.json" if to == "coco" else "to")
    arguments = ["convert", str(tmp_path / "from" / "instances_val.json"), str(output)]
    assert main([*arguments, *([] if to == "coco" else ["--to", to])]) == 0
    assert "wrote 1 images with 1 boxes of val" in capsys.readouterr().out
    again = open_split(output, "again" if to == "coco" else "val", strict=True)
    assert_boxes_on_red(again, 1)


def test_all_splits_in_one_data_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("VisDrone2019-DET-train", "VisDrone2019-DET-val"):
        visdrone(tmp_path / "from" / name, {"a": "10,20,30,40,1,4,0,0\n0,0,9,9,0,0,0,0", "b": "1,2,3", "c": ""})
    assert main(["convert", str(tmp_path / "from"), str(tmp_path / "to"), "--to", "yolo"]) == 0
    captured = capsys.readouterr()
    assert "left out: 2 ignored regions, which YOLO's format does not have" in captured.out
    assert "1 of them for a label that could not be understood" in captured.out
    for name in ("train", "val"):
        split = open_split(tmp_path / "to", name, strict=True)
        assert [record.boxes.tolist() for record in split.records] == [[[10, 20, 40, 60]], []]
        assert split.class_names[3] == "car"
    assert (
        main(["convert", str(tmp_path / "from"), str(tmp_path / "labels"), "--to", "yolo", "--image-files", "none"])
        == 0
    )
    assert not list((tmp_path / "labels").rglob("*.jpg"))
    assert len(list((tmp_path / "labels").rglob("*.txt"))) == 4


def test_a_split_of_no_known_kind_keeps_its_name(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "default" / "a.jpg")
    annotation = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 30, 40]}
    coco(tmp_path / "annotations" / "instances_default.json", annotations=[annotation])
    assert main(["convert", str(tmp_path), str(tmp_path / "to"), "--to", "yolo"]) == 0
    assert len(open_split(tmp_path / "to", "default", strict=True).records) == 1


def test_a_failing_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    yolo(tmp_path / "from", "train", {"a": "0 0.5 0.5 0.1 0.1"})
    make_image(tmp_path / "from" / "images" / "train" / "a.png")
    split = open_split(tmp_path / "from", "train")
    with pytest.raises(DataError, match=r"a\.png: has the name of .*a\.jpg but for the suffix"):
        write_yolo([split], tmp_path / "to")
    full = tmp_path / "full"
    put(full / "mine.txt", "mine")
    with pytest.raises(DataError, match="full: exists already"):
        write_yolo([split], full)
    with pytest.raises(DataError, match="two splits are called train"):
        write_yolo([split, split], tmp_path / "to")
    with pytest.raises(DataError, match="generated images"):
        write_yolo([Split("val", [ImageRecord(None, 1, 9, 9)], ("a",), (1,), DataReport())], tmp_path / "to")
    assert {entry.name for entry in tmp_path.iterdir()} == {"from", "full"}
    assert [entry.name for entry in full.iterdir()] == ["mine.txt"]


def test_hard_links_to_what_a_symbolic_link_leads_to(tmp_path: Path) -> None:
    yolo(tmp_path / "from", "train", {"a": "0 0.5 0.5 0.1 0.1"})
    image = tmp_path / "from" / "images" / "train" / "a.jpg"
    image.rename(tmp_path / "from" / "real.jpg")
    image.symlink_to("../../real.jpg")
    write_yolo([open_split(tmp_path / "from", "train")], tmp_path / "to", image_files="link")
    assert not (tmp_path / "to" / "images" / "train" / "a.jpg").is_symlink()
    assert len(open_split(tmp_path / "to", "train", check_images="decode", strict=True).records) == 1


def test_a_split_that_a_data_yaml_cannot_name_is_refused(tmp_path: Path) -> None:
    yolo(tmp_path / "from", "train", {"a": ""})
    yolo(tmp_path / "from", "extra", {"b": "0 0.5 0.5 0.1 0.1"})
    splits = [open_split(tmp_path / "from", name) for name in ("train", "extra")]
    with pytest.raises(DataError, match=r"split 'extra' is neither train, val nor test: choose one by --split"):
        write_yolo(splits, tmp_path / "to")


@pytest.mark.shared_data
@pytest.mark.parametrize("to", ["yolo", "visdrone"])
def test_real_images_read_back_bit_equal(tmp_path: Path, to: str) -> None:
    original = open_split(shared("visdrone-extra"), "val")
    (write_yolo if to == "yolo" else write_visdrone)([original], tmp_path / "to")
    again = open_split(tmp_path / "to", "val", strict=True)
    for one, other in zip(original.records, again.records, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_the_json_of_a_stored_image_keeps_its_stored_size(tmp_path: Path) -> None:
    stored = save_turned(tmp_path / "images" / "a.jpg", draw_scene(), 6)
    annotate(tmp_path / "instances_val.json", (1, 2, 30, 40), width=stored.shape[1], height=stored.shape[0])
    assert main(["convert", str(tmp_path / "instances_val.json"), str(tmp_path / "o.json")]) == 0
    (entry,) = json.loads((tmp_path / "o.json").read_text())["images"]
    assert (entry["width"], entry["height"]) == Image.open(tmp_path / "images" / "a.jpg").size
