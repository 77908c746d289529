"""Videos read frame by frame: VisDrone's VID and MOT, and UAVDT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_sets import make_image, put, visdrone

from zoominnet.data import ANY_CLASS, VISDRONE_CLASSES, DataError, find_splits, open_split
from zoominnet.data.__main__ import main
from zoominnet.data.records import DOUBTFUL_IMAGE


def vid(root: Path, videos: dict[str, str | None], frames: int = 5) -> Path:
    for name, lines in videos.items():
        for frame in range(1, frames + 1):
            make_image(root / "sequences" / name / f"{frame:07d}.jpg")
        if lines is not None:
            put(root / "annotations" / f"{name}.txt", lines)
    return root


# frame, target, x, y, w, h, score, category, truncation, occlusion
LINES = """1,0,10,20,30,40,1,4,0,0
1,1,50,20,30,40,1,1,0,1
2,0,11,20,30,40,1,4,0,0
3,2,0,0,20,20,0,0,0,0
4,0,10,20,30,40,1,99,0,0
5,0,12,20,0,40,1,4,0,0
9,0,12,20,10,40,1,4,0,0
"""


def test_visdrone_vid(tmp_path: Path) -> None:
    vid(tmp_path / "VisDrone2019-VID-train", {"uav1": LINES, "uav2": ""})
    vid(tmp_path / "VisDrone2019-VID-val", {"uav3": LINES})
    assert {s.format for s in find_splits(tmp_path).values()} == {"visdrone-vid"}
    split = open_split(tmp_path, "train")
    assert (split.class_names, split.category_ids) == (VISDRONE_CLASSES, tuple(range(1, 11)))
    assert [record.image_id for record in split.records] == [1, 2, 3, 5, 6, 7, 8, 9, 10]  # frame 4 is doubtful
    np.testing.assert_array_equal(split.records[0].boxes, [[10, 20, 40, 60], [50, 20, 80, 60]])
    assert split.records[0].labels.tolist() == [3, 0]
    np.testing.assert_array_equal(split.records[1].boxes, [[11, 20, 41, 60]])
    assert split.records[2].ignored_labels.tolist() == [ANY_CLASS]
    assert sum(len(record.boxes) for record in split.records[3:]) == 0
    assert split.report.counts == {
        "unknown class": 1,
        DOUBTFUL_IMAGE: 1,
        "side of zero": 1,
        "annotation of an unknown frame": 1,
    }


@pytest.mark.parametrize(("step", "ids"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 4, 6]), (3, [1, 4]), (99, [1, 4])])
def test_every_so_many_frames_of_each_video(tmp_path: Path, step: int, ids: list[int]) -> None:
    vid(tmp_path / "train", {"a": "1,0,10,20,30,40,1,4,0,0", "b": "1,0,10,20,30,40,1,4,0,0"}, frames=3)
    split = open_split(tmp_path, "train", frame_step=step)
    assert [record.image_id for record in split.records] == ids
    assert sum(len(record.boxes) for record in split.records) == 2


def test_a_video_without_labels_and_lines_that_make_no_sense(tmp_path: Path) -> None:
    lines = "1,0,10,20,30,40,1,4,0,0\n2,0,10,20,nan,40,1,4,0,0\n3,0,10,20,30,40,1,4,0\nx,0,10,20,30,40,1,4,0,0"
    vid(tmp_path / "train", {"a": lines, "b": None})
    make_image(tmp_path / "train" / "sequences" / "a" / "cover.jpg")
    split = open_split(tmp_path, "train")
    assert [record.image_id for record in split.records] == [1, 4, 5]
    assert split.report.counts == {
        "not a finite number": 1,
        "not 10 fields": 1,
        DOUBTFUL_IMAGE: 2,
        "annotation of an unknown frame": 1,
        "frame without a number of its own": 1,
        "video without a readable annotation file": 5,  # frames
    }


def test_detection_images_go_before_videos_in_one_folder(tmp_path: Path) -> None:
    visdrone(tmp_path / "VisDrone2019-DET-train", {"a": "1,2,3,4,1,1,0,0"})
    vid(tmp_path / "VisDrone2019-VID-train", {"b": "1,0,10,20,30,40,1,4,0,0"})
    assert open_split(tmp_path, "train").name == "VisDrone2019-DET-train"
    assert len(open_split(tmp_path, "VisDrone2019-VID-train").records) == 5
    assert open_split(tmp_path, "train", format="visdrone-vid").name == "VisDrone2019-VID-train"


def uavdt(root: Path, *, attributes: bool = True) -> Path:
    labels = root / "UAV-benchmark-MOTD_v1.0" / "GT"
    for name, split in (("M0101", "train"), ("M0203", "test"), ("M0301", "train")):
        for frame in (1, 2):
            make_image(root / "UAV-benchmark-M" / name / f"img{frame:06d}.jpg")
        put(labels / f"{name}_gt_whole.txt", "1,1,10,20,30,40,1,1,1\n1,2,50,20,30,40,1,2,3\n2,1,12,20,30,40,1,1,2\n")
        put(labels / f"{name}_gt.txt", "1,1,10,20,30,40,1,-1,-1,-1\n")
        put(labels / f"{name}_gt_ignore.txt", "2,-1,0,0,20,20,1,-1,-1\n")
        if attributes:
            put(root / "M_attr" / split / f"{name}_attr.txt", "1,0,0")
    return root


def test_uavdt(tmp_path: Path) -> None:
    uavdt(tmp_path)
    assert {name: source.format for name, source in find_splits(tmp_path).items()} == {
        "train": "uavdt",
        "test": "uavdt",
    }
    split = open_split(tmp_path, "train", strict=True)
    assert (split.class_names, split.category_ids) == (("car", "truck", "bus"), (1, 2, 3))
    names = [record.path.relative_to(tmp_path).as_posix() for record in split.records if record.path]
    assert names == [f"UAV-benchmark-M/{v}/img00000{f}.jpg" for v in ("M0101", "M0301") for f in (1, 2)]
    np.testing.assert_array_equal(split.records[0].boxes, [[10, 20, 40, 60], [50, 20, 80, 60]])
    assert split.records[0].labels.tolist() == [0, 2]
    np.testing.assert_array_equal(split.records[1].ignored, [[0, 0, 20, 20]])
    assert split.records[1].ignored_labels.tolist() == [ANY_CLASS]
    val = open_split(tmp_path, "val", frame_step=2)
    assert (val.name, len(val.records)) == ("test", 1)


def test_uavdt_without_its_list_of_splits(tmp_path: Path) -> None:
    uavdt(tmp_path / "UAVDT", attributes=False)
    assert list(find_splits(tmp_path / "UAVDT")) == ["UAVDT"]
    assert len(open_split(tmp_path / "UAVDT", "UAVDT").records) == 6


def test_a_video_of_uavdt_without_labels_is_said(tmp_path: Path) -> None:
    uavdt(tmp_path)
    make_image(tmp_path / "UAV-benchmark-M" / "M0999" / "img000001.jpg")
    split = open_split(tmp_path, "train")
    assert split.report.places["video without a file of labels: not read"] == [
        str(tmp_path / "UAV-benchmark-M" / "M0999")
    ]


def test_frames_are_of_videos_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    visdrone(tmp_path / "det" / "train", {"a": "1,2,3,4,1,1,0,0"})
    with pytest.raises(DataError, match=r"frame_step \(--frame-step\): 2: .*visdrone\)"):
        open_split(tmp_path / "det", "train", frame_step=2)
    vid(tmp_path / "vid" / "train", {"a": "1,0,10,20,30,40,1,4,0,0"})
    assert main(["check", str(tmp_path / "vid"), "--frame-step", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"][0]["images"] == 3
