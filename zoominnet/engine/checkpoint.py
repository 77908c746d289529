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
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoominnet
from zoominnet.config import MAX_IMAGE_SIZE
from zoominnet.data import ResizeMode
from zoominnet.errors import EXIT_IO_ERROR, UserError
from zoominnet.models import RetinaNet, build_model
from zoominnet.models.weights import METADATA_KEY

DTYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""What a model holds, by safetensors' names."""
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_PREFIX, _TEMPORARY, _DELETED = "step-", ".writing-", ".deleting-"
_REPLACED = ".replaced"
"""Ends the name of a checkpoint that one of the same step takes the place of; it counts until that is done."""
_NAME = re.compile(rf"{_PREFIX}(\d+)({re.escape(_REPLACED)})?")

logger = logging.getLogger("zoominnet.engine")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model. The message is one line with the remedy."""


class CheckpointWriteError(UserError):
    """A checkpoint that could not be written: the disk is full, for instance. What was there before is untouched."""

    exit_status = EXIT_IO_ERROR


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

    def check(self) -> None:
        """Refuses what :func:`zoominnet.models.build_model` would not.

        Raises:
            ValueError: a field has the wrong type or range.
        """
        names, ids = self.class_names, self.category_ids
        if not (
            type(self.image_size) is int
            and 0 < self.image_size <= MAX_IMAGE_SIZE
            and len(names) == len(ids) == self.num_classes
            and all(isinstance(name, str) for name in names)
            and all(type(each) is int for each in ids)
            and isinstance(self.config, dict)
            and self.resize in get_args(ResizeMode)
            and is_ap(self.ap)
        ):
            raise ValueError("no description of a model")

    @property
    def resize(self) -> ResizeMode:
        """How images became square when the model was trained."""
        return self.config.get("resize", "squash")

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


def is_ap(value: object) -> bool:
    """Whether `value` can stand for an AP: None or a number from 0 to 1."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


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


def _delete(path: Path) -> None:
    """Out of sight at once, so that no half-deleted checkpoint is ever seen."""
    hidden = path.with_name(f"{_DELETED}{path.name}")
    if hidden.exists():
        shutil.rmtree(hidden)
    path.rename(hidden)
    shutil.rmtree(hidden)


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later changes of `tensors` do not reach."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


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
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f"{_TEMPORARY}{step:08d}"
    tensors = [{k: v.detach().contiguous().cpu() for k, v in each.items()} for each in (model_state, optimizer_state)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        _write_files(temporary, step, tensors, info, state)
        replaced = final.with_name(final.name + _REPLACED)
        if final.exists():
            if replaced.exists():
                _delete(replaced if _is_whole(final) else final)
            if final.exists():
                final.rename(replaced)
        temporary.rename(final)
        fsync(folder)
        if replaced.exists():
            _delete(replaced)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error of its own
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for each in tensors for t in each.values())
        kept = next(reversed(list_checkpoints(folder)), None)
        raise CheckpointWriteError(
            f"{final}: cannot be written ({_reason(error)}); it needs {needed:,} bytes, {_free_bytes(folder)} are free; "
            f"{kept.name if kept else 'no checkpoint'} is kept: make room, then go on with --resume"
        ) from error
    return final


