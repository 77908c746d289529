"""Folders as labelling tools and their users write them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_sets import HEIGHT, WIDTH, coco, make_image, put, yolo

from zoominnet.data import DataError, find_splits, open_split

LINE = {"a": "0 0.5 0.5 0.1 0.1"}
MOVED = "path of another machine, found below the data folder"
BOXES = [{"image_id": 7, "category_id": 5, "bbox": [1, 2, 30, 40]}]


def only_path(path: Path, split: str, **options: str) -> Path:
    """The file of the only image, which has one box."""
    (record,) = open_split(path, split, **options).records
    assert len(record.boxes) == 1
    assert record.path is not None
    return record.path


# COCO


def roboflow(folder: Path, image: str, category: int) -> None:
    make_image(folder / image)
    annotations = [{"image_id": 0, "category_id": category, "bbox": [1, 2, 30, 40]}]
    categories = [
        {"id": 0, "name": "vehicle", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "vehicle"},
        {"id": 2, "name": "van", "supercategory": "vehicle"},
    ]
    coco(folder / "_annotations.coco.json", [{"id": 0, "file_name": image}], annotations, categories=categories)


def test_roboflow_s_root_category(tmp_path: Path) -> None:
    """Dropped where no split has a box of it, kept in all where one has, so that all have the same classes."""
    roboflow(tmp_path / "train", "a_jpg.rf.1.jpg", 1)
    roboflow(tmp_path / "valid", "b_jpg.rf.2.jpg", 2)
    make_image(tmp_path / "images" / "a_jpg.rf.1.jpg")  # another picture of the same name
    assert set(find_splits(tmp_path)) == {"train", "valid"}
    for name in ("train", "val"):
        split = open_split(tmp_path, name, strict=True)
        assert (split.class_names, split.category_ids) == (("car", "van"), (1, 2))
        assert split.report.counts == {"root category left out: no box has it in any split": 1}
    assert only_path(tmp_path, "train") == tmp_path / "train" / "a_jpg.rf.1.jpg"
    roboflow(tmp_path / "test", "c_jpg.rf.3.jpg", 0)
    for name in ("train", "val", "test"):
        split = open_split(tmp_path, name, strict=True)
        assert split.class_names == ("vehicle", "car", "van")
        assert not split.report
    assert only_path(tmp_path / "test" / "_annotations.coco.json", "test").name == "c_jpg.rf.3.jpg"


@pytest.mark.parametrize(
    ("json_name", "split", "image"),
    [
        ("annotations/instances_default.json", "default", "images/default/a.jpg"),  # CVAT
        ("annotations/instances_default.json", "default", "images/a.jpg"),
        ("result.json", "result", "images/a.jpg"),  # Label Studio
        ("labels.json", "labels", "data/a.jpg"),  # FiftyOne
        ("annotations/train.json", "train", "images/train/a.jpg"),
        ("annotations/train.json", "train", "train/a.jpg"),
        ("annotations/instances_train2017.json", "train", "train2017/a.jpg"),
        ("annotations/instances_train2017.json", "train", "images/train/a.jpg"),
        ("train/labels.json", "train", "train/data/a.jpg"),
        ("my.json", "my", "a.jpg"),
    ],
)
def test_where_tools_put_a_json_and_its_images(tmp_path: Path, json_name: str, split: str, image: str) -> None:
    make_image(tmp_path / image)
    coco(tmp_path / json_name, annotations=BOXES)
    put(tmp_path / "annotations" / "captions_train2017.json", json.dumps({"images": [], "annotations": []}))
    assert only_path(tmp_path, split) == tmp_path / image


def test_the_split_s_own_folder_goes_before_another_of_the_same_names(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        make_image(tmp_path / split / "a.jpg")
        coco(tmp_path / "annotations" / f"instances_{split}.json", annotations=BOXES)
    make_image(tmp_path / "images" / "a.jpg")
    assert only_path(tmp_path, "train") == tmp_path / "train2017" / "a.jpg"
    assert only_path(tmp_path, "val") == tmp_path / "val2017" / "a.jpg"


def test_images_of_another_split_are_never_taken(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "train2017" / "a.jpg")
    coco(tmp_path / "annotations" / "instances_val2017.json", annotations=BOXES)
    coco(tmp_path / "annotations" / "instances_test.json", [{"id": 7, "file_name": "/x/test/a.jpg"}], BOXES)
    for name in ("val", "test"):
        with pytest.raises(DataError, match="were not found"):
            open_split(tmp_path, name)


@pytest.mark.parametrize(
    ("written", "image", "noted"),
    [
        ("/data/local-files/?d=set%2Fimages%2Fa b.jpg", "images/a b.jpg", True),
        ("/data/upload/1/3f2a1b4c-a.jpg", "images/3f2a1b4c-a.jpg", True),
        ("/data/upload/1/3f2a1b4c-a.jpg", "images/a.jpg", True),
        ("3f2a1b4c-a.jpg", "images/a.jpg", True),
        ("../../label-studio/media/upload/1/a.jpg", "images/a.jpg", True),
        ("C:\\Users\\me\\set\\images\\a.jpg", "images/a.jpg", True),
        ("/home/me/set/images/a.jpg", "images/a.jpg", True),
        ("https://host/set/a.jpg?signed=1", "images/a.jpg", True),
        ("set/images/a.jpg", "images/a.jpg", True),
        ("images\\a.jpg", "images/a.jpg", False),
        ("sub\\deep\\a.jpg", "images/sub/deep/a.jpg", False),
    ],
)
def test_names_of_other_machines_and_tools(tmp_path: Path, written: str, image: str, noted: bool) -> None:
    make_image(tmp_path / image)
    make_image(tmp_path / "images" / "other.jpg")
    entries = [{"id": 7, "file_name": written}]
    coco(tmp_path / "instances_val.json", entries, BOXES)
    split = open_split(tmp_path, "val", strict=True)
    assert split.records[0].path == tmp_path / image
    assert split.report.counts == ({MOVED: 1} if noted else {})
    if noted:
        assert str(tmp_path / image) in split.report.places[MOVED][0]


def test_a_file_s_last_folders_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    for folder in ("seq1", "seq2", "seq3"):
        make_image(tmp_path / "images" / folder / "0001.jpg")
    names = ["/x/seq1/0001.jpg", "/x/seq2/0001.jpg", "/x/seq4/0001.jpg", "0001.jpg"]
    entries = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    coco(tmp_path / "instances_val.json", entries, [{"image_id": 0, "category_id": 5, "bbox": [1, 2, 3, 4]}])
    split = open_split(tmp_path, "val")
    paths = {record.image_id: record.path for record in split.records}
    assert paths == {i: tmp_path / "images" / f"seq{i + 1}" / "0001.jpg" for i in (0, 1)}
    assert split.report.of_kind("image") == {"path leads outside the data folder": 1, "image file missing": 1}


def test_a_file_is_never_taken_for_two_images(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    entries = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "/elsewhere/a.jpg"}]
    coco(tmp_path / "instances_val.json", entries, BOXES)
    assert [record.image_id for record in open_split(tmp_path, "val").records] == [7]


# YOLO


@pytest.mark.parametrize(
    "document",
    [
        "train: images/train\nval: images/val",
        "path: .\ntrain: [images/train]\nval: [images/val]",
        "train: train.txt\nval: val.txt",
        "train: [train.txt]\nval: ./images/val/",
        "path: {root}\ntrain: train.txt\nval: images/val",
        "path: sets/x\ntrain: images/train\nval: images/val",  # relative to the working folder
        "path: /content/x\ntrain: images/train\nval: images/val",
        "train: /content/x/images/train\nval: D:\\sets\\x\\images\\val",
        "train: images\\train\nvalid: images\\val",
        "train: x/images/train\nvalidation: x/images/val",
        "train: sets/x/images/train\nval: sets/x/images/val",
    ],
)
@pytest.mark.parametrize("given", ["folder", "yaml"])
def test_the_forms_of_a_data_yaml(tmp_path: Path, document: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "sets" / "x"
    yolo(root, "train", {"a": "0 0.5 0.5 0.1 0.1"})
    yolo(root, "val", {"b": "0 0.5 0.5 0.1 0.1"})
    put(root / "train.txt", "./images/train/a.jpg\r\n\n")
    put(root / "val.txt", "/content/x/images/val/b.jpg\n")
    path = put(root / "data.yaml", f"{document.format(root=root)}\nnames: [drone]")
    monkeypatch.chdir(tmp_path)
    for name, stem in (("train", "a"), ("val", "b")):
        split = open_split(root if given == "folder" else path, name, strict=True)
        assert [record.path and record.path.stem for record in split.records] == [stem]
        assert len(split.records[0].boxes) == 1
        assert set(split.report.counts) <= {MOVED}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [car, van]", {0: "car", 1: "van"}),
        ("names: {0: car, 1: van}", {0: "car", 1: "van"}),
        ("names: {'0': car, 2: van}", {0: "car", 2: "van"}),
        ("nc: 3\nnames: {0: car, 2: van}", {0: "car", 1: "class1", 2: "van"}),
    ],
)
def test_names_with_gaps(tmp_path: Path, names: str, expected: dict[int, str]) -> None:
    last = max(expected)
    yolo(tmp_path, "train", {"a": f"{last} 0.5 0.5 0.1 0.1", "b": "1 0.5 0.5 0.1 0.1"})
    put(tmp_path / "data.yaml", f"train: images/train\n{names}")
    split = open_split(tmp_path, "train")
    assert dict(zip(split.category_ids, split.class_names, strict=True)) == expected
    assert split.records[0].labels.tolist() == [list(expected).index(last)]
    assert len(split.records) == (2 if 1 in expected else 1)  # a class without a name is not understood


@pytest.mark.parametrize("layout", ["train", "obj_train_data", "images/train", "."])
def test_txt_files_beside_their_images(tmp_path: Path, layout: str) -> None:
    make_image(tmp_path / layout / "a.jpg")
    put(tmp_path / layout / "a.txt", "0 0.5 0.5 0.1 0.1")
    put(tmp_path / "README.roboflow.txt", "text")
    (found,) = find_splits(tmp_path)
    assert only_path(tmp_path, found) == tmp_path / layout / "a.jpg"
    put(tmp_path / "data.yaml", f"train: {layout}\nnames: [car]")
    assert only_path(tmp_path, "train").resolve() == (tmp_path / layout / "a.jpg").resolve()


def test_two_data_yamls_of_which_none_is_called_so(tmp_path: Path) -> None:
    yolo(tmp_path, "train", {"a": "0 0.5 0.5 0.1 0.1"})
    for name in ("a.yaml", "b.yaml"):
        put(tmp_path / name, "train: images/train\nnames: [car]")
    split = open_split(tmp_path, "train")
    assert split.class_names == ("class0",)
    (place,) = split.report.places["several data.yaml, none of them read: give the right one"]
    assert place.endswith("a.yaml, b.yaml")
    assert open_split(tmp_path / "b.yaml", "train").class_names == ("car",)


def test_a_list_of_folders_of_which_one_has_no_labels(tmp_path: Path) -> None:
    yolo(tmp_path, "train", LINE)
    make_image(tmp_path / "images" / "background" / "c.jpg")
    put(tmp_path / "data.yaml", "train: [images/train, images/background]\nnames: [car]")
    split = open_split(tmp_path, "train")
    assert [len(record.boxes) for record in split.records] == [0, 1]


def test_images_that_are_called_as_a_list_is(tmp_path: Path) -> None:
    yolo(tmp_path, "train", dict.fromkeys(("test", "classes", "readme"), "0 0.5 0.5 0.1 0.1"))
    assert [len(record.boxes) for record in open_split(tmp_path, "train").records] == [1, 1, 1]


def test_a_linked_image_has_the_labels_of_its_own_name(tmp_path: Path) -> None:
    yolo(tmp_path, "train", LINE)
    make_image(tmp_path / "pool" / "xyz.jpg")
    image = tmp_path / "images" / "train" / "a.jpg"
    image.unlink()
    image.symlink_to(os.path.relpath(tmp_path / "pool" / "xyz.jpg", image.parent))
    put(tmp_path / "train.txt", "images/train/a.jpg")
    put(tmp_path / "data.yaml", "train: train.txt\nval: images/train\nnames: [car]")
    for name in ("train", "val"):
        assert only_path(tmp_path, name) == image


def test_a_val_that_was_not_handed_on(tmp_path: Path) -> None:
    yolo(tmp_path, "train", LINE)
    put(tmp_path / "data.yaml", "train: images/train\nval: ../valid/images\nnames: [car]")
    assert "split of the data.yaml that is not there" in open_split(tmp_path, "train").report.counts
    with pytest.raises(DataError, match=r"no split 'val': found train \(yolo\): .*--val-fraction 0\.2"):
        open_split(tmp_path, "val")


def test_paths_of_another_machine_never_make_train_and_val_one(tmp_path: Path) -> None:
    yolo(tmp_path, ".", LINE)
    put(tmp_path / "data.yaml", "train: /content/x/train/images\nval: /content/x/valid/images\nnames: [car]")
    with pytest.raises(DataError, match="no folder or txt file '/content/x/train/images'"):
        open_split(tmp_path, "train")


def test_names_in_a_classes_txt(tmp_path: Path) -> None:
    yolo(tmp_path, "train", {"a": "1 0.5 0.5 0.1 0.1"})
    put(tmp_path / "classes.txt", "car\nvan\n")
    split = open_split(tmp_path, "train", strict=True)
    assert split.class_names == ("car", "van")
    assert split.report.counts == {"class names of a classes.txt": 1}


# splits


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (("train2017", "val2017"), "train2017", "val2017"),
        (("train", "valid"), "train", "valid"),
        (("training", "validation"), "training", "validation"),
        (("train", "test-dev"), "train", "test-dev"),
        (("train", "val", "test-dev"), "train", "val"),
    ],
)
def test_names_of_splits(tmp_path: Path, names: tuple[str, ...], train: str, val: str) -> None:
    for name in names:
        yolo(tmp_path, name, LINE, split_first=True)
    assert open_split(tmp_path, "train").name == train
    opened = open_split(tmp_path, "val")
    assert opened.name == val
    assert ("another split taken" in opened.report.counts) == (val == "test-dev")


def test_one_split_names_the_way_to_divide_it(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "default" / "a.jpg", WIDTH, HEIGHT)
    coco(tmp_path / "annotations" / "instances_default.json", annotations=BOXES)
    for name in ("train", "val"):
        with pytest.raises(DataError, match=r"found default \(coco\): .*--val-fraction 0\.2"):
            open_split(tmp_path, name)
