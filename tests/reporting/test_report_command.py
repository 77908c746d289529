"""What the command refuses, says and leaves out; the page itself is in test_page.py."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from report_cases import METRICS, run_folder
from rich.console import Console

import zoominnet
from zoominnet.config import TrainConfig
from zoominnet.data import DataReport, ImageRecord, Split, SyntheticScenes
from zoominnet.data.write import write_coco
from zoominnet.errors import UserError
from zoominnet.evaluation import image_errors
from zoominnet.evaluation.detections import Detections
from zoominnet.report import data_of, data_words, find_teacher, main, words_of_report
from zoominnet.reporting.material import Material, Run, evenly, labels_of, open_validation, read_metrics, read_run

FEW = {"images": 2, "shown": 2, "device": "cpu", "latency_repeats": 0}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoominnet.report")]
    return line.removeprefix("zoominnet.report: ")


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.html").write_text("x")
    out = tmp_path / "new.html"
    for words, line in (
        (["demo-fa", "--out", tmp_path / "there.html"], "exists already; name another file, or pass --overwrite"),
        (["demo-fa", "--out", tmp_path], "is a folder; name a file in it"),
        (["demo-fa", "--out", tmp_path / "no" / "x.html"], f"there is no folder {tmp_path / 'no'}; make it"),
        (["demo-fa", "--out", out, "--labels", "a", "b"], "--labels: 2 names for 1 runs; give one a run"),
        (["demo-fa", "demo-la", "--out", out, "--labels", "a", "a"], "--labels a a: two are alike"),
        (["demo-fa", "--out", out, "--images", "0"], "--images: 0 is not at least 1"),
        (["demo-fa", "--out", out, "--conf", "1"], "--conf: 1.0 is not in [0, 1)"),
        (["demo-fa", "--out", out, "--data-format", "coco"], "--data-format and --image-root: are of --data"),
        (["nowhere", "--out", out], "nowhere: no such file or folder; give a run folder"),
        (["demo-fa", "--out", out, "--data", tmp_path / "none"], "--data and --split name the data to look at"),
        (["demo-fa", "--out", out, "--teacher", "nobody"], "nobody: no such file or folder"),
    ):
        assert line in refused(capsys, *words)
    assert not out.exists()
    with pytest.raises(UserError, match="--sections curve: no such section; choose from results, runs, curves"):
        zoominnet.report(zoominnet.ReportConfig("demo-fa", out=out, sections=("curve",)))
    with pytest.raises(UserError, match="no run: name one or more"):
        zoominnet.report(zoominnet.ReportConfig((), out=out))


def test_a_run_that_is_half_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any checkpoint it is refused; with one, what there is of it is shown."""
    begun = tmp_path / "begun"
    (begun / "student" / "checkpoints").mkdir(parents=True)
    (begun / "config.json").write_text("{}")
    line = refused(capsys, begun, "--out", tmp_path / "x.html")
    assert line == f"{begun}: a run without a whole checkpoint so far; wait for its first one, or leave the run out"

    run = run_folder(tmp_path / "run", "demo-fa", METRICS, result=False)
    file = run / "student" / "metrics.jsonl"
    file.write_text("{broken\n" + file.read_text() + '{"kind": "train", "step": 40, "lo')
    read = read_run(run, "run")
    assert read.series("train", "loss") == ([10, 20], [2.0, 1.0])
    assert read.notes == (
        "2 lines of metrics.jsonl are cut off or no JSON, and left out",
        "not finished, or stopped: no result.json; the model is step-00000020, its best so far",
    )
    (run / "result.json").write_text("{")
    assert read_run(run, "run").notes[1:] == ("result.json is damaged, and left out",)


def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", "demo-fa", METRICS)
    model = run / "student" / "checkpoints" / "step-00000020" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert "a run without a whole checkpoint so far" in refused(capsys, run, "--out", tmp_path / "x.html")


def test_runs_of_different_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoominnet.engine.checkpoint import load_model
    from zoominnet.engine.checkpoint.model_file import save_model

    network, info = load_model(Path("demo-fa"))
    other = dataclasses.replace(info, class_names=("person", "cycle", "car", "tree"))
    save_model(tmp_path / "other.safetensors", network.state_dict(), other)
    line = refused(capsys, "demo-fa", tmp_path / "other.safetensors", "--out", tmp_path / "x.html")
    assert line == (
        f"{tmp_path / 'other.safetensors'}: has the classes person, cycle, car, tree, demo-fa person, cycle, car, "
        "truck or bus; both need the same, in order"
    )


