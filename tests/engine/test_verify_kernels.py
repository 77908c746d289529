"""Training with the fast kernels: the same as by the reference, verified on request, stopped by a wrong kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from zoominnet.engine.checkpoint import list_checkpoints
from zoominnet.kernels import available_backends

Train = Callable[..., int]
pytestmark = pytest.mark.usefixtures("small")
needs_library = pytest.mark.skipif(
    any(states["native"] != "ok" for states in available_backends("cpu").values()), reason="needs the C++ library"
)
SUMMED_TWICE = 32 * 2.0**-23
"""Relative: a level's distillation loss is a float32 sum of squares, taken in two orders; see kernels/verify.py."""


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for phase in ("teacher", "student") for line in (run / phase / "metrics.jsonl").open()]
    return [line for line in lines if line["kind"] == "train"]


def last_weights(run: Path) -> dict[str, Tensor]:
    return {
        f"{phase}.{name}": value
        for phase in ("teacher", "student")
        for name, value in load_file(list_checkpoints(run / phase / "checkpoints")[-1] / "model.safetensors").items()
    }


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("student", "options"),
    [
        ("la", ("--image-size", "128", "--la-predictor", "plain", "--amp", "bf16", "--max-steps", "2")),
        ("fa", ("--distill-at", "tower", "--mask-boxes", "best-level", "--max-steps", "3")),
    ],
)
def test_fast_kernels_train_as_the_reference_does(
    tiny_train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil_operator: Callable[..., None],
    student: str,
    options: tuple[str, ...],
) -> None:
    options = ("--student", student, "--no-check-teacher", "--val-images", "1", *options)
    assert tiny_train(*options, "--no-fused-kernels", out="reference") == 0
    assert "verified" not in capsys.readouterr().out
    assert tiny_train(*options, "--fused-kernels", "--verify-kernels", "2", out="verified") == 0
    out = capsys.readouterr().out
    assert "  kernels   native" in out
    for phase in ("teacher", "student"):
        assert f"{phase}: kernels verified against the reference on the first 2 batches: max difference" in out
    assert "pa_l2_loss_backward_native" in out
    assert tiny_train(*options, "--fused-kernels", out="fused") == 0
    for operation in ("sigmoid_focal_loss", "sigmoid_focal_loss_backward"):
        spoil_operator(operation, lambda results: None)  # it gives the reference's results as they are
    assert tiny_train(*options, "--fused-kernels", out="exact") == 0

    runs = ("reference", "verified", "fused", "exact")
    reference, verified, fused, exact = (last_weights(tmp_path / name) for name in runs)
    assert not [name for name in fused if not torch.equal(fused[name], verified[name])]
    assert steps(tmp_path / "fused") == steps(tmp_path / "verified")
    # Masks, assignments and all gradients but the focal loss's are the same bits by the kernels' contract, so a run is
    # with that loss from the reference.
    assert not [name for name in exact if not torch.equal(exact[name], reference[name])]
    for ours, theirs in zip(steps(tmp_path / "exact"), steps(tmp_path / "reference"), strict=True):
        for name in ("loss", "distill", "distill_levels"):
            if name in ours:
                assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=SUMMED_TWICE, abs=0)
        assert ours == theirs


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("operation", "output"),
    [
        ("akdp_mask", "mask (number of cells, beyond those at the threshold) differs by"),
        ("max_iou_assign", "assignment (number of anchors) differs by"),
        ("pa_l2_loss", "loss (relative) differs by 0.01, tolerance 3.81e-06"),
        ("pa_l2_loss_backward", "gradient differs by"),
        ("sigmoid_focal_loss", "loss (relative) differs by 0.01, tolerance 3.81e-06"),
        ("sigmoid_focal_loss_backward", "gradient of level 0 (relative) differs by"),
        ("upsample_nearest2x", "map differs by"),
        ("upsample_nearest2x_backward", "gradient differs by"),
    ],
)
def test_a_wrong_kernel_stops_the_run(
    tiny_train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil_operator: Callable[..., None],
    tiny_teacher: str,
    operation: str,
    output: str,
) -> None:
    def spoil(results: tuple[Tensor, ...]) -> None:
        wrong = results[0]
        if wrong.is_floating_point():
            wrong.mul_(1.01)
        elif wrong.dtype == torch.bool:
            wrong.logical_not_()
        else:
            wrong.add_(1)

    options = ("--teacher", tiny_teacher, "--no-check-teacher", "--fused-kernels")
    spoil_operator(operation, spoil)
    assert tiny_train(*options, "--verify-kernels", "1") == 70
    error = capsys.readouterr().err
    assert error.startswith("zoominnet.train: --verify-kernels: student step 1 (images [")
    assert f"{operation}_native on [" in error
    assert output in error
    assert "train with --no-fused-kernels, in a new --out, and report this line" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "run" / "student" / "checkpoints").glob("*"))


def test_nothing_to_verify_is_refused(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_train("--verify-kernels", "3", "--no-fused-kernels") == 2
    assert "--verify-kernels 3: with --no-fused-kernels there is nothing to compare" in capsys.readouterr().err
    assert tiny_train("--verify-kernels", "-1") == 2
    assert "--verify-kernels: -1 is negative" in capsys.readouterr().err


@pytest.mark.slow
@needs_library
def test_a_run_that_calls_no_fast_kernel_is_not_called_verified(
    tiny_train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoominnet.models.RetinaNet.set_kernel_backend", lambda self, backend: None)
    monkeypatch.setattr("zoominnet.kernels._dispatch._choose_fastest", lambda *_: "reference")
    monkeypatch.setattr("zoominnet.engine.run.choose_backends", lambda *_: {})
    assert tiny_train("--no-distill", "--fused-kernels", "--verify-kernels", "1") == 70
    assert "student step 1 (images [" in (error := capsys.readouterr().err)
    assert "no fast kernel was called, so none could be verified" in error
