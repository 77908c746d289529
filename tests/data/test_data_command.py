import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoominnet.data import DataReport, ImageRecord, Split, open_split
from zoominnet.data.__main__ import main, summarize
from zoominnet.data.records import DOUBTFUL_IMAGE

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A VisDrone set: train with a truncated image, a box of no height, bad lines and a region, val in order."""
    root = tmp_path / "[bold]data"  # must not be taken for rich's markup
    contents = {
        "train/a": "10,10,40,40,1,4,0,0\n0,0,20,20,0,0,0,0\n-5,5,10,10,1,1,0,0\n",
        "train/b": "10,10,40,0,1,4,0,0\n1,1,31,33,1,10,0,0\n",
        "train/doubtful": "10,nan,40,40,1,4,0,0\n1,1,31,33,1,10,0,0\n1,2,3\n",
        "train/c": "1,1,5,5,1,1,0,0",
        "val/d": "0,0,100,97,1,9,0,0\n",
        "val/e": "",
    }
    for name, content in contents.items():
        split, stem = name.split("/")
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / "images" / f"{stem}.jpg")
        (root / split / "annotations" / f"{stem}.txt").write_text(content)
    cut = root / "train" / "images" / "c.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_check_prints_what_would_be_used_and_dropped(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", data)
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert "train (visdrone): 2 images (0 without objects), 3 boxes, 1 ignored regions" in lines
    assert "val (visdrone): 2 images (1 without objects), 1 boxes, 0 ignored regions" in lines
    assert "image sizes, px: 120x100 (2)" in lines
    assert "boxes per image: 1.5 on average, median 1.5, at most 2" in lines
    assert (
        "left out of train: 2 images, 1 of them for a label that could not be understood, "
        "2 labels that could not be understood, 1 labels of no object"
    ) in lines
    assert "left out of val: nothing" in lines
    assert f"{data}/train/annotations/doubtful.txt:1: 10,nan,40,40,1,4,0,0" in lines
    assert f"{data}/train/images/doubtful.jpg" in lines
    assert any(line.startswith(f"{data}/train/images/c.jpg: cannot be decoded: ") for line in lines)
    assert "note: 1 x clipped to the image" in lines
    assert "4   car                   1       0        1       0" in lines
    assert "all                   3       2        1       0" in lines


def test_check_in_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", data, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    train, val = document["splits"]
    assert document["path"] == str(data)
    assert (train["split"], train["format"], val["split"]) == ("train", "visdrone", "val")
    assert (train["images"], train["boxes"], train["ignored_regions"]) == (2, 3, 1)
    # sides 40 x 40, 5 x 10 (clipped) and 31 x 33: 1600, 50 and 1023 px of area
    assert (train["small"], train["medium"], train["large"]) == (2, 1, 0)
    assert train["box_side_percentiles"]["50"] == pytest.approx(1023**0.5)
    assert train["boxes_per_image"] == {"mean": 1.5, "median": 1.5, "max": 2}
    assert {c["name"]: c["boxes"] for c in train["classes"] if c["boxes"]} == {"pedestrian": 1, "car": 1, "motor": 1}
    assert {verdict: entry["count"] for verdict, entry in train["dropped"].items()} == {
        "unreadable image": 1,
        "side of zero": 1,
        "not a finite number": 1,
        "not 8 fields": 1,
        DOUBTFUL_IMAGE: 1,
    }
    assert train["left_out"] == {
        "images": 2,
        "doubtful_images": 1,
        "labels_not_understood": 2,
        "labels_of_no_object": 1,
        "files": 0,
    }
    assert list(train["notes"]) == ["clipped to the image"]
    assert val["large"] == 1
    assert val["images_without_objects"] == 1
    assert val["dropped"] == {}


def test_sizes_at_coco_s_limits() -> None:
    boxes = np.array([[0, 0, 32, 31.9], [0, 0, 32, 32], [0, 0, 96, 95.9], [0, 0, 96, 96]], dtype=np.float32)
    records = [
        ImageRecord(None, 1, 99, 99, boxes=boxes, labels=np.zeros(4, dtype=np.int64)),
        ImageRecord(None, 2, 9, 9),
    ]
    summary = summarize(Split("val", records, ("a",), (1,), DataReport()))
    assert (summary["small"], summary["medium"], summary["large"]) == (1, 2, 1)
    assert summary["image_sizes"] == {"99x99": 1, "9x9": 1}
    empty = summarize(Split("val", records[1:], ("a",), (1,), DataReport()))
    assert (empty["boxes"], empty["box_side_percentiles"]) == (0, {})


def test_strict_sets_the_exit_status(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "check", data, "--strict")
    assert (status, err) == (1, "")
    assert "left out of train: 2 images" in out
    assert run(capsys, "check", data, "--strict", "--split", "val")[0] == 0


def test_doubtful_images_can_be_kept(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = json.loads(run(capsys, "check", data, "--keep-doubtful", "--json")[1])["splits"]
    assert (train["images"], train["boxes"]) == (3, 4)
    assert train["left_out"]["images"] == 1
    assert train["left_out"]["labels_not_understood"] == 2


def test_check_changes_no_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[Path, str]:
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in data.rglob("*") if p.is_file()}

    before = state()
    run(capsys, "check", data)
    assert state() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["check", "{data}/gone"], "gone: no such file or folder"),
        (["check", "{data}", "--split", "test"], "no split 'test': found train (visdrone), val (visdrone)"),
        (["check", "{data}", "--frame-step", "2"], "1 for data that are no videos"),
        (["check", "{data}", "--images", "{data}"], "for a COCO json only"),
        (["convert", "{data}", "{data}/o.json"], "holds the splits train, val: choose one by --split"),
        (["convert", "{data}", "{data}/gone/o.json", "--split", "val"], "o.json: cannot be written"),
        (["convert", "{data}", "{data}", "--split", "val"], "which format? Say --to yolo or --to visdrone"),
        (["convert", "{data}", "{data}", "--to", "yolo"], "exists already"),
        (["convert", "{data}", "{data}/new", "--to", "yolo", "--overwrite"], "folders are never replaced"),
        (["convert", "{data}", "{data}/gone/new", "--to", "yolo"], "new: cannot be written: there is no folder "),
    ],
)
def test_user_errors_are_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    status, _, err = run(capsys, *(argument.replace("{data}", str(data)) for argument in arguments))
    assert status == 2
    assert reason in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["chekc", "."], ["check"], ["check", ".", "--strickt"], ["convert", "."]])
def test_wrong_options(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["convert", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code
    out = capsys.readouterr().out
    for option in {"--help": ["check", "convert"], "check": ["PATH", "--strict"], "convert": ["OUT", "--to"]}[
        arguments[0]
    ]:
        assert option in out


def test_convert(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = data / "instances_train.json"
    status, out, err = run(capsys, "convert", data, output, "--split", "train")
    assert (status, err) == (0, "")
    assert f"wrote 2 images with 3 boxes of train to {output}" in out
    assert "left out of train: 2 images" in out
    original = open_split(data, "train", format="visdrone", check_images="decode")
    again = open_split(output, "train", strict=True, check_images="decode")
    assert [record.image_id for record in again.records] == [record.image_id for record in original.records]
    for one, other in zip(original.records, again.records, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.ignored_labels, other.ignored_labels)
    written = output.read_bytes()
    assert run(capsys, "convert", data, output, "--split", "val", "--format", "visdrone")[0] == 2
    assert output.read_bytes() == written
    overwritten = run(capsys, "convert", data, output, "--split", "val", "--format", "visdrone", "--overwrite")
    assert overwritten[0] == 0
    assert len(json.loads(output.read_bytes())["images"]) == 2
    assert output.read_bytes() != written


def test_convert_of_an_only_split_and_a_json_elsewhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "elsewhere" / "o.json"
    output.parent.mkdir()
    assert run(capsys, "convert", data / "val", output)[0] == 0
    assert run(capsys, "check", output)[0] == 2
    status, out, _ = run(capsys, "check", output, "--images", data / "val" / "images")
    assert status == 0
    assert "o (coco): 2 images (1 without objects), 1 boxes" in out


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_command_as_a_program() -> None:
    path = SHARED_DATA / "coco128"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    command = [sys.executable, "-m", "zoominnet.data", "check", str(path), "--json", "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = json.loads(done.stdout)["splits"]
    assert (summary["split"], summary["format"], summary["boxes"]) == ("val2017", "coco", 898)
    assert list(summary["notes"]) == ["several formats"]
