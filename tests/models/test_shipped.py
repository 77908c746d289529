"""The models that come with the package: all there, small, and as good as said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

import zoominnet
from zoominnet.engine.checkpoint import load_model
from zoominnet.errors import UserError
from zoominnet.models import build_model, load_weights
from zoominnet.models.__main__ import main
from zoominnet.models.shipped import FOLDER, shipped_file, shipped_models

STUDENTS = ("fa", "la", "snet")
NAMES = ["demo-teacher", *(f"demo-{student}{kind}" for student in STUDENTS for kind in ("-plain", ""))]


def test_all_are_there_in_float16_and_small() -> None:
    models = shipped_models()
    assert list(models) == NAMES
    files = sorted(FOLDER.glob("*.safetensors"))
    assert files == sorted(FOLDER / entry["file"] for entry in models.values())
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    for name, entry in models.items():
        file = FOLDER / entry["file"]
        assert entry["bytes"] == file.stat().st_size
        with safe_open(file, "pt") as opened:
            kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
        assert kinds == {"F16", "I64"}, name
        assert len(entry["training"]["commit"]) == 40


def test_what_is_said_of_them() -> None:
    """The teacher finds objects, and distillation made students better; not `la`, see docs/results.md."""
    models = shipped_models()
    assert models["demo-teacher"]["AP"] >= 0.20
    assert models["demo-fa"]["AP"] > 0.10
    for student in ("fa", "snet"):
        assert models[f"demo-{student}"]["AP"] > models[f"demo-{student}-plain"]["AP"], student


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_its_name(name: str) -> None:
    model, info = load_model(Path(name))
    entry = shipped_models()[name]
    assert (info.image_size, info.class_names) == (entry["image_size"], ("person", "cycle", "car", "truck or bus"))
    assert sum(parameter.numel() for parameter in model.parameters()) == entry["parameters"]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert "/" not in json.dumps(info.config).replace("runs/", ""), "a path of the machine that trained it"


@pytest.mark.slow
def test_the_teacher_finds_what_is_said() -> None:
    options = zoominnet.EvaluateConfig(
        Path("demo-teacher"),
        split="test",
        synthetic_images=40,
        protocol="coco",
        batch_size=8,
        latency_repeats=0,
    )
    found = zoominnet.evaluate(options, console=Console(quiet=True))["scores"]["direct"]["COCO"]["AP"]
    said = shipped_models()["demo-teacher"]["AP"]
    assert abs(found - said) < 0.08  # of 40 of the 500 scenes that it was measured on


def test_weights_by_name() -> None:
    _, info = load_model(Path("demo-fa-plain"))
    model = build_model("fa", info.backbone, 4, info.image_size, channels=info.channels)
    report = load_weights(model, "demo-fa-plain")
    assert not report.fresh
    assert not report.mismatched
    trained, _ = load_model(Path("demo-fa-plain"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in trained.state_dict().items())


def test_a_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-fa").mkdir()
    with pytest.raises(UserError, match="demo-fa: holds no checkpoint"):
        load_model(Path("demo-fa"))


def test_an_unknown_name() -> None:
    assert shipped_file("demo-none") is None
    with pytest.raises(UserError, match=r"demo-none: no such file or folder; .* a name that `zoominnet models` lists"):
        load_model(Path("demo-none"))


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for name, entry in shipped_models().items():
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert f"{entry['AP']:.4f}" in line
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shipped_models()
