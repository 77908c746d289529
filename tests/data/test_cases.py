"""People's files of ../shared/cases: in each, every box lies on the red rectangle as a person sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_sets import SCENE_BOX, SHARED, assert_boxes_on_red

from zoominnet.data import find_splits, open_split
from zoominnet.data.__main__ import main
from zoominnet.data.records import DOUBTFUL_IMAGE

# the splits of each case, the boxes of each split, and the notes on them
CASES = {
    "exif_coco": ({"val": 1}, {"turned upright by EXIF"}),
    "exif_yolo": ({"train": 1, "val": 1}, {"turned upright by EXIF"}),
    "roboflow": ({"train": 1, "valid": 1}, {"root category left out: no box has it in any split"}),
    "yolo": (
        {"train": 4, "val": 1},
        {
            "box around four corners",
            "confidence behind the box left unread",
            "empty annotation file: used as an image without objects",
        },
    ),
    "yolo/list.yaml": ({"train": 2, "val": 1}, {"box around four corners"}),
    "seg_only": ({"val": 1}, {"box around a polygon"}),
    "float_ids": ({"val": 1}, {"id written as a float or a string"}),
    "winsep": ({"val": 1}, set()),
}


def case(name: str) -> Path:
    path = SHARED / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.shared_data
@pytest.mark.parametrize("name", CASES)
def test_every_box_lies_on_the_red_rectangle(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, (boxes, notes) = case(name), CASES[name]
    assert {split: boxes[split] for split in find_splits(path)} == boxes
    seen = set()
    for split_name, count in boxes.items():
        split = open_split(path, split_name, check_images="decode")
        assert_boxes_on_red(split, count)
        for record in split.records:
            assert (record.width, record.height) == (400, 300)
            for box in record.boxes:  # YOLO's fractions have as few as nine decimals
                np.testing.assert_allclose(box, SCENE_BOX, atol=1e-4)
        seen |= set(split.report.notes)
    assert seen == notes
    assert main(["check", str(path), "--json"]) == 0
    summaries = json.loads(capsys.readouterr().out)["splits"]
    assert {summary["split"]: summary["boxes"] for summary in summaries} == boxes


@pytest.mark.shared_data
def test_the_one_doubtful_image_of_the_cases() -> None:
    """Its label is in px, and of a class that the data.yaml does not name."""
    path = case("yolo")
    split = open_split(path, "train")
    assert {record.path.name for record in split.records if record.path} == {
        "A.JPG",
        "conf.jpg",
        "neg.jpg",
        "obb.jpg",
        "seg.jpg",
    }
    assert split.report.of_kind("label") == {"not fractions of the image's sides": 1, "unknown class": 1}
    assert split.report.of_kind("image") == {DOUBTFUL_IMAGE: 1}
    assert split.class_names == ("car", "van")


@pytest.mark.shared_data
def test_the_classes_of_the_cases() -> None:
    assert open_split(case("roboflow"), "val").class_names == ("car",)
    assert open_split(case("yolo/list.yaml"), "val").class_names == ("car", "van")
