"""Trains the models that come with the package (``zoominnet/models/shipped``) and writes what is known of them.

    python benchmarks/train_demo_models.py [--work runs/demo-models] [--only NAME ...] [--threads N]

A teacher, then each student without and with distillation, all from random weights on the same synthetic scenes with the
same seed and schedule. It goes on where it was stopped; each model carries the commit at which its training began. Scores
are of the files as shipped (float16), on a split of scenes on which nothing was trained and no checkpoint was chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch
from fused_vs_reference import cpu_name
from rich.console import Console

import zoominnet
from zoominnet.command import make_console
from zoominnet.config import PROFILES, TrainConfig
from zoominnet.engine.checkpoint import load_model
from zoominnet.engine.checkpoint.model_file import save_model
from zoominnet.models.shipped import FOLDER

ROOT = Path(__file__).parents[1]
COMMAND = "python benchmarks/train_demo_models.py"
RESULTS = ROOT / "benchmarks" / "results" / "demo-models"
TRAINING_SCENES, VALIDATION_SCENES, TEST_SCENES = 4000, 200, 500
EPOCHS = {"teacher": 16, "fa": 8, "la": 8, "snet": 8}
STUDENTS = {"fa": "feature level alignment", "la": "layer adaption", "snet": "plain RetinaNet"}
NAMES = ["demo-teacher", *(f"demo-{student}{kind}" for student in STUDENTS for kind in ("-plain", ""))]
LAMBDA_DISTILL = {"fa": 0.01, "la": 0.002, "snet": 0.002}
"""Of `fa` each map has as many cells as the teacher's that it is compared with; those of the others are coarser and can follow
it less (docs/results.md)."""
LARGEST_TOTAL = 12_000_000
"""Bytes of all files together."""


def config_of(name: str, work: Path) -> TrainConfig:
    """How a model is trained."""
    student = name.split("-")[1]
    distil = student in STUDENTS and not name.endswith("-plain")
    scene = PROFILES["demo"]
    return dataclasses.replace(
        scene,
        student="none" if student == "teacher" else student,
        epochs=EPOCHS[student],
        synthetic_images=(TRAINING_SCENES, VALIDATION_SCENES),
        distill=distil or student == "teacher",
        teacher=str(work / "demo-teacher") if distil else "train",
        lambda_distill=LAMBDA_DISTILL[student] if distil else scene.lambda_distill,
        check_teacher=False,
        amp="bf16",
        fused_kernels=True,
        cache="ram",
        log_every=50,
        resume="auto",
        out=work / name,
    )


def commit_of(folder: Path) -> str:
    """The commit at which a training began, kept in its folder."""
    file = folder / "commit"
    if not file.exists():
        if changed := git("status", "--porcelain", "--untracked-files=no", "zoominnet", "kernels", "csrc"):
            raise SystemExit(f"commit first, so that the models can be made again: {changed.splitlines()[0]}")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(git("rev-parse", "HEAD") + "\n")
    return file.read_text().strip()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def ship(name: str, work: Path) -> Path:
    """Writes a trained model's best checkpoint as a file of float16."""
    model, info = load_model(work / name)
    half = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    assert all(bool(torch.isfinite(value).all()) for value in half.values() if value.is_floating_point()), name
    kept = {key: value for key, value in info.config.items() if key not in ("out", "teacher", "debug", "resume")}
    file = FOLDER / f"{name}.safetensors"
    save_model(file, {key: value.contiguous() for key, value in half.items()}, dataclasses.replace(info, config=kept))
    return file


def measure(name: str, file: Path, work: Path) -> dict[str, Any]:
    """What is known of a shipped file."""
    scene, student = PROFILES["demo"], name.split("-")[1]
    options = zoominnet.EvaluateConfig(
        file,
        split="test",
        synthetic_images=TEST_SCENES,
        protocol="coco",
        batch_size=16,
        latency_repeats=0,
    )
    result = zoominnet.evaluate(options, console=Console(quiet=True))
    scores = result["scores"]["direct"]["COCO"]
    how = "RetinaNet, the teacher of all students"
    if student != "teacher":
        how = f"{STUDENTS[student]}, {'alone' if name.endswith('-plain') else 'distilled'}"
    steps = max(int(path.name.split("-")[1]) for path in (work / name).rglob("step-*"))
    return {
        "file": file.name,
        "summary": how,
        "image_size": result["image_size"],
        **{score: round(scores[score], 4) for score in ("AP", "AP50", "AP75", "AP_S", "AP_M")},
        "gflops": round(result["cost"]["gflops"], 4),
        "parameters": result["cost"]["parameters"],
        "bytes": file.stat().st_size,
        "training": {
            "steps": steps,
            "seed": scene.seed,
            "lambda_distill": None if student == "teacher" or name.endswith("-plain") else LAMBDA_DISTILL[student],
            "commit": commit_of(work / name),
        },
    }


def keep_log(name: str, work: Path) -> None:
    """The training's own log and its validations, among the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    log = (work / name / "train.log").read_text().replace(f"{work}/", "runs/demo-models/")
    (metrics,) = (work / name).glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    curves = [
        {key: line.get(key) for key in ("step", "AP", "AP50", "AP_S")}
        if line["kind"] == "val"
        else {key: value for key, value in line.items() if key not in ("images", "kind", "epoch")}
        for line in lines
        if line["kind"] == "val" or (line["kind"] == "train" and line["step"] % 250 == 0)
    ]
    (RESULTS / f"{name}.log").write_text(log + "".join(json.dumps(line) + "\n" for line in curves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/demo-models"), help="folder of the trainings")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="train these alone")
    parser.add_argument("--threads", type=int, help="of torch; default: all")
    parser.add_argument("--no-ship", action="store_true", help="train alone, write no file of the package")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.only:
        if not (options.work / name / "result.json").exists():
            commit_of(options.work / name)
            zoominnet.train(config_of(name, options.work), console=make_console())
    if options.no_ship:
        return
    entries = {}
    for name in NAMES:
        entries[name] = measure(name, ship(name, options.work), options.work)
        keep_log(name, options.work)
        print(name, entries[name]["AP"], flush=True)
    total = sum(entry["bytes"] for entry in entries.values())
    assert total <= LARGEST_TOTAL, f"{total} bytes"
    scene = PROFILES["demo"]
    about = {
        "scenes": f"COCO scores on {TEST_SCENES} synthetic scenes of split 'test', seed {scene.seed}, zoom "
        f"{scene.synthetic_zoom:g}, classes {scene.synthetic_classes}. Trained on {TRAINING_SCENES} scenes; drawn, so free of "
        "any data set's licence.",
        "use": "python -m zoominnet.predict NAME IMAGE   python -m zoominnet.evaluate NAME --split test "
        f"--synthetic-images {TEST_SCENES}",
        "made": {
            "command": COMMAND + (f" --threads {options.threads}" if options.threads else ""),
            "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
            "threads": options.threads or torch.get_num_threads(),
            "torch": torch.__version__,
            "date": f"{date.today()}",
            "test_scenes": TEST_SCENES,
        },
        "models": entries,
    }
    (FOLDER / "models.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
