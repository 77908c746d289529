"""The folder of a run: whose it is, what it was trained on, and the command that measures what is in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from zoominnet.command import StandingOutput, seed_of_data
from zoominnet.config import ConfigError, TrainConfig
from zoominnet.data import Split
from zoominnet.engine.checkpoint import fsync

CONFIG_FILE, DATA_FILE, RESULT_FILE = "config.json", "data.json", "result.json"
LOCK_FILE, LOG_FILE = ".lock", "train.log"
PARTS_FOLDER = "parts"
GENERATED_SCENES_HASHED = 4


def lock_folder(out: Path, *, new: bool) -> IO[str]:
    """Refuses an --out that is in use, holds another run or cannot be written, before anything is loaded.

    Args:
        out: the run's folder, made if missing.
        new: it must not hold a run.

    Returns:
        The file whose lock is held while it is open. The lock is this process's alone (its children do not inherit
        it) and ends with it, however it ends.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        lock = (out / LOCK_FILE).open("a")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError | PermissionError):
            raise ConfigError(f"--out {out}: cannot be locked ({error.strerror}); name another folder") from error
        raise ConfigError(
            f"--out {out}: another run is at work in it; wait for its end, or name another folder"
        ) from error
    if new and (out / CONFIG_FILE).exists():
        lock.close()
        raise ConfigError(f"--out {out}: holds a run already; go on with it by --resume, or name another folder")
    return lock


def open_log(out: Path) -> IO[str]:
    """The run's log, to append to line by line."""
    return cast(IO[str], StandingOutput((out / LOG_FILE).open("a", encoding="utf-8", buffering=1), f"{out / LOG_FILE}"))


def write_json(file: Path, content: object) -> None:
    """Written whole or not at all; its content is on the disk when this returns, its name once the folder is synced."""
    temporary = file.with_suffix(".writing")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fsync(temporary)
    os.replace(temporary, file)


def part_file(out: Path, part: str) -> Path:
    """Where a run keeps one part of its data, "train" or "val", where it divided them itself: a COCO json."""
    return out / PARTS_FOLDER / f"instances_{part}.json"


def evaluation_command(config: TrainConfig, checkpoint: Path, image_root: Path | None = None) -> str:
    """The command line that measures `checkpoint` on what the run validated on.

    Args:
        image_root: the folder of the images, where the run divided its data itself and so keeps the parts.
    """
    words = ["python", "-m", "zoominnet.evaluate", str(checkpoint)]
    if image_root is not None:
        return shlex.join([*words, "--data", str(part_file(config.out, "val")), "--images", str(image_root)])
    words += ["--data", config.data, "--split", config.val_split]
    if config.data == "synthetic":
        words += ["--synthetic-images", str(config.synthetic_images[1]), "--seed", str(seed_of_data(config))]
    if config.data_format != "auto":
        words += ["--data-format", config.data_format]
    if config.images is not None:
        words += ["--images", config.images]
    if config.frame_step != 1:
        words += ["--frame-step", str(config.frame_step)]
    if config.keep_doubtful:
        words += ["--keep-doubtful"]
    return shlex.join(words)


def describe_data(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What a run is trained on, JSON-ready: by purpose of the split, its name, images, boxes and a SHA-256 of them all.

    Of generated scenes the boxes are not counted, and the first few stand for all, which follow from the same seed.
    """
    found = {}
    for purpose, split in splits.items():
        digest = hashlib.sha256(repr(split.class_names).encode())
        records = split.records[:GENERATED_SCENES_HASHED] if split.generated else split.records
        for record in records:
            digest.update(repr((record.image_id, record.width, record.height)).encode())
            for array in (record.boxes, record.labels, record.ignored, record.ignored_labels):
                digest.update(array.tobytes())
        boxes = None if split.generated else sum(len(record.boxes) for record in records)
        found[purpose] = {
            "split": split.name,
            "images": len(split.records),
            "boxes": boxes,
            "sha256": digest.hexdigest(),
        }
    return found


def _images_of(data: dict[str, Any]) -> str:
    boxes = "" if data["boxes"] is None else f" with {data['boxes']} boxes"
    return f"{data['images']} images{boxes}"


def changes_in_data(path: Path, now: dict[str, Any]) -> list[str]:
    """One line for each split that is not what it was when the run began.

    Args:
        path: what the run wrote of :func:`describe_data` then.
        now: the same of its data now.
    """
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        return [
            f"the {purpose} data have changed: {_images_of(old)} when the run began, {_images_of(new)} now"
            for purpose, new in now.items()
            if (old := then[purpose])["sha256"] != new["sha256"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{path} is missing or damaged, so whether the data are the same is not known"]
