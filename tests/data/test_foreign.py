"""What is not read is named, with the way to convert it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_sets import make_image, put

from zoominnet.data import DataError, find_splits, open_split
from zoominnet.data.__main__ import main

VOC = "<annotation><object><name>car</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
DOTA = "imagesource:GoogleEarth\ngsd:0.1\n1 2 3 4 5 6 7 8 small-vehicle 0\n"
AU_AIR = {
    "info": {},
    "categories": ["Human", "Car"],
    "annotations": [{"image_name": "a.jpg", "bbox": [{"top": 1, "left": 2, "height": 3, "width": 4, "class": 1}]}],
}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("Annotations/a.xml", VOC, r"Pascal VOC .*supervision: .*from_pascal_voc"),
        ("VOCdevkit/VOC2012/Annotations/a.xml", VOC, r"Pascal VOC .*supervision"),
        ("images/a.xml", VOC, r"Pascal VOC .*supervision"),
        ("labelTxt/a.txt", DOTA, r"DOTA .*convert_dota_to_yolo_obb"),
        ("train/labelTxt-v1.0/a.txt", DOTA, r"DOTA .*convert_dota_to_yolo_obb"),
        ("annfiles/a.txt", "1 2 3 4 5 6 7 8 plane 0", r"DOTA .*convert_dota_to_yolo_obb"),
        ("annotations.json", json.dumps(AU_AIR), r"AU-AIR .*FiftyOne"),
    ],
)
def test_other_formats_are_refused_in_one_line(tmp_path: Path, file: str, content: str, said: str) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    put(tmp_path / file, content)
    with pytest.raises(DataError, match=rf"^{tmp_path}: this is {said}") as caught:
        find_splits(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "it holds nothing: an empty folder"),
        (["a.jpg", "b/c.PNG"], "it holds 2 images: an image folder without labels"),
        (["a.jpg", "README.md"], "it holds 1 images: an image folder without labels"),
        (["a.jpg", "labels.csv"], r"it holds 1 images, 1 \.csv files: images with their labels in a csv"),
        (["labels.json", "a.txt"], r"no images \(annotations without their images\?\)"),
        (["a.jpg", "notes.txt"], "images and label files in a layout that is not known here"),
    ],
)
def test_what_a_folder_without_a_data_set_holds(
    tmp_path: Path, files: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        make_image(tmp_path / name) if name.lower().endswith(("jpg", "png")) else put(tmp_path / name, "text")
    with pytest.raises(DataError, match=said):
        find_splits(tmp_path)
    assert main(["check", str(tmp_path)]) == 2
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith(f"zoominnet.data: {tmp_path}: no data set found: it holds ")
    assert [line.strip().partition(":")[0] for line in more] == [
        "looked for",
        "COCO",
        "VisDrone",
        "YOLO",
        "VisDrone VID and MOT",
        "UAVDT",
        "give the folder that holds one of these",
    ]
    assert max(map(len, more)) < 120


def test_a_file_given_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a csv, which has no fixed form"):
        find_splits(put(tmp_path / "labels.csv", "image,x,y"))
    with pytest.raises(DataError, match=r"annotations\.json: this is AU-AIR"):
        open_split(put(tmp_path / "annotations.json", json.dumps(AU_AIR)), "annotations")


def test_labels_of_another_kind_in_a_folder_of_labels_never_become_background(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.jpg")
    put(tmp_path / "labels" / "a.xml", VOC)
    put(tmp_path / "data.yaml", "train: images\nnames: [car]")
    with pytest.raises(DataError, match=r"labels: holds no txt files, but such as 'a\.xml'"):
        open_split(tmp_path, "train")