def _write_files(
    folder: Path, step: int, tensors: list[dict[str, Tensor]], info: ModelInfo, state: Mapping[str, Any]
) -> None:
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps({"version": zoominnet.__version__, "info": info.__dict__}),
    }
    save_file(tensors[0], folder / MODEL, metadata)
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


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, so that training waits for a copy of the tensors, not for the disk.

    One checkpoint at a time, each followed by the deletion of old ones. Takes memory for one copy of the tensors.

    Args:
        folder: the run's checkpoints folder.
        keep: see :func:`prune_checkpoints`.
        before: called in the thread before each write.
    """

    def __init__(self, folder: Path, keep: int, before: Callable[[], None] = lambda: None) -> None:
        self.folder, self.keep, self.before = folder, keep, before
        self._pending: Future[Path] | None = None
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        info: ModelInfo,
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Waits for the write before, copies the tensors and starts writing; arguments as :func:`save_checkpoint`.

        Raises:
            CheckpointWriteError: of the write before.
        """
        self.wait()
        arguments = (self.folder, step, to_cpu(model_state), info, to_cpu(optimizer_state), dict(state))
        pending: Future[Path] = Future()

        def write() -> None:
            try:
                self.before()
                path = save_checkpoint(*arguments)
                prune_checkpoints(path, self.keep)
            except BaseException as error:  # raised again by wait(), in the thread that trains
                pending.set_exception(error)
            else:
                pending.set_result(path)

        # A daemon, so that a second Ctrl-C need not wait for the disk.
        self._thread = threading.Thread(target=write, name="checkpoint-writer", daemon=True)
        self._thread.start()
        self._pending = pending

    def poll(self) -> None:
        """Raises the error of a write that has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last write is done, or raises its error (once).

        And when its thread has ended: while that gives its tensors back, the end of this process would abort it.
        """
        if self._thread is not None:
            self._thread.join()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, of one step the one that is being replaced first."""
    found = [(match, path) for path in folder.glob(f"{_PREFIX}*") if (match := _NAME.fullmatch(path.name))]
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


def _rank(manifest: Mapping[str, Any]) -> tuple[float, int]:
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
            found.append((_rank(verify_checkpoint(path)), path))
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
        for leftover in [path for prefix in (_TEMPORARY, _DELETED) for path in folder.glob(f"{prefix}*")]:
            shutil.rmtree(leftover)
        paths = list_checkpoints(folder)
        found = {}
        for path in paths[: paths.index(written) + 1]:
            try:
                found[path] = _rank(read_manifest(path))
            except CheckpointError as error:
                logger.warning("deleted, for it is damaged: %s", error)
                _delete(path)
        kept = {*list(found)[-keep:], max(found, key=lambda path: found[path], default=written)}
        for path in found.keys() - kept:
            _delete(path)
    except OSError as error:
        raise CheckpointWriteError(
            f"{folder}: an old checkpoint cannot be deleted ({_reason(error)}); the new one is kept: look at the folder's "
            "permissions, then go on with --resume"
        ) from error


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
            f"{path}: not written by this project ({_reason(error)}); use another checkpoint"
        ) from error
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        _require_finite(path / name, tensors)
    return model, optimizer, state


def _require_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file}: {name} holds NaN or Inf; use another checkpoint")


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
        if path.name == MODEL and (path.parent / MANIFEST).is_file():
            verify_checkpoint(path.parent)
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
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            kinds = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({_reason(error)})") from error
    try:
        fields = json.loads(metadata[METADATA_KEY])["info"]
        fields["class_names"], fields["category_ids"] = tuple(fields["class_names"]), tuple(fields["category_ids"])
        info = ModelInfo(**fields)
        info.check()

        def build() -> RetinaNet:
            return build_model(
                info.name,
                info.backbone,
                info.num_classes,
                info.image_size,
                channels=info.channels,
                stride_in_1x1=info.stride_in_1x1,
                la_predictor=info.la_predictor,
                **options,
            )

        with torch.device("meta"):  # no memory for what a file merely claims to be
            own = {name: (tuple(x.shape), DTYPE_NAMES[x.dtype]) for name, x in build().state_dict().items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # RecursionError is a RuntimeError
        raise CheckpointError(
            f"{file}: not a model written by zoominnet.train (its metadata do not say which model it is); "
            "pretrained weights of other projects go to --weights"
        ) from error
    if different := [name for name in own.keys() | kinds.keys() if own.get(name) != kinds.get(name)]:
        raise CheckpointError(
            f"{file}: does not fit the {info.name} on {info.backbone} it claims to be ({len(different)} tensors differ, "
            f"the first is {min(different)}); use another checkpoint"
        )
    state = load_file(file)
    _require_finite(file, state)
    model = build()
    model.load_state_dict(state)
    return model.eval(), info
