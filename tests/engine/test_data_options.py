"""What the options of data do to a whole run: doubtful images, one split divided, frames of videos."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from zoominnet.config import TrainConfig
from zoominnet.data import Batch, BatchPlan, DetectionDataset, cache, make_loader, open_split
from zoominnet.engine import inference, trainer
from zoominnet.engine.checkpoint import MODEL, newest_checkpoint
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
        (("--augment", "crop", "crop"), "--augment: ('crop', 'crop') have one of them twice"),
        (
            ("--augment", "mosaic", "--cache", "device"),
            "--augment mosaic: --cache device keeps whole images, which are put together before they get there; give "
            "--cache ram or --cache disk, or leave one of the two out",
        ),
    ],
)
def test_options_that_cannot_be_used(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert tiny_train(*QUICK, *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_cache_changes_no_loss(
    data: Path,
    tiny_train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    small: None,
) -> None:
    """Teacher and student with an image that cannot be decoded, the student stopped in its second epoch and resumed."""
    damaged = data / "images" / "train" / "train-a_001.png"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    options = ("--data", str(data), "--deterministic", "--image-size", "32", "--channels", "8", "--resize", "letterbox")
    folder = ("--cache-folder", str(tmp_path / "cache"))
    train_step = trainer.Phase._train_step

    def interrupted(self: trainer.Phase, *args: Any) -> Any:
        outcome = train_step(self, *args)
        if self.name == "student" and self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return outcome

    assert tiny_train(*options, out="none") == 0
    assert "  cache " not in capsys.readouterr().out
    expected = outcome_of(tmp_path / "none")
    assert len(expected["student"][0]) == 8 + 2
    size, there = "8 images of 64 px, 0.0 GiB", {"disk": 0, "disk again": 7}
    for name, workers in (("ram", "1"), ("disk", "1"), ("disk again", "0"), ("device", "1")):
        kind = name.split()[0]
        options_of_cache = ("--cache", kind, "--workers", workers, *(folder if kind == "disk" else ()))
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Phase, "_train_step", interrupted)
            assert tiny_train(*options, *options_of_cache, out=name) == 130
        said = capsys.readouterr().out
        places = {"ram": "of shared memory", "device": "on cpu", "disk": f"in {tmp_path}/cache/"}
        assert f"\n  cache     {kind}: {size} {places[kind]}" in said
        if kind == "disk":
            assert f".images, {there[name]} of them there\n" in said
        assert f"cache     {kind}: {size}" in (tmp_path / name / "train.log").read_text()
        assert tiny_train(*options, *options_of_cache, "--resume", "True", out=name) == 0
        assert outcome_of(tmp_path / name) == expected


@pytest.mark.slow
def test_augmented_runs_go_on_bit_for_bit(
    data: Path, tiny_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    """Teacher and student, the student stopped in its second epoch and resumed with a cache and workers. Validation is of
    whole images."""
    options = ("--data", str(data), "--deterministic", "--image-size", "32", "--channels", "8", "--ignored", "honour")
    options += ("--augment", "mosaic", "crop")
    train_step, real = trainer.Phase._train_step, inference.DetectionDataset
    fed: list[Batch] = []
    measured: list[DetectionDataset] = []

    def watched(self: trainer.Phase, *args: Any) -> Any:
        fed.append(args[0])
        if self.config.out.name == "parts" and self.name == "student" and self.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, *args)

    def noted(*args: Any, **options: Any) -> DetectionDataset:
        measured.append(real(*args, **options))
        return measured[-1]

    monkeypatch.setattr(inference, "DetectionDataset", noted)
    monkeypatch.setattr(trainer.Phase, "_train_step", watched)
    assert tiny_train(*options, out="whole") == 0
    expected = DetectionDataset(open_split(data, "train"), 64, flip=True, seed=0, augment=("mosaic", "crop"))
    batches = [
        batch for epoch in (0, 1) for batch in make_loader(expected, BatchPlan(8, 2, seed=0).epoch_batches(epoch))
    ]
    for batch, other in zip(fed, batches * 2, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.objects, other.objects)
    assert {dataset.augment for dataset in measured} == {()}
    assert tiny_train(*options, out="parts") == 130
    monkeypatch.setattr(trainer.Phase, "_train_step", train_step)
    assert tiny_train(*options, "--resume", "True", "--cache", "ram", "--workers", "1", out="parts") == 0
    assert outcome_of(tmp_path / "whole") == outcome_of(tmp_path / "parts")


def outcome_of(out: Path) -> dict[str, tuple[list[str], dict[str, bytes]]]:
    """Of each phase the log and the last weights."""
    return {
        phase: (
            (out / phase / "metrics.jsonl").read_text().splitlines(),
            {name: tensor.numpy().tobytes() for name, tensor in last_weights(out / phase).items()},
        )
        for phase in ("teacher", "student")
    }


def last_weights(phase: Path) -> dict[str, Tensor]:
    return load_file(newest_checkpoint(phase / "checkpoints")[0] / MODEL)


def test_what_config_files_said_of_the_cache_before() -> None:
    """It was a flag; runs that were begun with it can be resumed."""
    for was, now in ((True, "ram"), (False, "none")):
        content = {**TrainConfig().as_dict(), "cache": was}
        del content["cache_folder"]
        config = TrainConfig(**content)
        assert config.cache == now
        assert config.changes_from(TrainConfig()) == []
    config = TrainConfig(cache="disk", cache_folder="images")  # type: ignore[arg-type]
    assert TrainConfig(**config.as_dict()) == config
    assert config.cache_folder == Path("images")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--cache-folder", "here"),
            "--cache-folder here: without --cache disk it is not used; add it, or leave this out",
        ),
        (
            ("--cache", "disk", "--cache-folder", "/dev/null/here"),
            "--cache-folder: /dev/null/here/",
        ),
        (("--cache", "device"), "--cache device: 8 images of 128 px take 0.0 GiB, cpu has 0.0 GiB free"),
    ],
)
def test_caches_that_cannot_be_used(
    tiny_train: Train,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 8 * 3 * 128**2 * 2 - 1)
    assert tiny_train(*QUICK, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.slow
def test_validation_images_that_are_trained_on_are_said(
    data: Path, tiny_train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [car]\n")
    assert tiny_train(*QUICK, "--data", str(data)) == 0
    assert "8 of 8 validation images are trained on too: scores will be too high" in capsys.readouterr().out


def test_runs_of_several_seeds_see_the_same_scenes(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"seed 0": [], "seed 1": ["--seed", "1"], "seed 1, data of 0": ["--seed", "1", "--data-seed", "0"]}
    for name, options in runs.items():
        assert tiny_train(*QUICK, *options, out=name) == 0
        assert f"--seed {0 if name.endswith('0') else 1}" in " ".join(capsys.readouterr().out.split("next:")[1].split())
    data, losses = (
        {name: read(tmp_path / name) for name in runs}
        for read in (
            lambda run: json.loads((run / "data.json").read_text()),
            lambda run: json.loads((run / "student" / "metrics.jsonl").read_text().splitlines()[0])["loss"],
        )
    )
    assert data["seed 0"] == data["seed 1, data of 0"] != data["seed 1"]
    assert len(set(losses.values())) == 3
