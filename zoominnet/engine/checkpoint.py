"""Checkpoints: folders of safetensors and JSON with a SHA-256 manifest, made visible by one rename.

A checkpoint is ``<run>/checkpoints/step-00001234/`` with

- ``model.safetensors``: the model's state dict; its metadata rebuild the model, so the file is enough to predict with,
- ``optimizer.safetensors`` and ``state.json``: what a run needs to go on,
- ``manifest.json``: sizes and SHA-256 of the others, the step and the validation AP.

Nothing is ever pickled or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoominnet
from zoominnet.errors import UserError
from zoominnet.models import RetinaNet, build_model

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_PREFIX, _TEMPORARY = "step-", ".writing-"
_METADATA_KEY = "zoominnet"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model. The message is one line with the remedy."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself: enough to rebuild the model and to read its labels.

    Attributes:
        name, backbone, num_classes, image_size, channels, stride_in_1x1, la_predictor: arguments of
            :func:`zoominnet.models.build_model`.
        class_names: of labels 0, 1, ...
        category_ids: of the training data's own numbering.
        config: the training configuration, for the record.
        ap: AP on the validation split when the file was written, None where it was not measured.
    """

    name: str
    backbone: str
    num_classes: int
    image_size: int
    channels: int
    stride_in_1x1: bool
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    config: dict[str, Any]
    ap: float | None
    la_predictor: str = "plain"  # that of files that do not say

    @classmethod
    def of(
        cls,
        model: RetinaNet,
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        config: dict[str, Any],
        ap: float | None,
    ) -> ModelInfo:
        return cls(
            name=model.name,
            backbone=model.backbone_name,
            num_classes=model.num_classes,
            image_size=model.image_size,
            channels=model.channels,
            stride_in_1x1=model.stride_in_1x1,
            class_names=class_names,
            category_ids=category_ids,
            config=config,
            ap=ap,
            la_predictor=model.la_predictor,
        )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f"{_TEMPORARY}{step:08d}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    metadata = {
        "format": "pt",
        _METADATA_KEY: json.dumps({"version": zoominnet.__version__, "info": info.__dict__}),
    }
    save_file({k: v.detach().contiguous().cpu() for k, v in model_state.items()}, temporary / MODEL, metadata)
    save_file({k: v.detach().contiguous().cpu() for k, v in optimizer_state.items()}, temporary / OPTIMIZER)
    _write_json(temporary / STATE, state)
    files = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": _sha256(temporary / name)}
        for name in (MODEL, OPTIMIZER, STATE)
    }
    _write_json(temporary / MANIFEST, {"step": step, "ap": info.ap, "files": files})
    for name in (*files, MANIFEST):
        _fsync(temporary / name)
    _fsync(temporary)
    if final.exists():  # the same step written again after a resume: same content
        shutil.rmtree(final)
    temporary.rename(final)
    _fsync(folder)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the manifest and compares every file with it.

    Returns:
        The manifest.

    Raises:
        CheckpointError: naming the file that is missing, truncated or altered.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: missing or damaged; use another checkpoint") from error
    for name in (MODEL, OPTIMIZER, STATE):
        if name not in files:
            raise CheckpointError(f"{path / MANIFEST}: does not list {name}; use another checkpoint")
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != files[name][0]:
            raise CheckpointError(f"{file}: {size} bytes where {files[name][0]} were written; use another checkpoint")
        if _sha256(file) != files[name][1]:
            raise CheckpointError(f"{file}: SHA-256 differs from the manifest's; use another checkpoint")
    return manifest


def best_checkpoint(folder: Path) -> Path:
    """The whole checkpoint of highest validation AP, the newest where none was measured.

    Raises:
        CheckpointError: there is none.
    """
    found = []
    for path in list_checkpoints(folder):
        try:
            manifest = verify_checkpoint(path)
        except CheckpointError:
            continue
        ap = manifest.get("ap")
        found.append((ap if ap is not None else -1.0, manifest["step"], path))
    if not found:
        raise CheckpointError(f"{folder}: no whole checkpoint; train first, or name another folder")
    return max(found)[2]


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all but the `keep` newest and the one of highest AP, and what an interrupted write left."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    paths = list_checkpoints(folder)
    if len(paths) <= keep:
        return
    best = best_checkpoint(folder)
    for path in paths[:-keep]:
        if path != best:
            shutil.rmtree(path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Model tensors, optimiser tensors and JSON state of a verified checkpoint."""
    verify_checkpoint(path)
    return load_file(path / MODEL), load_file(path / OPTIMIZER), json.loads((path / STATE).read_text(encoding="utf-8"))


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
    """The model file meant by a run folder (its best checkpoint), a checkpoint folder, or a .safetensors file.

    Checkpoints are verified against their manifest.

    Raises:
        CheckpointError: nothing usable there.
    """
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        verify_checkpoint(path)
        return path / MODEL
    for candidate in (path / "checkpoints", path / "student" / "checkpoints", path):
        if list_checkpoints(candidate):
            return best_checkpoint(candidate) / MODEL
    what = "no such file or folder" if not path.exists() else "holds no checkpoint"
    raise CheckpointError(f"{path}: {what}; give a run folder, a checkpoint folder or a model.safetensors file")


def load_model(path: Path, **options: Any) -> tuple[RetinaNet, ModelInfo]:
    """Rebuilds the model that `path` (see :func:`find_model_file`) holds, in evaluation mode.

    Args:
        path: a run folder, a checkpoint folder, or a .safetensors file written by this project.
        **options: further arguments of :func:`zoominnet.models.build_model` (post-processing).

    Raises:
        CheckpointError: missing, damaged, or not written by this project.
    """
    file = find_model_file(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error})") from error
    try:
        fields = json.loads(metadata[_METADATA_KEY])["info"]
        fields["class_names"], fields["category_ids"] = tuple(fields["class_names"]), tuple(fields["category_ids"])
        info = ModelInfo(**fields)
        model = build_model(
            info.name,
            info.backbone,
            info.num_classes,
            info.image_size,
            channels=info.channels,
            stride_in_1x1=info.stride_in_1x1,
            la_predictor=info.la_predictor,
            **options,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: not a model written by zoominnet.train (its metadata do not say which model it is); "
            "pretrained weights of other projects go to --weights"
        ) from error
    own = model.state_dict()
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
    if wrong or len(state) != len(own):
        raise CheckpointError(
            f"{file}: does not fit the {info.name} on {info.backbone} it claims to be ({len(wrong)} tensors differ)"
        )
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in state.values()):
        raise CheckpointError(f"{file}: holds NaN or Inf; use another checkpoint")
    model.load_state_dict(state)
    return model.eval(), info
