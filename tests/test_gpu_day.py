"""The parts of a GPU day: what they run, what they leave, and when they end; with steps that need no GPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from gpu_steps import BENCHMARKS, MACHINE, load, python

MOST_FILES = 8


@pytest.fixture
def gpu_day(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    load("gpu_check", monkeypatch)
    return load("gpu_day", monkeypatch)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("part", ["check", "tune", "train"])
def test_a_part_names_files_that_are_there_and_leaves_few(
    gpu_day: ModuleType, tmp_path: Path, part: str, device: str
) -> None:
    day = gpu_day.Day(tmp_path / "out", tmp_path / "work", device, data="DATA", weights="FILE")
    steps = gpu_day.PARTS[part](day)
    assert steps[0].name == "build"
    words = [word for step in steps for word in step.command]
    files = {word.partition("::")[0] for word in words if ".py" in word}
    assert files
    assert all((gpu_day.ROOT / file).is_file() for file in files)
    written = {word.rpartition("=")[2] for word in words if str(day.out) in word}
    names = {Path(word).name for word in written} | {"report.json", "report.md", "log.txt"}
    names |= set(gpu_day.KEPT) if part == "train" else set()
    assert len(names) <= MOST_FILES
    asked = {word for step in steps for word in (*step.command, *step.within(100.0))}
    devices = {
        device for device in ("cpu", "cuda") for word in asked if f"[{device}-" in word or word == f"--device={device}"
    }
    assert devices | (asked & {"cpu", "cuda"}) == {device}


def test_every_test_of_the_kernels_that_a_gpu_can_change_is_run(gpu_day: ModuleType) -> None:
    here = {path.stem.removeprefix("test_") for path in gpu_day.ROOT.glob("tests/kernels/test_*.py")}
    without = {"cuda_sources", "native_cpu", "triton", "kernel_arguments", "kernel_imports"}
    assert set(gpu_day.KERNEL_TESTS) == here - without


def test_the_targets_are_benchmarks(gpu_day: ModuleType) -> None:
    named = [f"benchmarks/bench_{target.format('cpu')}" for target in gpu_day.TARGETS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "--device", "cpu"]
    done = subprocess.run([*command, *named], cwd=gpu_day.ROOT, capture_output=True, text=True)
    assert set(named) <= set(done.stdout.splitlines()), done.stdout + done.stderr


def test_all_targets_of_a_gpu_are_timed(gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    targets = {(t.op, t.shape, t.direction) for t in load("report", monkeypatch).TARGETS if t.device == "cuda"}
    assert len(targets) == len(gpu_day.TARGETS)
    for op, shape, direction in targets:
        file = f"{op.split()[0].rstrip(',')}.py::"
        timed = [name for name in gpu_day.TARGETS if name.startswith(file) and f"{{}}-{shape}" in name]
        assert any(direction in name or direction == "forward" for name in timed), op


def main(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, steps: Any, out: Path, *more: str
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(module, "read_machine", lambda: MACHINE)
    monkeypatch.setitem(module.PARTS, "check", steps)
    status = module.main(["check", "--out", str(out), *more])
    return status, json.loads((out / "report.json").read_text())


def test_results_are_there_after_each_step(
    gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def steps(day: Any) -> list[Any]:
        table = f"import pathlib; (p := pathlib.Path({str(day.work)!r}) / 'table3').mkdir(); (p / 'table3.md').write_text('t')"
        look = f"import os; print(sorted(os.listdir({str(day.out)!r})))"
        return [
            gpu_day.Step("build", python(f"print('built'); {table}"), 60),
            gpu_day.Step("look", python(look), 60),
            gpu_day.Step("fails", python("raise SystemExit('it cannot')"), 60),
        ]

    status, report = main(gpu_day, monkeypatch, steps, out)
    assert status == 1
    assert report["result"] == "failed: fails"
    log = (out / "log.txt").read_text()
    assert "===== build\nbuilt\n===== look\n['log.txt', 'report.json', 'report.md', 'table3.md']\n===== fails\n" in log
    assert "it cannot" in log
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in told[-4:-1]] == [["build", "passed"], ["look", "passed"], ["fails", "failed"]]
    assert told[-1].startswith("gpu_day check: failed: fails; ")
    # The next call begins with nothing of this one.
    status, report = main(gpu_day, monkeypatch, lambda day: [gpu_day.Step("build", python(""), 60)], out)
    assert (status, report["result"]) == (0, "passed")
    assert "fails" not in (out / "log.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "report.json", "report.md"]


def test_tests_that_are_ended_say_what_was_seen_of_them(
    gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "test_slow.py").write_text(
        "import time\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(60)"
    )

    def steps(day: Any) -> list[Any]:
        step = gpu_day.pytest_step(day, "tests", [str(tmp_path / "test_slow.py")], 60, lambda report: "", ())
        command = [word for word in step.command if word not in ("-n", str(day.jobs), "--dist", "worksteal")]
        return [dataclasses.replace(step, command=command, within=lambda seconds: [])]

    status, report = main(gpu_day, monkeypatch, steps, tmp_path / "out", "--limit", "20")
    assert status == 3
    assert report["steps"][0]["detail"].endswith("s that --limit left; 1 failed, 1 passed, 0 skipped so far")


def test_what_needs_no_library_is_run_without_one(
    gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [gpu_day.Step("build", python("raise SystemExit(1)"), 60), gpu_day.Step("more", python(""), 60)]
    status, report = main(gpu_day, monkeypatch, lambda day: steps, tmp_path)
    assert (status, report["result"]) == (1, "failed: build")


def test_a_part_ends_in_time(gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = time.monotonic()
    stubborn = python("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)")
    steps = [gpu_day.Step("build", stubborn, 60), gpu_day.Step("more", python(""), 60)]
    status, report = main(gpu_day, monkeypatch, lambda day: steps, tmp_path, "--limit", "1")
    assert time.monotonic() - begun < 20
    assert (status, report["result"]) == (3, "incomplete; not run: build, more")


@pytest.mark.parametrize(
    ("options", "tests", "outcome", "detail"),
    [
        ([], "def test_a(): pass", "passed", "1 passed, 0 skipped"),
        ([], "def test_a(): pass\ndef test_b(): assert 0", "failed", "1 failed, 1 passed, 0 skipped"),
        (
            ["--session-timeout=0.2"],
            "import time\ndef test_a(): time.sleep(1)\ndef test_b(): time.sleep(60)",
            "not run",
            "time: 1 passed, 0 skipped, the others not begun",
        ),
        (["-k", "none_such"], "def test_a(): pass", "failed", "exit status 5"),
    ],
)
def test_tests_whose_time_is_up_have_not_failed(
    gpu_day: ModuleType, tmp_path: Path, options: list[str], tests: str, outcome: str, detail: str
) -> None:
    (tmp_path / "test_x.py").write_text(tests)
    report, log = tmp_path / "tests.xml", tmp_path / "tests.log"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", f"--junitxml={report}", *options]
    step = gpu_day.Step(
        "tests", [*command, str(tmp_path)], 60, judge=lambda status: gpu_day.judge_tests(report, log, status)
    )
    found = sys.modules["gpu_check"].run_step(step, log)
    assert (found.outcome, found.detail) == (outcome, detail)


def test_a_library_is_taken_only_with_its_sources(
    gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("setup.py", "kernels/_schemas.py", "zoominnet/__init__.py", "csrc/library.cpp", "csrc/op/op_cuda.cu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    library = tmp_path / "zoominnet" / "_C_cuda.so"
    monkeypatch.setattr(gpu_day, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_day, "LIBRARY", library)
    monkeypatch.setattr(gpu_day, "RECORD", library.with_suffix(".json"))
    monkeypatch.setattr(gpu_day, "capability", lambda: "90")
    monkeypatch.delenv("ZOOMINNET_CUDA_ARCHS", raising=False)
    built: list[str] = []

    def compile_(command: list[str], *, cwd: Path, env: dict[str, str]) -> SimpleNamespace:
        built.append(env["ZOOMINNET_CUDA_ARCHS"])
        library.write_text("code")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu_day.subprocess, "run", compile_)

    def says() -> str:
        assert gpu_day.main(["build"]) == 0
        return capsys.readouterr().out.strip()

    assert says() == "_C_cuda.so: built, there is none"
    assert says() == "_C_cuda.so: taken, it is of these sources"
    library.write_text("other")
    assert says() == "_C_cuda.so: built, the record beside it has another digest of the library"
    (tmp_path / "csrc/op/op_cuda.cu").write_text("changed")
    assert says() == "_C_cuda.so: built, the record beside it has another digest of the sources"
    monkeypatch.setenv("ZOOMINNET_CUDA_ARCHS", "86")
    library.unlink()
    assert says() == "_C_cuda.so: built, there is none"
    assert built == ["90", "90", "90", "86"]


def test_training_without_data_or_modules_says_so(
    gpu_day: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    day = gpu_day.Day(tmp_path, tmp_path)
    assert {step.name: step.missing for step in gpu_day.train_steps(day)}["table3"] == "there is no --data"
    check = sys.modules["gpu_check"]
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if name == "fvcore" else name)
    missing = {step.name: step.missing for step in gpu_day.train_steps(gpu_day.Day(tmp_path, tmp_path, data="DATA"))}
    assert missing["table3"].startswith("there is no module fvcore; pip install")
    assert missing["steps"] == ""
