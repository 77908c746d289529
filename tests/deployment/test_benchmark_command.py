"""``zoominnet benchmark``: what is timed, what is known of the models, and what it writes."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import zoominnet
import zoominnet.benchmark as command
from zoominnet.benchmark import BenchmarkConfig, benchmark, main
from zoominnet.errors import UserError
from zoominnet.models.shipped import shipped_models

QUIET = Console(quiet=True)
EAGER: dict[str, Any] = {"runtimes": ("eager",), "repeats": 2}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error."""
    assert main([str(each) for each in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("zoominnet.benchmark: ")
    assert line.count("\n") == 1
    return line


def test_the_times_are_those_of_the_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that sleeps 20 ms for each image, in turn with one that does not."""
    from zoominnet.models import RetinaNet

    detect = RetinaNet.detect

    def slow(self: RetinaNet, images: torch.Tensor, *others: Any) -> list[dict[str, torch.Tensor]]:
        calls.append((self.image_size, len(images)))
        if self.image_size == 256:
            time.sleep(0.02 * len(images))
        return detect(self, images, *others)

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(RetinaNet, "detect", slow)
    text = io.StringIO()
    config = BenchmarkConfig(
        ("demo-teacher", "demo-snet"),  # type: ignore[arg-type]
        batch_sizes=(1, 3),
        json=tmp_path / "s.json",
        plot=tmp_path / "s.png",
        **EAGER,
    )
    result = benchmark(config, console=Console(file=text, width=160))
    assert result == json.loads((tmp_path / "s.json").read_text())
    assert calls == 3 * [(256, 1), (256, 3), (128, 1), (128, 3)]  # once to warm up, and twice in turn
    teacher, student = result["models"]
    for model, name in ((teacher, "demo-teacher"), (student, "demo-snet")):
        known = shipped_models()[name]
        assert (model["AP"], model["AP_S"]) == (known["AP"], known["AP_S"])
        assert model["gflops"] == pytest.approx(known["gflops"], rel=1e-3)
        assert model["parameters"] == known["parameters"]
        assert [(row["runtime"], row["batch"]) for row in model["speed"]] == [("eager", 1), ("eager", 3)]
        for row in model["speed"]:
            assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
            assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["median_ms"])
            assert row["peak_MiB"] is None
    assert [row["median_ms"] > 20 * row["batch"] for row in teacher["speed"]] == [True, True]
    said = text.getvalue()
    assert "demo-teacher" in said
    assert "images/s" in said
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (880, 550)


@pytest.mark.slow
def test_every_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and exported, the same boxes come out; what is not installed is named and left out."""
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    run = command.run

    def note(case: Any, device: torch.device) -> float:
        with torch.inference_mode():
            found[case.runtime] = case.detector.detect(case.images, command.PROCESS)
        return run(case, device)

    monkeypatch.setattr(command, "run", note)
    options: dict[str, Any] = {"batch_sizes": (2,), "repeats": 1}
    result = benchmark(BenchmarkConfig(("demo-snet",), **options), console=QUIET)  # type: ignore[arg-type]
    assert [row["runtime"] for row in result["models"][0]["speed"]] == ["eager", "compiled", "onnxruntime"]
    for runtime in ("compiled", "onnxruntime"):
        for a, b in zip(found[runtime], found["eager"], strict=True):
            # The same sums in float32, in another order.
            torch.testing.assert_close(a["scores"][:20], b["scores"][:20], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(a["boxes"][:20], b["boxes"][:20], rtol=1e-4, atol=1e-2)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = io.StringIO()
    config = BenchmarkConfig(("demo-snet",), runtimes=("eager", "onnxruntime"), **options)  # type: ignore[arg-type]
    result = benchmark(config, console=Console(file=text, width=200))
    assert [row["runtime"] for row in result["models"][0]["speed"]] == ["eager"]
    assert "left out: demo-snet, onnxruntime: the runtime onnxruntime needs the package onnxruntime" in text.getvalue()


def test_scores_on_data_and_at_other_sizes() -> None:
    """Measured where data are given; unknown at a size that nobody measured."""
    at_160 = benchmark(BenchmarkConfig(("demo-snet",), batch_sizes=(1,), image_size=160, **EAGER), console=QUIET)  # type: ignore[arg-type]
    model = at_160["models"][0]
    assert (model["image_size"], model["AP"], model["AP_S"]) == (160, None, None)
    own = benchmark(
        BenchmarkConfig(("demo-snet",), batch_sizes=(1,), data="synthetic", synthetic_images=8, **EAGER),  # type: ignore[arg-type]
        console=QUIET,
    )["models"][0]
    evaluated = zoominnet.evaluate("demo-snet", "synthetic", synthetic_images=8, latency_repeats=0, console=QUIET)
    assert own["AP_S"] == evaluated["scores"]["direct"]["COCO"]["AP_S"]
    assert model["gflops"] == pytest.approx(own["gflops"] * (160 / 128) ** 2, rel=0.1)  # P7 has whole cells


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.json").write_text("mine")
    for arguments, line in (
        (("absent",), "absent: no such file or folder"),
        (("demo-snet", "--plot", tmp_path / "a.gif"), "its name ends in neither .png nor .svg"),
        (("demo-snet", "--json", tmp_path / "there.json"), "exists already"),
        (("demo-snet", "--json", tmp_path / "none" / "a.json"), "there is no folder"),
        (("demo-snet", "--batch-sizes", "0"), "--batch-sizes: (0,) needs positive numbers"),
        (("demo-snet", "--image-size", "100"), "--image-size: 100 is not a multiple of 32"),
    ):
        assert line in refusal(capsys, *arguments)
    assert (tmp_path / "there.json").read_text() == "mine"
    with pytest.raises(UserError, match="MODEL: name one or more"):
        benchmark(BenchmarkConfig(()), console=QUIET)
