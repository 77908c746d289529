"""Checkpoints: folders of safetensors and JSON with a SHA-256 manifest, made visible by one rename.

A checkpoint is ``<run>/checkpoints/step-00001234/`` with

- ``model.safetensors``: the model's state dict; its metadata rebuild the model, so the file is enough to predict with,
- ``optimizer.safetensors`` and ``state.json``: what a run needs to go on,
- ``manifest.json``: sizes and SHA-256 of the others and of itself, the step and the validation AP.

Nothing is ever pickled or unpickled. Once a run has a checkpoint there is a whole one at every moment: a new one appears
by a rename, an old one is renamed out of the way before any of its files goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoominnet.engine.checkpoint.model_file import CheckpointError, ModelInfo, is_ap, reason, require_finite, save_model
from zoominnet.errors import EXIT_IO_ERROR, UserError

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
PREFIX, TEMPORARY, DELETED = "step-", ".writing-", ".deleting-"
REPLACED = ".replaced"
"""Ends the name of a checkpoint that one of the same step takes the place of; it counts until that is done."""
_NAME = re.compile(rf"{PREFIX}(\d+)({re.escape(REPLACED)})?")


class CheckpointWriteError(UserError):
    """A checkpoint that could not be written: the disk is full, for instance. What was there before is untouched."""

    exit_status = EXIT_IO_ERROR


def fsync(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest file, which holds the SHA-256 of the rest of itself."""
    digest = hashlib.sha256(_to_json(manifest).encode()).hexdigest()
    return _to_json({**manifest, "sha256": digest})


def delete(path: Path) -> None:
    """Out of sight at once, so that no half-deleted checkpoint is ever seen."""
    hidden = path.with_name(f"{DELETED}{path.name}")
    if hidden.exists():
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def save_checkpoint(
    folder: Path,
    step: int,
    model_state: Mapping[str, Tensor],
    info: ModelInfo,
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Writes ``folder/step-<step>`` whole or not at all: written aside, synced to disk, then renamed.

    Args:
        folder: the run's checkpoints folder, made if missing.
        step: optimiser steps done.
        model_state: the model's state dict.
        info: what the file says of the model.
        optimizer_state: tensors by name.
        state: JSON-ready.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointWriteError: naming the reason and the bytes needed; nothing of it is left behind.
    """
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f"{TEMPORARY}{step:08d}"
    tensors = [{k: v.detach().contiguous().cpu() for k, v in each.items()} for each in (model_state, optimizer_state)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        _write_files(temporary, step, tensors, info, state)
        replaced = final.with_name(final.name + REPLACED)
        if final.exists():
            if replaced.exists():
                delete(replaced if _is_whole(final) else final)
            if final.exists():
                final.rename(replaced)
        temporary.rename(final)
        fsync(folder)
        if replaced.exists():
            delete(replaced)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error of its own
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for each in tensors for t in each.values())
        kept = next(reversed(list_checkpoints(folder)), None)
        raise CheckpointWriteError(
            f"{final}: cannot be written ({reason(error)}); it needs {needed:,} bytes, {_free_bytes(folder)} are free; "
            f"{kept.name if kept else 'no checkpoint'} is kept: make room, then go on with --resume"
        ) from error
    return final


def _write_files(
    folder: Path, step: int, tensors: list[dict[str, Tensor]], info: ModelInfo, state: Mapping[str, Any]
) -> None:
    save_model(folder / MODEL, tensors[0], info)
    save_file(tensors[1], folder / OPTIMIZER)
    (folder / STATE).write_text(_to_json(state), encoding="utf-8")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in (MODEL, OPTIMIZER, STATE)
    }
    (folder / MANIFEST).write_text(_seal({"step": step, "ap": info.ap, "files": files}), encoding="utf-8")
    for name in (*files, MANIFEST):
        fsync(folder / name)
    fsync(folder)


def _free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, of one step the one that is being replaced first."""
    found = [(match, path) for path in folder.glob(f"{PREFIX}*") if (match := _NAME.fullmatch(path.name))]
    return [
        path for match, path in sorted(found, key=lambda each: (int(each[0][1]), each[0][2] is None)) if path.is_dir()
    ]


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a checkpoint's manifest, which it checks, and compares the files' sizes with it.

    Raises:
        CheckpointError: naming the file that is missing, altered or of another size.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        sizes = {name: content["files"][name]["bytes"] for name in (MODEL, OPTIMIZER, STATE)}
        sums = [content["files"][name]["sha256"] for name in sizes]
        if not (type(content["step"]) is int and is_ap(content["ap"]) and all(isinstance(each, str) for each in sums)):
            raise ValueError("no manifest of this project")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST}: missing or damaged; use another checkpoint") from error
    if text != _seal(content):
        raise CheckpointError(f"{path / MANIFEST}: its SHA-256 differs from the one it holds; use another checkpoint")
    for name, expected in sizes.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size is None:
            raise CheckpointError(f"{path / name}: missing; use another checkpoint")
        if size != expected:
            raise CheckpointError(f"{path / name}: {size} bytes where {expected} were written; use another checkpoint")
    return manifest


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Compares every byte of a checkpoint with its manifest.

    Returns:
        The manifest.

    Raises:
        CheckpointError: naming the file that is missing, truncated or altered.
    """
    manifest = read_manifest(path)
    for name in (MODEL, OPTIMIZER, STATE):
        if _sha256(path / name) != manifest["files"][name]["sha256"]:
            raise CheckpointError(f"{path / name}: SHA-256 differs from the manifest's; use another checkpoint")
    return manifest


def _is_whole(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Model tensors, optimiser tensors and JSON state of a checkpoint, which it verifies.

    Raises:
        CheckpointError: damaged, or a tensor is not finite.
    """
    verify_checkpoint(path)
    try:
        model, optimizer = load_file(path / MODEL), load_file(path / OPTIMIZER)
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not written by this project ({reason(error)}); use another checkpoint"
        ) from error
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        require_finite(path / name, tensors)
    return model, optimizer, state
