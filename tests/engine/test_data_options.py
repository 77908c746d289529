"""What the options of data do to a whole run: doubtful images, one split divided, frames of videos."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoominnet.data import open_split
from zoominnet.evaluate import main as evaluate_main

Train = Callable[..., int]
QUICK = ("--no-distill", "--epochs", "1", "--max-steps", "1")
DOUBTFUL = "image with a label that could not be understood"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """YOLO: train and val of three scenes of three frames each, one of them in each with a label of no known class."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for scene in "abc":
            for frame in range(3):
                image = root / "images" / split / f"{split}-{scene}_{frame:03d}.png"
                label = root / "labels" / split / f"{split}-{scene}_{frame:03d}.txt"
                for path in (image, label):
                    path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(image)
                label.write_text("0 0.5 0.5 0.3 0.3\n" + ("7 0.2 0.2 0.1 0.1\n" if (scene, frame) == ("b", 1) else ""))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]\n")
    return root


@pytest.mark.slow
def test_doubtful_images_are_left_out_of_training_and_scores(
    data: Path, tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_train(*QUICK, "--data", str(data)) == 0
    out = " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["left_out_images"] == {"training": {DOUBTFUL: 1}, "validation": {DOUBTFUL: 1}}
    assert f"1 x {DOUBTFUL}" in out
    assert "train-b_001.png" in out
    assert "(8 images, 1 left out)" in out
    scores = tmp_path / "scores.json"
    measure = [
        str(tmp_path / "run"),
        "--data",
        str(data),
        "--device",
        "cpu",
        "--workers",
        "0",
        "--latency-repeats",
        "0",
    ]
    assert evaluate_main([*measure, "--json", str(scores)]) == 0
    assert f"8; 1 left out (1 x {DOUBTFUL})" in " ".join(capsys.readouterr().out.split())
    measured = json.loads(scores.read_text())
    assert measured["left_out_images"] == {DOUBTFUL: 1}
    assert {protocol["images"] for protocol in measured["scores"]["direct"].values()} == {8}
    kept = tmp_path / "kept.json"
    assert evaluate_main([*measure, "--keep-doubtful", "--json", str(kept)]) == 0
    assert {protocol["images"] for protocol in json.loads(kept.read_text())["scores"]["direct"].values()} == {9}


@pytest.mark.slow
def test_doubtful_images_can_be_trained_on(data: Path, tiny_train: Train, tmp_path: Path) -> None:
    assert tiny_train(*QUICK, "--data", str(data), "--keep-doubtful") == 0
    described = json.loads((tmp_path / "run" / "data.json").read_text())
    assert [described[part]["images"] for part in ("training", "validation")] == [9, 9]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["left_out_images"]["training"] == {}


@pytest.mark.slow
def test_one_split_is_divided_and_the_parts_are_kept(
    data: Path, tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = data / "images" / "train"
    (data / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    monkeypatch.chdir(tmp_path)
    divided = ("--data", "data", "--val-fraction", "0.3", "--seed", "3")
    assert tiny_train(*QUICK, *divided) == 0
    out = capsys.readouterr().out
    parts = {
        name: open_split(tmp_path / "run" / "parts" / f"instances_{name}.json", name, images=single)
        for name in ("train", "val")
    }
    scenes = {name: {r.path.name[:7] for r in part.records if r.path} for name, part in parts.items()}
    assert not scenes["train"] & scenes["val"]
    assert sum(len(part.records) for part in parts.values()) == 8  # one is doubtful
    assert 2 <= len(parts["val"].records) <= 3
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("next:")))
    scores = tmp_path / "scores.json"
    options = ("--device", "cpu", "--workers", "0", "--latency-repeats", "0", "--json", str(scores))
    assert evaluate_main([*words[4:], *options]) == 0
    measured = json.loads(scores.read_text())["scores"]["direct"]["COCO"]
    trained = json.loads((tmp_path / "run" / "result.json").read_text())["models"]["student"]
    assert measured["images"] == len(parts["val"].records)
    assert measured["boxes"] == trained["boxes"] == sum(len(record.boxes) for record in parts["val"].records)
    again = [(tmp_path / "run" / "parts" / f"instances_{name}.json").read_bytes() for name in ("train", "val")]
    assert tiny_train(*QUICK, *divided, "--resume") == 0
    assert [(tmp_path / "run" / "parts" / f"instances_{n}.json").read_bytes() for n in ("train", "val")] == again


def test_a_first_try_without_a_val_split_names_the_option(
    data: Path, tiny_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    assert tiny_train(*QUICK, "--data", str(data)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no split 'val': found train (yolo)" in line
    assert line.endswith("divide it for training into train and val by --val-fraction 0.2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--val-fraction", "1"), "--val-fraction: 1.0 is not over 0 and below 1"),
        (("--val-fraction", "0.2"), "--val-fraction: synthetic scenes have two splits"),
        (("--frame-step", "0"), "--frame-step: 0 is not at least 1"),
    ],
)
def test_options_that_cannot_be_used(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert tiny_train(*QUICK, *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_validation_images_that_are_trained_on_are_said(
    data: Path, tiny_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [car]\n")
    assert tiny_train(*QUICK, "--data", str(data)) == 0
    assert "8 of 8 validation images are trained on too: scores will be too high" in capsys.readouterr().out
