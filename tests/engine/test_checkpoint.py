"""Checkpoints: what is in them, which is taken, which deleted. Faults are in test_faults_checkpoint.py."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoominnet.engine.checkpoint import (
    MANIFEST,
    MODEL,
    CheckpointError,
    CheckpointWriter,
    ModelInfo,
    best_checkpoint,
    find_model_file,
    list_checkpoints,
    load_model,
    load_state,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from zoominnet.engine.checkpoint.format import _seal
from zoominnet.engine.log import RunLog
from zoominnet.models import build_model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("snet", "resnet18", num_classes=2, image_size=32, channels=8)


def save(folder: Path, model: torch.nn.Module, step: int, ap: float | None = None) -> Path:
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {"lr": 0.1}, ap)
    return save_checkpoint(folder, step, model.state_dict(), info, {"momentum.0": torch.ones(3)}, {"step": step})


def test_round_trip(tmp_path: Path, model: torch.nn.Module) -> None:
    path = save(tmp_path / "checkpoints", model, 7, 0.25)
    assert path.name == "step-00000007"
    tensors, momentum, state = load_state(path)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())
    assert momentum["momentum.0"].tolist() == [1, 1, 1]
    assert state == {"step": 7}
    for source in (tmp_path, path, path / MODEL):
        loaded, info = load_model(source)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
        assert not loaded.training
        assert (info.class_names, info.category_ids, info.ap, info.config) == (("a", "b"), (1, 2), 0.25, {"lr": 0.1})


def test_best_newest_and_pruning(tmp_path: Path, model: torch.nn.Module) -> None:
    for step, ap in ((1, 0.1), (2, 0.3), (3, None), (4, 0.2), (5, None)):
        save(tmp_path, model, step, ap)
    assert best_checkpoint(tmp_path).name == "step-00000002"
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000005", [])
    (tmp_path / ".writing-00000006").mkdir()
    prune_checkpoints(tmp_path / "step-00000005", keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]
    assert not (tmp_path / ".writing-00000006").exists()


def test_everything_is_on_the_disk_before_a_checkpoint_shows(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and the folder that names them are synced, then it is renamed, then that is synced."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    save(tmp_path, model, 7)
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    assert calls == [*files, ".writing-00000007", "rename .writing-00000007", tmp_path.name]


def test_the_writer_calls_before_each_checkpoint(tmp_path: Path, model: torch.nn.Module) -> None:
    seen: list[list[Path]] = []
    writer = CheckpointWriter(tmp_path, keep=1, before=lambda: seen.append(list_checkpoints(tmp_path)))
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {}, None)
    for step in (1, 2):
        writer.save(step, model.state_dict(), info, {}, {})
        writer.wait()
    assert [[path.name for path in paths] for paths in seen] == [[], ["step-00000001"]]


@pytest.mark.slow
def test_metrics_are_on_the_disk_before_a_checkpoint_that_counts_them(
    tiny_train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    sync = RunLog.sync

    def watched(self: RunLog) -> None:
        seen.append([path.name for path in list_checkpoints(tmp_path / "run" / "student" / "checkpoints")])
        sync(self)

    monkeypatch.setattr(RunLog, "sync", watched)
    assert tiny_train("--no-distill", "--max-steps", "2", "--checkpoint-every", "1") == 0
    assert seen == [[], ["step-00000001"]]


def test_pruning_keeps_no_checkpoint_that_is_cut_off(tmp_path: Path, model: torch.nn.Module) -> None:
    for step, ap in ((1, 0.9), (2, 0.1), (3, None)):
        save(tmp_path, model, step, ap)
    with (tmp_path / "step-00000001" / MODEL).open("r+b") as file:
        file.truncate(100)
    prune_checkpoints(tmp_path / "step-00000003", keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("which", ["model", "momentum"])
def test_a_state_that_is_not_finite_is_refused(tmp_path: Path, model: torch.nn.Module, which: str) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = {"momentum.0": torch.ones(3)}
    spoilt = next(iter(state.values())) if which == "model" else momentum["momentum.0"]
    spoilt.view(-1)[0] = float("nan")
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {}, None)
    with pytest.raises(CheckpointError, match="holds NaN or Inf; use another checkpoint"):
        load_state(save_checkpoint(tmp_path, 1, state, info, momentum, {}))


def test_a_checkpoint_names_what_it_was_built_from(tmp_path: Path, model: torch.nn.Module) -> None:
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {}, None)
    assert (info.name, info.backbone, info.neck, info.head) == ("snet", "resnet18", "fpn", "retina")
    state = model.state_dict()
    other = save_checkpoint(tmp_path, 1, state, replace(info, head="gfl"), {}, {})
    with pytest.raises(
        CheckpointError, match="its snet has the head 'gfl', that of this version 'retina'; use the version"
    ):
        load_model(other)
    unknown = save_checkpoint(tmp_path, 2, state, replace(info, neck="pafpn"), {}, {})
    with pytest.raises(CheckpointError, match="it has the neck 'pafpn', which this version of zoominnet does not know"):
        load_model(unknown)


def test_files_that_are_no_model_are_refused(tmp_path: Path, model: torch.nn.Module) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        find_model_file(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint; give a run folder"):
        find_model_file(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match=r"not a model written by zoominnet.train.*--weights"):
        load_model(foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        load_model(text)


@pytest.mark.parametrize("damage", ["nan", "shape", "missing", "dtype"])
def test_models_that_are_not_what_they_claim_are_refused(tmp_path: Path, model: torch.nn.Module, damage: str) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    name = "head.regression.predict.bias"
    if damage == "nan":
        state[name][3] = float("nan")
    elif damage == "shape":
        state[name] = state[name][:4].clone()
    elif damage == "dtype":
        state[name] = state[name].to(torch.float8_e4m3fn)
    else:
        del state[name]
    info = ModelInfo.of(model, ("a", "b"), (1, 2), {}, None)
    save_file(state, tmp_path / "m.safetensors", {"zoominnet": json.dumps({"info": info.__dict__})})
    with pytest.raises(
        CheckpointError, match="predict.bias holds NaN" if damage == "nan" else r"does not fit .*1 tensors differ"
    ):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "claim",
    [
        {"image_size": 32.0},
        {"image_size": 2**62},
        {"image_size": 0},
        {"num_classes": 2.5},
        {"class_names": [1, 2]},
        {"class_names": ["a"]},
        {"category_ids": []},
        {"ap": "high"},
        {"ap": 1e999},
        {"config": "x"},
        {"config": {"resize": "crop"}},
        {"name": ["x"]},
        {"backbone": 7},
    ],
    ids=str,
)
def test_descriptions_that_make_no_sense_are_refused(
    tmp_path: Path, model: torch.nn.Module, claim: dict[str, Any]
) -> None:
    info = {**ModelInfo.of(model, ("a", "b"), (1, 2), {}, None).__dict__, **claim}
    save_file(model.state_dict(), tmp_path / "m.safetensors", {"zoominnet": json.dumps({"info": info})})
    with pytest.raises(CheckpointError, match="its metadata do not say which model it is"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "damage",
    [{"ap": "0.5"}, {"ap": [1]}, {"ap": None, "files": {}}, {"step": "2"}, {"step": 1e999}, {"step": None}],
    ids=str,
)
def test_manifests_that_make_no_sense_are_passed_over(
    tmp_path: Path, model: torch.nn.Module, damage: dict[str, Any]
) -> None:
    """Sealed as they should be: written by somebody else, not damaged by chance."""
    older, newer = save(tmp_path, model, 1, 0.1), save(tmp_path, model, 2, 0.2)
    content = json.loads((newer / MANIFEST).read_text())
    del content["sha256"]
    (newer / MANIFEST).write_text(_seal({**content, **damage}))
    assert best_checkpoint(tmp_path) == newest_checkpoint(tmp_path)[0] == older
    del content["files"][MODEL]["sha256"]
    (newer / MANIFEST).write_text(_seal(content))
    assert best_checkpoint(tmp_path) == newest_checkpoint(tmp_path)[0] == older
