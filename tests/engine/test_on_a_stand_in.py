"""Trainings on a stand-in for a GPU: each tensor is where it must be, and no step waits for the device.

On it PyTorch is the one for CUDA and the arithmetic is the CPU's (tests/cuda_stand_in). What it cannot show is whether the
kernels are right, which is for the tests in tests/kernels, or how fast anything is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import SMALL_RUN

from zoominnet.train import main

STAND_IN = Path(__file__).parents[1] / "cuda_stand_in"
PACKAGES = Path(torch.__file__).parents[1]
HEADERS = [PACKAGES / "nvidia" / "cu13" / "include", PACKAGES / "triton" / "backends" / "nvidia" / "include"]
"""CUDA's as PyTorch's packages bring them; the second has what the first includes of the compiler's."""
OPTIONS = [
    *SMALL_RUN,
    *("--backbone", "resnet10-quarter", "--channels", "16"),
    *("--synthetic-images", "4", "2", "--batch-size", "2", "--epochs", "1", "--no-fused-kernels"),
]
RUNS = {
    "plain": ["--student", "fa", "--workers", "1"],
    "more": [
        *("--student", "la", "--cache", "device", "--teacher-scales", "both", "--ema", "0.9", "--optimizer", "adamw"),
        *("--distill-losses", "pa-l2", "1", "response", "1"),
    ],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(not all(each.is_dir() for each in HEADERS), reason="needs PyTorch for CUDA 13, and Triton"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that meets the stand-in."""
    library = tmp_path_factory.mktemp("stand_in") / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *(f"-I{each}" for each in HEADERS)]
    subprocess.run([*command, STAND_IN / "runtime.c", f"-Wl,-soname,{library.name}", "-o", library], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("run", RUNS)
def test_a_training_is_that_of_the_cpu_and_no_step_waits(run: str, preloaded: dict[str, str], tmp_path: Path) -> None:
    options = [*OPTIONS, *RUNS[run]]
    command = [sys.executable, STAND_IN / "train.py", *options, "--device", "cuda", "--out", tmp_path / "cuda"]
    done = subprocess.run(command, env=preloaded, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on cuda" in done.stdout
    waits = json.loads(done.stdout.splitlines()[-1])
    assert any("checkpoint/" in place for place in waits)  # it does see them
    # What is not below the run's own calls is autograd's, in a thread of its own.
    assert [place for place in waits if "engine/update.py" in place or "engine/run.py" not in place] == []
    assert main([*options, "--device", "cpu", "--out", str(tmp_path / "cpu")]) == 0
    files = sorted(path.relative_to(tmp_path / "cpu") for path in (tmp_path / "cpu").rglob("model.safetensors"))
    assert {path.parts[0] for path in files} == {"teacher", "student"}
    for path in files:
        expected, found = (load_file(tmp_path / device / path) for device in ("cpu", "cuda"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), path
