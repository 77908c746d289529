"""Variants of the CUDA library: how they are made, compared and shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gpu_steps import BENCHMARKS, load

from zoominnet.kernels import _extension


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load("variants", monkeypatch)


def test_each_variant_differs_in_what_it_names(variants: ModuleType, tmp_path: Path) -> None:
    for name, changes in variants.VARIANTS.items():
        variants.write_sources(name, tmp_path / name)
        for path in (tmp_path / name).rglob("*"):
            if path.is_file():
                inside = str(path.relative_to(tmp_path / name))
                expected = (variants.ROOT / inside).read_text()
                for file, old, new in changes:
                    expected = expected.replace(old, new) if file == inside else expected
                assert path.read_text() == expected
        assert {file for file, old, new in changes if old != new} == {file for file, _, _ in changes}
        assert not list((tmp_path / name).rglob("*_cpu.cpp"))


def test_a_text_that_is_gone_is_named(variants: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(variants.VARIANTS, "x", [("setup.py", "what nobody wrote", "")])
    with pytest.raises(SystemExit, match=r"^variants: x: setup\.py has 'what nobody wrote' 0 times; mend VARIANTS$"):
        variants.write_sources("x", tmp_path)


def test_results_are_compared(variants: ModuleType) -> None:
    mask, loss = torch.tensor([True, False]), torch.tensor(1.0)
    assert variants.same([mask, [loss]], [mask, [loss * (1 + 1e-6)]])
    assert not variants.same([mask, [loss]], [~mask, [loss]])
    assert not variants.same([mask, [loss]], [mask, [loss * 1.001]])
    assert not variants.same([mask], [mask, mask])


def test_what_is_wrong_has_no_time(variants: ModuleType) -> None:
    found = {
        "a": {"as it is": 2e-6, "fast": 1e-6, "broken": None},
        "b": {"as it is": 1e-6, "fast": 3e-6, "broken": 1e-6},
    }
    assert [line.split() for line in variants.table(found).splitlines()] == [
        ["a", "b"],
        *(["as", "it", "is", "2.0", "us", "1.0", "us"], ["fast", "0.500", "x", "3.000", "x"]),
        ["broken", "wrong", "1.000", "x"],
    ]


@pytest.mark.slow
def test_libraries_take_turns(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    library = _extension.LIBRARIES["cpu"]
    shutil.copy(_extension.library_folder() / library, tmp_path / "copy" / library)
    command = [sys.executable, str(BENCHMARKS / "variants.py"), "time", "--device", "cpu", "--tiny"]
    command += ["--folder", str(tmp_path), "--json", str(tmp_path / "times.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = json.loads((tmp_path / "times.json").read_text())["seconds"]
    assert len(seconds) == 5
    assert all(list(of) == ["as it is", "copy"] and min(of.values()) > 0 for of in seconds.values())
