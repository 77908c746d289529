"""--amp auto, the default kernels and --compile: what a run takes by itself, and says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import metrics
from safetensors.torch import load_file
from small_run import Train
from torch._dynamo.utils import counters

from zoominnet.engine.checkpoint import MODEL, list_checkpoints
from zoominnet.kernels import _dispatch, available_backends
from zoominnet.models import RetinaNet
from zoominnet.train import main as train_main

pytestmark = pytest.mark.usefixtures("small")
FUSED = available_backends("cpu")["akdp_mask"]["native"] == "ok"
UNBUILT = {"native": "not built", "triton": "for GPUs"}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if line["kind"] == "train"]


@pytest.mark.slow
def test_amp_auto_is_written_down_and_resumed_as_what_it_came_to(
    tiny_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    options = ("--no-distill", "--amp", "auto", "--max-steps", "2")
    assert tiny_train(*options) == 0
    assert ", amp bf16 (auto)\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["amp"] == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # on another processor
    assert train_main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert ", amp bf16\n" in capsys.readouterr().out
    assert tiny_train(*options, "--resume") == 0
    assert ", amp bf16\n" in capsys.readouterr().out
    assert tiny_train(*options, "--amp", "off", "--resume") == 2
    assert "--amp (was bf16, is off)" in capsys.readouterr().err
    assert tiny_train(*options, out="other") == 0
    assert ", amp off (auto)\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not FUSED, reason="needs the C++ library")
def test_the_fastest_kernels_are_the_default(
    tiny_train: Train, tiny_teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run says which it has, and trains the same weights by each; only sums of losses may be rounded elsewhere."""
    options = ("--teacher", tiny_teacher, "--no-check-teacher", "--max-steps", "3")
    for flag, kernels in (((), "native"), (("--fused-kernels",), "native"), (("--no-fused-kernels",), "reference")):
        assert tiny_train(*options, *flag, out=kernels + str(len(flag))) == 0
        assert f"  kernels   {kernels}\n" in capsys.readouterr().out
    first, second = (
        load_file(list_checkpoints(tmp_path / name / "student" / "checkpoints")[-1] / MODEL)
        for name in ("native0", "native1")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for a, b in zip(*(losses(tmp_path / name) for name in ("native0", "reference1")), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_without_a_library_the_reference_is_named(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoominnet.kernels._dispatch._state", lambda op, backend, device: UNBUILT.get(backend, "ok"))
    _dispatch._choose_fastest.cache_clear()
    try:
        assert tiny_train("--no-distill", "--max-steps", "1") == 0
        assert "  kernels   reference (no fast ones here: zoominnet doctor says why)\n" in capsys.readouterr().out
        assert tiny_train("--no-distill", "--verify-kernels", "1", out="verified") == 2
        assert "--verify-kernels 1: akdp_mask: no fused backend runs on cpu: 'native' is not" in capsys.readouterr().err
        monkeypatch.setattr("zoominnet.kernels._dispatch._state", lambda op, backend, device: "ok")  # as on a GPU
        monkeypatch.setattr("zoominnet.kernels._dispatch._MEASURED", {})
        _dispatch._choose_fastest.cache_clear()
        assert tiny_train("--no-distill", "--max-steps", "1", out="unmeasured") == 0
        expected = "  kernels   reference (fast ones are not measured here: --fused-kernels takes them)\n"
        assert expected in capsys.readouterr().out
    finally:
        _dispatch._choose_fastest.cache_clear()


@pytest.mark.slow
def test_a_compiled_run_tells_how_long_that_took(
    tiny_train: Train,
    tiny_teacher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a compiler that changes nothing, so that losses must stay; it is not asked for other sizes in validation."""
    compiled: list[str] = []
    compile_parts = RetinaNet.compile_parts

    def traced(model: RetinaNet, **options: Any) -> None:
        compiled.append(model.name)
        compile_parts(model, backend="aot_eager")

    monkeypatch.setattr(RetinaNet, "compile_parts", traced)
    options = ("--teacher", tiny_teacher, "--no-check-teacher", "--max-steps", "3")
    assert tiny_train(*options, out="plain") == 0
    assert not compiled
    capsys.readouterr()
    torch._dynamo.reset()
    counters["stats"].clear()
    assert tiny_train(*options, "--compile", out="compiled") == 0
    # backbone, neck, towers and predictors; of the teacher the first two
    assert counters["stats"]["unique_graphs"] == 4 + 2
    out = capsys.readouterr().out
    assert sorted(compiled) == ["snet", "teacher"]
    assert "student: compiling, which takes minutes before the first step\n" in out
    assert re.search(r"^student: compiled in \d+ s$", out, re.MULTILINE)
    for a, b in zip(*(losses(tmp_path / name) for name in ("plain", "compiled")), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_compiling_needs_a_compiler(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert tiny_train("--compile") == 2
    error = "--compile: needs a C++ compiler, and there is no no-such-compiler; install one, name it in CXX"
    assert error in capsys.readouterr().err