def test_without_matplotlib(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(capsys, "demo-fa", "--out", tmp_path / "x.html")
    assert line.endswith("which is not installed: pip install 'zoominnet[report]'")


def photos(folder: Path, names: tuple[str, ...], count: int = 3) -> Path:
    """A COCO data set of random images, 160 x 90 px, with boxes in them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    records = []
    for i in range(count):
        path = folder / f"photo{i}.png"
        Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(path)
        boxes = np.array([[10, 10, 40, 40], [60, 30, 90, 50]], dtype=np.float32)
        none = np.zeros((0, 4), dtype=np.float32)
        records.append(ImageRecord(path, i + 1, 160, 90, boxes, np.array([0, 2]), none, np.zeros(0, dtype=np.int64)))
    split = Split("val", records, names, tuple(range(1, len(names) + 1)), DataReport(), image_root=folder)
    write_coco(split, folder / "instances_val.json")
    return folder


@pytest.mark.slow
def test_other_data_and_chosen_sections(tmp_path: Path) -> None:
    """A model file alone, on files: curves are left out with the reason, the order is the one asked for."""
    data = photos(tmp_path / "photos", ("person", "cycle", "car", "truck or bus"))
    out, text = tmp_path / "x.html", io.StringIO()
    config = zoominnet.ReportConfig(
        "demo-fa", data=str(data), split="val", out=out, sections=("data", "curves", "images", "features"), **FEW
    )
    zoominnet.report(config, console=Console(file=text, width=200))
    page = out.read_text(encoding="utf-8")
    assert [each.partition('"')[0] for each in page.split('<section id="')[1:]] == [
        "data",
        "curves",
        "images",
        "features",
    ]
    assert "Left out: none of these models has its run's metrics.jsonl beside it." in unescape(page)
    assert f"2 of the 3 images of {data} val, at equal distances" in page
    assert "photo0.png, boxes: 2" in page
    assert 'viewBox="0 0 160 90"' in page
    assert f"report: {out}, " in text.getvalue()
    with pytest.raises(UserError, match="exists already"):
        zoominnet.report(config)
    zoominnet.report(dataclasses.replace(config, overwrite=True, sections=("data",)), console=Console(quiet=True))
    assert "photo0.png" not in out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_images_that_cannot_be_decoded_are_told_of_and_not_shown(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", ("person", "cycle", "car", "truck or bus"))
    broken = data / "photo0.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    out, text = tmp_path / "x.html", io.StringIO()
    config = zoominnet.ReportConfig(
        "demo-fa", data=str(data), split="val", out=out, sections=("images", "masks"), **FEW
    )
    zoominnet.report(dataclasses.replace(config, images=3), console=Console(file=text, width=200))
    words = "1 of 3 images could not be decoded: their objects count as missed in the scores"
    assert words in text.getvalue()
    page = out.read_text(encoding="utf-8")
    assert f"<dt>not seen</dt><dd>{words}</dd>" in page
    assert "photo0.png" not in page
    assert "photo1.png, boxes: 2" in page


def test_data_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos(tmp_path / "photos", ("a", "b", "c"))
    line = refused(capsys, "demo-fa", "--data", data, "--out", tmp_path / "x.html")
    assert "has the classes a, b, c, demo-fa person, cycle, car, truck or bus; both need the same" in line


def test_the_command_is_the_one_that_was_given() -> None:
    words = ["runs/a", "runs/b", "--out", "x.html", "--overwrite", "--images", "5", "--sections", "data", "curves"]
    config = zoominnet.ReportConfig(
        ["runs/a", "runs/b"], out="x.html", overwrite=True, images=5, sections=["data", "curves"]
    )
    assert words_of_report(config) == words


def test_labels_tell_runs_apart() -> None:
    assert labels_of([Path("runs/fa"), Path("runs/la/student/checkpoints/step-00000020/model.safetensors")]) == [
        "fa",
        "step-00000020",
    ]
    assert labels_of([Path("/x/a/teacher"), Path("/x/b/teacher")]) == ["a/teacher", "b/teacher"]
    assert labels_of([Path("demo-fa"), Path("demo-fa")]) == ["demo-fa (1)", "demo-fa (2)"]


def test_images_at_equal_distances() -> None:
    assert evenly(10, None) == evenly(10, 10) == evenly(10, 99) == list(range(10))
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 1) == [0]


def test_no_file_of_metrics_is_no_line(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == ((), 0)


def test_worst_and_best() -> None:
    """By mean F1 over the models; one image without boxes is not shown."""
    box = np.array([[0, 0, 10, 10]], dtype=np.float32)
    none = np.zeros((0, 4), dtype=np.float32)
    records = [
        ImageRecord(None, i, 20, 20, box if i else none, np.zeros(1 if i else 0, dtype=np.int64)) for i in range(5)
    ]
    found = [Detections(box.astype(float), np.ones(1), np.zeros(1, dtype=np.int64))] * 5
    nothing = [Detections(none.astype(float), np.zeros(0), np.zeros(0, dtype=np.int64))] * 5

    def measurement(right: set[int]):
        errors = [image_errors(r, (found if i in right else nothing)[i]) for i, r in enumerate(records)]
        return type("Measurement", (), {"errors": errors, "undecodable": 0})()

    split = Split("val", records, ("car",), (1,), DataReport())
    material = Material([], [measurement({1, 2, 3}), measurement({1, 3})], split, 5, "", 0.25, 3)  # type: ignore[arg-type]
    assert material.ranked == [4, 2, 1, 3]
    assert material.worst_and_best == ([4, 2], [3])
    assert dataclasses.replace(material, shown=99).worst_and_best == ([4, 2], [3, 1])


def test_equal_words_mean_equal_images() -> None:
    one = TrainConfig(seed=1)
    assert data_words(one) == data_words(dataclasses.replace(one, seed=5, data_seed=1))
    assert data_words(one) != data_words(dataclasses.replace(one, seed=2))
    assert data_words(TrainConfig(data="x", val_fraction=0.2)) == "x val (a share of 0.2 of train)"
    assert data_words(TrainConfig(data="x", val_images=5)) == "x val, the first 5"


def test_the_images_are_those_that_the_run_was_validated_on(tmp_path: Path) -> None:
    """The first ones alone, or the part that a run divided off, or another split or data set."""
    run = TrainConfig(synthetic_images=(4, 6), val_images=3, data_seed=2, seed=7, synthetic_zoom=2.0)
    split = open_validation(run, scene_size=64, console=Console(quiet=True))
    scenes = SyntheticScenes(6, size=64, seed=2, split="val", zoom=2.0)
    assert [record.boxes.tolist() for record in split.records] == [scenes[i].boxes.tolist() for i in range(3)]
    data = photos(tmp_path / "photos", ("a", "b", "c"), count=10)
    parts = TrainConfig(data=str(data), train_split="val", val_fraction=0.3)
    split = open_validation(parts, scene_size=64, console=Console(quiet=True))
    assert len(split.records) == 3
    chosen = data_of(
        zoominnet.ReportConfig("x", data=str(data), split="val"), dataclasses.replace(run, val_fraction=0.5)
    )
    assert (chosen.val_images, chosen.val_fraction, chosen.val_split, chosen.data) == (None, None, "val", str(data))
    assert data_of(zoominnet.ReportConfig("x"), run) is run
    assert data_of(zoominnet.ReportConfig("x", split="test"), run).val_split == "test"


def test_the_teacher_of_the_feature_maps(tmp_path: Path) -> None:
    """One of the runs; else the one that is named; else that of the first student that was taught, if it is there."""
    student, teacher = read_run(Path("demo-fa"), "fa"), read_run(Path("demo-teacher"), "teacher")
    config = zoominnet.ReportConfig("demo-fa")
    assert find_teacher(config, [student, teacher]) == (teacher, "")
    named, _ = find_teacher(dataclasses.replace(config, teacher="demo-teacher"), [student])
    assert named is not None
    assert named.label == "demo-teacher"
    plain = read_run(Path("demo-fa-plain"), "plain")
    assert find_teacher(config, [plain]) == (None, "none of these runs learnt from one (--teacher names one)")

    def taught_by(name: str) -> Run:
        info = student.detector.info
        detector = type(
            "Detector",
            (),
            {
                "info": dataclasses.replace(info, config={**info.config, "teacher": name}),
                "model": student.detector.model,
            },
        )()
        return Run("fa", Path("fa"), detector)

    found, _ = find_teacher(config, [taught_by("demo-teacher")])
    assert found is not None
    assert found.detector.info.name == "teacher"
    assert find_teacher(config, [taught_by("train")]) == (
        None,
        "fa is a model file alone (--teacher names its teacher)",
    )
    gone, why = find_teacher(config, [taught_by(str(tmp_path / "gone"))])
    assert gone is None
    assert why.startswith(f"{tmp_path / 'gone'}: no such file or folder")


def test_config_of_an_older_file() -> None:
    """Options that today's version does not know, or that the file lacks."""
    run = read_run(Path("demo-fa"), "fa")
    info = dataclasses.replace(run.detector.info, config={"student": "fa", "an_option_of_old": 1})
    older = Run("fa", Path("fa"), type("Detector", (), {"info": info, "model": run.detector.model})())
    assert older.config == TrainConfig(student="fa")
    assert json.dumps(older.config.as_dict())
