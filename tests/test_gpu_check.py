"""The GPU checks' own logic, with steps that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check.py"
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


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def check(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, steps: list[Any], out: Path, *more: str
) -> tuple[int, dict]:
    monkeypatch.setattr(module, "read_machine", lambda: MACHINE)
    monkeypatch.setattr(module, "all_steps", lambda _: steps)
    status = module.main(["--out", str(out), *more])
    return status, json.loads((out / "report.json").read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu(gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--out", str(tmp_path)])
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.err.startswith("gpu-check needs a CUDA device, and there is none: torch")
    assert told.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_report(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [
        gpu_check.Step("build", python("import os; print(os.environ['MADE_UP'])"), 60, {"MADE_UP": "yes"}),
        gpu_check.Step("tests", python("print('all is well')"), 60),
        gpu_check.Step("memcheck", ["compute-sanitizer"], 60, missing="there is none"),
    ]
    status, report = check(gpu_check, monkeypatch, steps, tmp_path / "new" / "folder")
    assert status == 0
    assert report["result"] == "passed; left out: memcheck"
    assert report["machine"] == MACHINE
    assert [(s["name"], s["outcome"], s["detail"]) for s in report["steps"]] == [
        ("build", "passed", ""),
        ("tests", "passed", ""),
        ("memcheck", "left out", "there is none"),
    ]
    assert report["steps"][0]["seconds"] > 0
    assert (tmp_path / "new" / "folder" / "build.log").read_text() == "yes\n"
    readable = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert "# GPU check: passed; left out: memcheck" in readable
    assert "GPU of the test (1.0 GiB, 9.0)" in readable
    assert "| memcheck | left out | 0.0 s | there is none |" in readable
    assert "all is well" not in readable


def test_failures(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [
        gpu_check.Step("fails", python("import sys; print('what it said', file=sys.stderr); sys.exit(9)"), 60),
        gpu_check.Step("hangs", python("import time; print('begun', flush=True); time.sleep(60)"), 0.5),
        gpu_check.Step("lacks", [str(tmp_path / "no such program")], 60),
        gpu_check.Step("deceives", python(""), 60, flaw=lambda: "nothing was tested"),
        gpu_check.Step("passes", python(""), 60),
    ]
    status, report = check(gpu_check, monkeypatch, steps, tmp_path)
    assert status == 1
    assert report["result"] == "failed: fails, hangs, lacks, deceives"
    details = [s["detail"] for s in report["steps"]]
    assert details[0] == "exit status 9"
    assert details[1].startswith("still running after")
    assert details[2].startswith("cannot be run: ")
    assert details[3:] == ["nothing was tested", ""]
    assert "what it said" in (tmp_path / "report.md").read_text()


def test_nothing_runs_after_a_failed_build(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [
        gpu_check.Step("build", python("raise SystemExit(1)"), 60),
        gpu_check.Step("tests", python(f"open({str(tmp_path / 'ran')!r}, 'w')"), 60),
    ]
    status, report = check(gpu_check, monkeypatch, steps, tmp_path)
    assert status == 1
    assert report["steps"][1]["detail"] == "not run, since the build failed"
    assert not (tmp_path / "ran").exists()
    # By itself it runs.
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "tests")
    assert status == 0
    assert [s["name"] for s in report["steps"]] == ["tests"]
    assert (tmp_path / "ran").exists()


def test_each_fast_backend_must_have_been_tested(gpu_check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"

    def flaw(*cases: str) -> str:
        report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return gpu_check.flaw_of_tests(report)

    native, triton = '<testcase name="test_a[native-cuda]"/>', '<testcase name="test_a[x-triton-cuda-1]"/>'
    assert flaw(native, triton) == ""
    assert flaw(native) == "no test ran on CUDA with triton"
    skipped = '<testcase name="test_a[native-cuda]"><skipped/></testcase>'
    assert flaw(skipped, '<testcase name="test_a[native-cpu]"/>') == "no test ran on CUDA with native and triton"


def test_each_fast_backend_must_have_been_timed(gpu_check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "benchmarks.json"

    def flaw(*infos: dict[str, Any]) -> str:
        report.write_text(json.dumps({"benchmarks": [{"extra_info": info} for info in infos]}))
        return gpu_check.flaw_of_benchmarks(report)

    both = {"device": "cuda", "rivals": {"native": {}, "triton": {}}}
    assert flaw(both) == ""
    assert flaw({**both, "device": "cpu"}) == "no benchmark ran on CUDA with native and triton"
    assert flaw({"device": "cuda", "rivals": {"native": {}}}, {}) == "no benchmark ran on CUDA with triton"
    assert gpu_check.lacking(["json", "no_such_module"]).startswith("there is no module no_such_module; pip install")
    assert gpu_check.lacking(gpu_check.DEPENDENCIES) == ""


def test_steps_are_those_of_the_machine(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    monkeypatch.setenv("PATH", str(tool.parent))
    names = ["build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "benchmarks", "tables"]
    steps = gpu_check.all_steps(tmp_path)
    assert [step.name for step in steps] == names
    assert [step.name for step in steps if step.missing] == names[2:6]
    tool.parent.mkdir()
    tool.touch(0o755)
    steps = {step.name: step for step in gpu_check.all_steps(tmp_path)}
    assert not any(step.missing for step in steps.values())
    assert steps["racecheck"].command[:2] == [str(tool), "--tool=racecheck"]
    assert all(
        (gpu_check.ROOT / part).exists() for step in steps.values() for part in step.command if part.endswith(".py")
    )
    assert steps["build"].environment == {"ZOOMINNET_BUILD": "cuda"}
