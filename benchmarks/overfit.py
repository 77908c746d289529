"""Trains a model on eight real images until it knows them by heart: a sound training comes close to AP 1 on these.

    python benchmarks/overfit.py ../shared/data/visdrone-mini --json FILE -- --weights FILE.safetensors --image-size 512 ...

What stands behind ``--`` are options of ``python -m zoominnet.train``. The images are the first of each scene, by name, with
20 to 40 boxes, of the first eight scenes that have one. They are validated on as well. Flips stay on: what is learnt
by heart are sixteen images.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anchor_bound import bound, own_command
from measure import processor_name, read_commit

from zoominnet.data import ImageRecord, open_split
from zoominnet.train import main as train_main

IMAGES = 8
FEWEST, MOST = 20, 40
"""Boxes of an image that is chosen."""
COPIES = 25
"""Of each image in the training split, so that an epoch, and with it a checkpoint, is not a step or two."""


def choose(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Of each scene the first record with `FEWEST` to `MOST` boxes, of the first `IMAGES` scenes that have one."""
    first: dict[str, ImageRecord] = {}
    for record in records:
        assert record.path is not None
        if FEWEST <= len(record.boxes) <= MOST:
            first.setdefault(record.path.stem.split("_")[0], record)
    return list(first.values())[:IMAGES]


def write_split(source: Path, names: Sequence[str], folder: Path, copies: int) -> None:
    """A VisDrone split in `folder` with `copies` of each image of those of `source`; the copies are hard links."""
    for part, suffix in (("images", ".jpg"), ("annotations", ".txt")):
        (folder / part).mkdir(parents=True)
        for name in names:
            first = folder / part / f"{name}_0{suffix}"
            shutil.copyfile(source / part / f"{name}{suffix}", first)
            for copy in range(1, copies):
                os.link(first, folder / part / f"{name}_{copy}{suffix}")


def curve(metrics: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of a run's metrics.jsonl: the validations, and of the steps up to each the mean losses."""
    validations, losses, since = [], [], []
    for line in map(json.loads, metrics.read_text(encoding="utf-8").splitlines()):
        if line["kind"] == "train":
            since.append(line)
        elif line["kind"] == "val":
            validations.append({name: value for name, value in line.items() if name not in ("kind", "classes")})
            means = {
                name: sum(each[name] for each in since) / len(since) for name in ("classification", "bbox_regression")
            }
            losses.append({"step": line["step"], **means})
            since = []
    return validations, losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of a VisDrone data set with a split train")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("options", nargs="+", help="-- and options of zoominnet.train, without --data and --out")
    arguments = parser.parse_args()
    command, commit = own_command(arguments.json), read_commit()
    train = open_split(arguments.data, "train")
    chosen = choose(train.records)
    names = [record.path.stem for record in chosen if record.path is not None]
    assert train.image_root is not None
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "data"), Path(folder, "run")
        write_split(train.image_root.parent, names, data / "train", COPIES)
        write_split(train.image_root.parent, names, data / "val", 1)
        started, used = time.time(), time.process_time()
        status = train_main([*arguments.options, "--data", str(data), "--out", str(out), "--log-every", "1"])
        if status != 0:
            return status
        seconds, cpu_seconds = time.time() - started, time.process_time() - used
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        validations, losses = curve(out / "student" / "metrics.jsonl")
    result = {
        "what": "one model trained on eight real images, and validated on the same",
        "command": command,
        "hardware": f"{torch.get_num_threads()} core(s) of an {processor_name()}, shared with other work; no GPU used",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "minutes": round(seconds / 60, 1),
        "cpu_minutes": round(cpu_seconds / 60, 1),
        "images": {name: len(record.boxes) for name, record in zip(names, chosen, strict=True)},
        "bound": bound(train, config["student"], config["image_size"], chosen),
        "validations": validations,
        "mean losses since the last validation": losses,
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"AP {validations[-1]['AP']:.4f} after {validations[-1]['step']} steps; at most {result['bound']['100 detections']['AP']:.4f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
