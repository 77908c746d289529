"""Which of a run's checkpoints: the newest, the best, those to delete, the one that a path means."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoominnet.engine.checkpoint.format import (
    DELETED,
    MANIFEST,
    MODEL,
    TEMPORARY,
    CheckpointWriteError,
    delete,
    list_checkpoints,
    read_manifest,
    verify_checkpoint,
)
from zoominnet.engine.checkpoint.model_file import CheckpointError, ModelInfo, read_model, reason
from zoominnet.models import RetinaNet
from zoominnet.models.shipped import shipped_file

logger = logging.getLogger("zoominnet.engine")


def rank(manifest: Mapping[str, Any]) -> tuple[float, int]:
    ap = manifest["ap"]
    return (ap if ap is not None else -1.0, manifest["step"])


def best_checkpoint(folder: Path) -> Path:
    """The whole checkpoint of highest validation AP, the newest where none was measured; logs which are damaged.

    Raises:
        CheckpointError: there is none.
    """
    found = []
    for path in list_checkpoints(folder):
        try:
            found.append((rank(verify_checkpoint(path)), path))
        except CheckpointError as error:
            logger.warning("passed over %s", error)
    if not found:
        raise CheckpointError(f"{folder}: no whole checkpoint; train first, or name another folder")
    return max(found)[1]


def prune_checkpoints(written: Path, keep: int) -> None:
    """Deletes what was there before `written`, a checkpoint known to be whole, except the best of it and what `keep`
    says; and what an interrupted write or deletion left.

    Later steps than that of `written` can only be damaged ones, which a resumed run passed over; it will write them anew.
    Of earlier ones the sizes are looked at, not the contents, which would take as long as writing them.

    Args:
        written: the run's newest checkpoint.
        keep: newest checkpoints to keep, `written` among them, besides the one of highest AP.

    Raises:
        CheckpointWriteError: something cannot be deleted.
    """
    folder = written.parent
    try:
        for leftover in [path for prefix in (TEMPORARY, DELETED) for path in folder.glob(f"{prefix}*")]:
            shutil.rmtree(leftover)
        paths = list_checkpoints(folder)
        found = {}
        for path in paths[: paths.index(written) + 1]:
            try:
                found[path] = rank(read_manifest(path))
            except CheckpointError as error:
                logger.warning("deleted, for it is damaged: %s", error)
                delete(path)
        kept = {*list(found)[-keep:], max(found, key=lambda path: found[path], default=written)}
        for path in found.keys() - kept:
            delete(path)
    except OSError as error:
        raise CheckpointWriteError(
            f"{folder}: an old checkpoint cannot be deleted ({reason(error)}); the new one is kept: look at the folder's "
            "permissions, then go on with --resume"
        ) from error


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        Its path (None where there is none), and a line for each newer one that is damaged.
    """
    problems = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return path, problems
    return None, problems


def find_model_file(path: Path) -> Path:
    """The model file meant by a run folder (its best checkpoint), a checkpoint folder, a .safetensors file, or, where there
    is no such path, the name of a shipped model.

    Checkpoints are verified against their manifest.

    Raises:
        CheckpointError: nothing usable there.
    """
    if path.is_file():
        if path.name == MODEL and (path.parent / MANIFEST).is_file():
            verify_checkpoint(path.parent)
        return path
    if (path / MANIFEST).is_file():
        verify_checkpoint(path)
        return path / MODEL
    for candidate in (path / "checkpoints", path / "student" / "checkpoints", path):
        if list_checkpoints(candidate):
            return best_checkpoint(candidate) / MODEL
    if _holds_a_teacher_alone(path):
        return best_checkpoint(path / "teacher" / "checkpoints") / MODEL
    if not path.exists() and (shipped := shipped_file(str(path))) is not None:
        return shipped
    what = "no such file or folder" if not path.exists() else "holds no checkpoint"
    raise CheckpointError(
        f"{path}: {what}; give a run folder, a checkpoint folder, a model.safetensors file or a name that "
        "`zoominnet models` lists"
    )


def _holds_a_teacher_alone(path: Path) -> bool:
    """Whether `path` is a run of --student none, whose teacher is its result."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return json.loads((path / "config.json").read_text(encoding="utf-8"))["student"] == "none"
    return False


def load_model(path: Path, **options: Any) -> tuple[RetinaNet, ModelInfo]:
    """Rebuilds the model that `path` (see :func:`find_model_file`) holds, in evaluation mode.

    Args:
        path: a run folder, a checkpoint folder, a .safetensors file written by this project, or the name of a shipped model.
        **options: further arguments of :func:`zoominnet.models.build_model` (post-processing).

    Raises:
        CheckpointError: missing, damaged, or not written by this project.
    """
    return read_model(find_model_file(path), **options)
