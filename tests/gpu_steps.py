"""What the tests of `benchmarks/gpu_*.py` share: these loaded as modules, a machine with a GPU, steps that need none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MACHINE = {
    "gpus": [{"name": "GPU of the test", "capability": "9.0", "memory_gib": 1.0, "multiprocessors": 1}],
    "driver": "1.2",
    "nvcc": "13.0",
    "cuda": "13.0",
    "system": "Linux",
    "processors": 2,
    "python": "3.11",
    "packages": {"torch": "2.11"},
}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of benchmarks/ as a new module, in `sys.modules` as long as the test runs."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]
