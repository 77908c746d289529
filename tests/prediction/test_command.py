"""`python -m zoominnet.predict`: what it takes, what it writes, what it says."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import box_at, cut, write_film
from finder import BLUE_LABEL, RED_LABEL, Box, Finder, assert_boxes, save, save_tiny, save_visdrone, scene
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

import zoominnet
from zoominnet.data import open_split
from zoominnet.errors import UserError
from zoominnet.predict import PredictConfig, main, predict
from zoominnet.prediction.sources import find_files
from zoominnet.prediction.video import VideoReader

BOXES: dict[str, tuple[list[Box], list[Box]]] = {
    "a.png": ([(60, 40, 140, 80)], []),
    "b.png": ([(20, 30, 50, 50), (200, 100, 240, 160)], [(100, 150, 180, 200)]),
    "sub/c.png": ([], []),
}
"""Red and blue ones."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, (reds, blues) in BOXES.items():
        save(scene(400, 300, reds, blues), tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> Finder:
    """What the command loads, whatever MODEL is."""
    finder = Finder()
    monkeypatch.setattr(sys.modules["zoominnet.predict"], "load", lambda *_, **__: finder)
    return finder


def run(*arguments: str | Path) -> int:
    return main([str(each) for each in arguments])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 2) -> str:
    """The one line on standard error."""
    assert run(*arguments) == status
    line = capsys.readouterr().err
    assert line.startswith("zoominnet.predict: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.usefixtures("finder")
def test_a_folder_of_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert run("model", photos, "--out", out, "--save", "pictures", "coco", "yolo") == 0
    said = capsys.readouterr().out
    assert re.search(r"3 images: 3 car, 1 bus; \d+\.\d images/s on cpu", said)
    assert f"written: {out} (pictures, labels, classes.txt, detections.json, coco.json, predict.json)" in said
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {
        *("predict.json", "detections.json", "coco.json", "classes.txt", "pictures/a.png", "pictures/b.png"),
        *("pictures/sub/c.png", "labels/a.txt", "labels/b.txt", "labels/sub/c.txt"),
    }
    assert (out / "labels" / "sub" / "c.txt").read_text() == ""
    report = json.loads((out / "predict.json").read_text())
    assert (report["images"], report["frames"], report["boxes"]) == (3, 0, 4)
    assert report["boxes_by_class"] == {"car": 3, "bus": 1}
    assert (report["broken"], report["notes"], report["slice"], report["finished"]) == ({}, {}, False, True)
    picture = np.asarray(Image.open(out / "pictures" / "a.png").convert("RGB"))
    assert picture.shape[0] > 300
    assert (picture[45:75, 65:135] == (220, 30, 30)).all()
    assert (picture[39, 100] != (128, 128, 128)).any()


@pytest.mark.usefixtures("finder")
def test_coco_files_are_pycocotools_own(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("model", photos, "--out", out, "--save", "coco", "--batch-size", "2") == 0
    data_set = COCO(out / "coco.json")
    assert [image["file_name"] for image in data_set.loadImgs(data_set.getImgIds())] == list(BOXES)
    assert {each["id"]: each["name"] for each in data_set.loadCats(data_set.getCatIds())} == {
        1: "pedestrian",
        4: "car",
        9: "bus",
    }
    loaded = data_set.loadRes(str(out / "detections.json"))
    for image in data_set.loadImgs(data_set.getImgIds()):
        reds, blues = BOXES[image["file_name"]]
        assert (image["width"], image["height"]) == (400, 300)
        for category, boxes in ((4, reds), (9, blues)):
            found = loaded.loadAnns(loaded.getAnnIds(imgIds=image["id"], catIds=category))
            corners = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in found)]
            assert_boxes(np.array(corners), boxes, 0.5)  # type: ignore[arg-type]
            assert all(each["score"] == pytest.approx(0.9) for each in found)
    # As ground truth and detections: a perfect score, so that both files say the same of every image.
    evaluation = COCOeval(data_set, loaded, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    # And this project reads it as a data set.
    split = open_split(out / "coco.json", "coco", images=str(photos))
    assert [len(record.boxes) for record in split.records] == [1, 3, 0]


@pytest.mark.usefixtures("finder")
def test_yolo_files_are_read_back(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("model", photos, "--out", out, "--save", "yolo") == 0
    (tmp_path / "set" / "images").mkdir(parents=True)
    (photos).rename(tmp_path / "set" / "images" / "val")
    (tmp_path / "set" / "labels").mkdir()
    (out / "labels").rename(tmp_path / "set" / "labels" / "val")
    (out / "classes.txt").rename(tmp_path / "set" / "labels" / "classes.txt")
    split = open_split(tmp_path / "set", "val", format="yolo")
    assert split.class_names == ("pedestrian", "car", "bus")
    for record in split.records:
        assert record.path is not None
        reds, blues = BOXES[record.path.relative_to(tmp_path / "set" / "images" / "val").as_posix()]
        assert_boxes(record.boxes[record.labels == RED_LABEL], reds, 0.5)  # type: ignore[arg-type]
        assert_boxes(record.boxes[record.labels == BLUE_LABEL], blues, 0.5)  # type: ignore[arg-type]


@pytest.mark.usefixtures("finder")
def test_visdrone_files_are_read_back(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run("model", photos, "--out", out, "--save", "visdrone") == 0
    assert (out / "visdrone" / "a.txt").read_text().endswith(",4,-1,-1\n")
    (tmp_path / "set").mkdir()
    photos.rename(tmp_path / "set" / "images")
    (out / "visdrone").rename(tmp_path / "set" / "annotations")
    split = open_split(tmp_path / "set", "set", format="visdrone")
    for record in split.records:
        assert record.path is not None
        reds, blues = BOXES[record.path.relative_to(tmp_path / "set" / "images").as_posix()]
        names = np.array([split.class_names[label] for label in record.labels])
        assert_boxes(record.boxes[names == "car"], reds, 0.5)  # type: ignore[arg-type]
        assert_boxes(record.boxes[names == "bus"], blues, 0.5)  # type: ignore[arg-type]


@pytest.mark.usefixtures("finder")
def test_options_reach_the_model(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report(*options: str) -> dict[str, Any]:
        assert run("model", photos / "b.png", "--out", tmp_path / "out", "--save", "coco", "--overwrite", *options) == 0
        return json.loads((tmp_path / "out" / "predict.json").read_text())

    assert report()["boxes_by_class"] == {"car": 2, "bus": 1}
    assert report("--conf", "0.95")["boxes"] == 0
    assert "lets through" not in capsys.readouterr().out
    few = report("--max-det", "2")
    assert (few["boxes"], few["at_max_det"]) == (2, 1)
    assert "1 image with as many boxes as --max-det 2 lets through: raise it to see more" in capsys.readouterr().out
    assert report("--classes", "bus", "0")["boxes_by_class"] == {"bus": 1}
    sliced = report("--slice", "--slice-size", "150", "--overlap", "0.5", "--batch-size", "3")
    assert sliced["boxes_by_class"] == {"car": 2, "bus": 1}
    assert (sliced["slice"], sliced["slice_size"], sliced["overlap"]) == (True, 150, 0.5)


@pytest.mark.usefixtures("finder")
def test_broken_files_are_counted_and_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "text.jpg").write_text("no image")
    (photos / "empty.png").touch()
    cut(save(scene(400, 300, []), photos / "cut.jpg", quality=95), 0.5)
    save(scene(1, 1, []), photos / "one.png")
    cut(write_film(photos / "film.mp4"), 0.5)
    for workers in ("0", "2"):
        assert run("model", photos, "--out", tmp_path / workers, "--save", "coco", "--workers", workers) == 0
        said = capsys.readouterr().out
        assert "3 images: 3 car, 1 bus" in said
        assert "5 files could not be used:" in said
        assert "  one.png: 1x1 px is too small to look for objects in" in said
        broken = json.loads((tmp_path / workers / "predict.json").read_text())["broken"]
        assert list(broken) == ["cut.jpg", "empty.png", "one.png", "text.jpg", "film.mp4"]
        assert broken["empty.png"] == "the file is empty"
        assert broken["cut.jpg"].startswith("cannot be decoded")
        assert len(COCO(tmp_path / workers / "coco.json").getImgIds()) == 3


@pytest.mark.usefixtures("finder")
def test_names_that_no_terminal_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    for name in (b"bytes-\xff.png", b"two\nlines.png", "straße.png".encode()):
        save(scene(400, 300, [(60, 40, 140, 80)]), folder / os.fsdecode(name))
    (folder / os.fsdecode(b"broken-\xff.png")).touch()
    assert run("model", folder, "--out", tmp_path / "out", "--save", "pictures", "coco", "yolo") == 0
    assert r"  broken-\udcff.png: the file is empty" in capsys.readouterr().out
    assert len(COCO(tmp_path / "out" / "coco.json").getImgIds()) == 3
    assert (tmp_path / "out" / "labels" / "straße.txt").read_text()


@pytest.mark.usefixtures("finder")
def test_where_nothing_can_be_read_the_run_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_text("no image")
    line = refusal(capsys, "model", tmp_path / "photos", "--out", tmp_path / "out", "--save", "coco")
    assert "none of 2 files could be read; a.jpg: not a readable JPEG, PNG" in line
    line = refusal(capsys, "model", tmp_path / "photos" / "a.jpg", "--out", tmp_path / "o", "--max-megapixels", "0.01")
    assert "none of 1 file could be read" in line


@pytest.mark.usefixtures("finder")
def test_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, out = write_film(tmp_path / "films" / "drive.mp4"), tmp_path / "out"
    save(scene(160, 120, [(10, 20, 50, 60)]), tmp_path / "films" / "still.jpg", quality=95)
    assert run("model", film.parent, "--out", out, "--save", "pictures", "coco", "yolo", "--batch-size", "8") == 0
    assert "1 image, 20 frames of 1 video: 21 car" in capsys.readouterr().out
    data_set = COCO(out / "coco.json")
    images = data_set.loadImgs(data_set.getImgIds())
    assert [image["file_name"] for image in images] == [
        "still.jpg",
        *(f"drive/{number:07d}.jpg" for number in range(1, 21)),
    ]
    assert [image.get("frame") for image in images] == [None, *range(1, 21)]
    assert {image.get("video") for image in images} == {None, "drive.mp4"}
    loaded = data_set.loadRes(str(out / "detections.json"))
    for image in images[1:]:
        ((x, y, w, h),) = (each["bbox"] for each in loaded.loadAnns(loaded.getAnnIds(imgIds=image["id"])))
        assert_boxes(np.array([(x, y, x + w, y + h)]), [box_at(image["frame"] - 1)], 1.5)  # type: ignore[arg-type]
    assert len(list((out / "labels" / "drive").iterdir())) == 20
    with VideoReader(out / "pictures" / "drive.mp4") as reader:
        assert reader.rate == 10
        frames = list(reader.frames())
    assert len(frames) == 20
    assert {frame.shape for *_, frame in frames} == {frames[0][2].shape}
    assert frames[0][2].shape[1] > 120  # the legend
    for number, _, pixels in frames[::6]:
        left = box_at(number - 1)[0]
        column = pixels[:, 30:50, left - 1].float().mean(dim=1)  # a line there, as far as the film's colours are sharp
        assert abs(column - 128).max() > 40


@pytest.mark.usefixtures("finder")
def test_every_fifth_frame(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("model", write_film(tmp_path / "a.mkv"), "--out", out, "--frame-step", "5") == 0
    images = json.loads((out / "coco.json").read_text())["images"]
    assert [image["frame"] for image in images] == [1, 6, 11, 16]
    with VideoReader(out / "pictures" / "a.mkv.mp4") as reader:
        times = [seconds for _, seconds, _ in reader.frames()]
    np.testing.assert_allclose(times, [0, 0.5, 1, 1.5], atol=0.001)


@pytest.mark.usefixtures("finder")
def test_a_cut_off_video_keeps_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    film = cut(write_film(tmp_path / "a.mkv", frames=60, noise=True), 0.5)
    assert run("model", film, "--out", out) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "predict.json").read_text())
    assert 15 < report["frames"] < 45
    assert f"a.mkv: ends after frame {report['frames']} of 60; what was before is used" in said
    assert len(json.loads((out / "detections.json").read_text())) == report["frames"]
    with VideoReader(out / "pictures" / "a.mkv.mp4") as reader:
        assert len(list(reader.frames())) == report["frames"]


@pytest.mark.usefixtures("finder")
def test_a_run_that_is_interrupted_leaves_whole_files(
    tmp_path: Path, finder: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    film, seen = write_film(tmp_path / "a.mp4"), []
    look = finder._of_image

    def interrupted(*arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return look(*arguments)

    monkeypatch.setattr(finder, "_of_image", interrupted)
    assert run("model", film, "--out", tmp_path / "out") == 130
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 7
    assert len(COCO(tmp_path / "out" / "coco.json").getImgIds()) == 7
    report = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert (report["finished"], report["frames"], report["boxes"]) == (False, 7, 7)
    with VideoReader(tmp_path / "out" / "pictures" / "a.mp4") as reader:
        assert len(list(reader.frames())) == 7


@pytest.mark.usefixtures("finder")
def test_sources(photos: Path, tmp_path: Path) -> None:
    def names(*sources: str | Path) -> list[str]:
        return [str(file.name) for file in find_files([str(each) for each in sources], without=tmp_path / "out")]

    assert names(photos) == ["a.png", "b.png", "sub/c.png"]
    assert names(photos / "b.png") == ["b.png"]
    assert names(photos / "*.png") == ["a.png", "b.png"]
    assert names(photos / "**" / "*.png") == ["a.png", "b.png", "sub/c.png"]
    assert names(photos / "sub", photos / "a.png") == ["sub/c.png", "a.png"]
    assert names(photos / "a.png", photos, photos / "a.png") == ["a.png", "b.png", "sub/c.png"]
    (photos / "odd[1].png").write_bytes((photos / "a.png").read_bytes())
    assert names(photos / "odd[1].png") == ["odd[1].png"]  # a file before a pattern
    (photos / "without-suffix").write_bytes((photos / "a.png").read_bytes())
    assert names(photos / "without-suffix") == ["without-suffix"]
    (photos / ".hidden.png").touch()
    (photos / "notes.txt").touch()
    assert names(photos) == ["a.png", "b.png", "odd[1].png", "sub/c.png"]


def test_the_results_of_an_earlier_run_are_no_source(photos: Path, finder: Finder) -> None:
    for _ in range(2):
        assert run("model", photos, "--out", photos / "out", "--overwrite") == 0
        assert json.loads((photos / "out" / "predict.json").read_text())["images"] == 3


def test_relative_paths_and_links(
    photos: Path, finder: Finder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos / "sub")
    assert run("model", "..", "--save", "yolo") == 0
    assert (photos / "sub" / "runs" / "predict" / "labels" / "a.txt").is_file()
    (tmp_path / "link").symlink_to(photos)
    assert run("model", str(tmp_path / "link"), "--out", str(tmp_path / "o"), "--save", "yolo") == 0
    assert (tmp_path / "o" / "labels" / "sub" / "c.txt").is_file()


@pytest.mark.usefixtures("finder")
def test_sources_that_cannot_be_used(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    out = ("--out", tmp_path / "out")
    for source, line in (
        ("absent", "absent: no such file or folder; name an image, a video, a folder or a pattern"),
        (tmp_path / "empty", "empty: holds no images or videos (looked here and below for avi, bmp"),
        (tmp_path / "*.gif", "*.gif: matches no file; look at the pattern"),
        (tmp_path / "empty" / "*", "matches 1 files, none an image or video"),
        ("https://example.org/a.mp4", "https://example.org/a.mp4: addresses are not opened; download the file"),
    ):
        assert line in refusal(capsys, "model", source, *out)
    assert "SOURCE: name one or more images" in refusal(capsys, "model", *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("finder")
def test_two_images_with_one_txt_file_are_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(scene(100, 80, []), photos / "a.jpg")
    line = refusal(capsys, "model", photos, "--out", tmp_path / "out", "--save", "yolo")
    assert "a.png: has the name of" in line
    assert "both would have one txt file; rename one of them" in line
    assert run("model", photos, "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out" / "pictures").glob("a.*")} == {"a.jpg", "a.png"}


@pytest.mark.usefixtures("finder")
def test_a_folder_that_is_used_is_not_written_to(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run("model", photos, "--out", out, "--save", "yolo") == 0
    (out / "mine.txt").write_text("mine")
    line = refusal(capsys, "model", photos, "--out", out)
    assert f"--out {out}: exists and is not empty; name another folder, or pass --overwrite" in line
    assert run("model", photos / "a.png", "--out", out, "--save", "coco", "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {"mine.txt", "detections.json", "coco.json", "predict.json"}
    assert f"--out {out / 'mine.txt'}: is a file" in refusal(capsys, "model", photos, "--out", out / "mine.txt")
    # A folder of something else: nothing in it goes.
    other = tmp_path / "other"
    (other / "pictures").mkdir(parents=True)
    (other / "pictures" / "holiday.jpg").touch()
    assert run("model", photos / "a.png", "--out", other, "--overwrite") == 0
    assert (other / "pictures" / "holiday.jpg").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_must_not_be_written_to(
    photos: Path, tmp_path: Path, finder: Finder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refusal(capsys, "model", photos, "--out", tmp_path / "locked" / "out")


def test_models_and_options_that_cannot_be_used(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    assert "absent: no such file or folder; give a run folder" in refusal(capsys, tmp_path / "absent", photos, *out)
    assert "holds no checkpoint" in refusal(capsys, photos, photos, *out)
    assert "a.png: damaged or not a safetensors file" in refusal(capsys, photos / "a.png", photos, *out)
    model = save_tiny(tmp_path / "model.safetensors", names=("pedestrian", "boat"))
    line = refusal(capsys, model, photos, *out, "--classes", "car")
    assert "--classes: 'car' is none of the model's classes, which are pedestrian, boat" in line
    assert "VisDrone's format has no class 'boat'" in refusal(capsys, model, photos, *out, "--save", "visdrone")
    assert "--conf: 1.5 is not in [0, 1)" in refusal(capsys, model, photos, *out, "--conf", "1.5")
    assert "--max-megapixels: 500.0 is not over 0" in refusal(capsys, model, photos, *out, "--max-megapixels", "500")
    assert "--device: 'tpu' is not a device" in refusal(capsys, model, photos, *out, "--device", "tpu")
    assert not (tmp_path / "out").exists()


def test_without_the_extra(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures and videos name it, before anything is loaded; the rest needs none of it."""
    film = write_film(tmp_path / "a.mp4")
    for package in ("supervision", "av", "cv2"):
        monkeypatch.setitem(sys.modules, package, None)
    model = save_visdrone(tmp_path / "model.safetensors")
    line = refusal(capsys, "absent", photos, "--out", tmp_path / "out")
    assert (
        "drawing needs the package supervision, which is not installed: pip install 'zoominnet[predict]'; or write no "
        "pictures: --save coco"
    ) in line
    line = refusal(capsys, "absent", film, "--out", tmp_path / "out", "--save", "yolo")
    assert "reading videos needs the package av, which is not installed: pip install 'zoominnet[predict]'" in line
    assert not (tmp_path / "out").exists()
    assert run(model, photos, "--out", tmp_path / "out", "--save", "coco", "visdrone", "yolo", "--conf", "0") == 0
    assert len((tmp_path / "out" / "labels" / "a.txt").read_text().splitlines()) > 0


def test_from_python(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The function gives what the command writes, and says nothing on a console that is quiet."""
    model = save_visdrone(tmp_path / "model.safetensors")
    config = PredictConfig(model, [str(photos)], out=tmp_path / "out", save=["coco"], conf=0.0, max_det=3)  # type: ignore[arg-type]
    report = zoominnet.predict(config, console=Console(quiet=True))
    assert report == json.loads((tmp_path / "out" / "predict.json").read_text())
    assert report["boxes"] == 9
    assert capfd.readouterr() == ("", "")
    text = io.StringIO()
    one = PredictConfig(model, str(photos / "a.png"), out=tmp_path / "one", save=("yolo",))  # type: ignore[arg-type]
    assert predict(one, console=Console(file=text, width=120))["images"] == 1
    assert "1 image: nothing found" in text.getvalue()
    # And the same boxes as the model alone.
    results = zoominnet.load(model).predict([photos / name for name in BOXES], conf=0.0, max_det=3)
    wanted = [each for i, result in enumerate(results) for each in result.to_coco(i + 1)]
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == wanted


@pytest.mark.slow
def test_evaluate_takes_a_model_and_data(photos: Path, tmp_path: Path) -> None:
    """What the command's configuration gives, and leaves the model as it was."""
    model = save_visdrone(tmp_path / "model.safetensors")
    options: dict[str, Any] = {"synthetic_images": 2, "workers": 0, "latency_repeats": 0, "protocol": "coco"}
    quiet = Console(quiet=True)
    config = zoominnet.EvaluateConfig(model, data="synthetic", device="cpu", **options)
    wanted = zoominnet.evaluate(config, console=quiet)
    assert zoominnet.evaluate(model, "synthetic", console=quiet, device="cpu", **options) == wanted
    assert zoominnet.evaluate(str(model), console=quiet, device="cpu", **options) == wanted
    loaded = zoominnet.load(model, max_detections=7)
    assert zoominnet.evaluate(loaded, "synthetic", console=quiet, **options) == wanted
    assert loaded.model.postprocess.max_detections == 7
    assert loaded.model.postprocess.score_threshold == 0.05
    with pytest.raises(TypeError, match="give it alone"):
        zoominnet.evaluate(config, "synthetic")
    with pytest.raises(TypeError, match="unexpected keyword argument 'splitt'"):
        zoominnet.evaluate(model, "synthetic", splitt="val")
    with pytest.raises(UserError, match="--batch-size: 0 is not at least 1"):
        zoominnet.evaluate(loaded, "synthetic", batch_size=0)
