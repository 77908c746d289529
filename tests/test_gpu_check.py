"""The GPU checks' own logic, with steps that need no GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from gpu_steps import BENCHMARKS, MACHINE, load, python

PATH = BENCHMARKS / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("gpu_check", monkeypatch)


def check(
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[Any],
    out: Path,
    *more: str,
    machine: dict[str, Any] = MACHINE,
) -> tuple[int, dict]:
    monkeypatch.setattr(module, "read_machine", lambda: machine)
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
    assert status == 3
    assert report["result"] == "incomplete; left out: memcheck"
    assert report["machine"] == MACHINE
    assert [(s["name"], s["outcome"], s["detail"]) for s in report["steps"]] == [
        ("build", "passed", ""),
        ("tests", "passed", ""),
        ("memcheck", "left out", "there is none"),
    ]
    assert report["steps"][0]["seconds"] > 0
    assert (tmp_path / "new" / "folder" / "build.log").read_text() == "yes\n"
    readable = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert "# GPU check: incomplete; left out: memcheck" in readable
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


def test_what_takes_too_long_can_write_what_it_has(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    code = f"""
import pathlib, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(results)!r}).write_text("half")
"""
    steps = [
        gpu_check.Step("times", python(code), 4, leaves=results),
        gpu_check.Step("tables", python("import sys; print(open(sys.argv[1]).read())"), 60, reads=(results,)),
    ]
    _, report = check(gpu_check, monkeypatch, steps, tmp_path)
    assert report["result"] == "failed: times"
    assert report["steps"][0]["detail"] == "still running after 4 s"
    assert (tmp_path / "tables.log").read_text() == "half\n"


def test_nothing_runs_after_a_failed_build(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [
        gpu_check.Step("build", python("raise SystemExit(1)"), 60),
        gpu_check.Step("tests", python(f"open({str(tmp_path / 'ran')!r}, 'w')"), 60),
    ]
    status, report = check(gpu_check, monkeypatch, steps, tmp_path)
    assert status == 1
    assert report["result"] == "failed: build; not run: tests"
    assert report["steps"][1]["detail"] == "the build failed"
    assert not (tmp_path / "ran").exists()
    # By itself it runs.
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "tests")
    assert status == 0
    assert report["result"] == "failed: build"
    assert (tmp_path / "ran").exists()


def test_calls_add_up_to_one_report(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    steps = [
        gpu_check.Step("build", python(""), 60),
        gpu_check.Step("tests", python(f"import os; raise SystemExit(not os.path.exists({str(flag)!r}))"), 60),
        gpu_check.Step("memcheck", python(""), 60),
    ]
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "build", "tests")
    assert (status, report["result"]) == (1, "failed: tests; not run: memcheck")
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "memcheck")
    assert (status, report["result"]) == (0, "failed: tests")
    assert [s["name"] for s in report["steps"]] == ["build", "tests", "memcheck"]
    # What has no time, or lacks something, says nothing against an earlier outcome.
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--limit", "0")
    assert (status, report["result"]) == (3, "failed: tests")
    flag.touch()
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "tests")
    assert (status, report["result"]) == (0, "passed")
    assert "# GPU check: passed\n" in (tmp_path / "report.md").read_text()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".json", ".log", ".log", ".log", ".md"]


@pytest.mark.parametrize("other", ["commit", "sources", "gpu", "damaged"])
def test_another_tree_or_gpu_has_a_report_of_its_own(
    gpu_check: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: str,
) -> None:
    left = tmp_path / "tests.xml"
    left.touch()
    steps = [gpu_check.Step("build", python(""), 60), gpu_check.Step("tests", python(""), 60, leaves=left)]
    check(gpu_check, monkeypatch, steps, tmp_path, "--only", "build")
    assert left.exists()
    machine = MACHINE
    if other == "gpu":
        machine = {**MACHINE, "gpus": [{**MACHINE["gpus"][0], "name": "another"}]}
    elif other == "damaged":
        (tmp_path / "report.json").write_text("{")
    else:
        monkeypatch.setattr(gpu_check, f"read_{other}", lambda: "of another")
    _, report = check(gpu_check, monkeypatch, steps, tmp_path, "--only", "build", machine=machine)
    assert report["result"] == "incomplete; not run: tests"
    assert "it is begun anew" in capsys.readouterr().out
    assert not left.exists()


def test_the_digest_is_that_of_the_sources(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("setup.py", "pyproject.toml", "csrc/op/op_cuda.cu", "tests/test_x.py", "benchmarks/results/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    digests = [gpu_check.read_sources()]
    for name in ("benchmarks/results/x.json", "csrc/op/op_cuda.cu", "tests/test_x.py"):
        (tmp_path / name).write_text("changed")
        digests.append(gpu_check.read_sources())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_copy_without_git_is_told_its_commit(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("measure_of_a_copy", PATH.parent / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, measure)
    spec.loader.exec_module(measure)
    for module in (gpu_check, measure):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.delenv("ZOOMINNET_COMMIT", raising=False)
        read = getattr(module.read_commit, "__wrapped__", module.read_commit)
        assert read() == "unknown"
        monkeypatch.setenv("ZOOMINNET_COMMIT", "abc")
        assert read() == "abc"


def test_the_report_is_written_after_each_step(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    steps = [
        gpu_check.Step("build", python(""), 60),
        gpu_check.Step("tests", ["cp", str(tmp_path / "report.json"), str(seen)], 60),
    ]
    check(gpu_check, monkeypatch, steps, tmp_path)
    assert json.loads(seen.read_text())["result"] == "incomplete; not run: tests"


@pytest.mark.slow
def test_a_call_has_a_limit(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [
        gpu_check.Step("build", python(""), 60),
        gpu_check.Step(
            "tests", python("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"), 60
        ),
        gpu_check.Step("memcheck", python(""), 60),
    ]
    start = time.monotonic()
    status, report = check(gpu_check, monkeypatch, steps, tmp_path, "--limit", "5")
    assert time.monotonic() - start < 30
    assert status == 3
    assert report["result"] == "incomplete; not run: tests, memcheck"
    assert report["steps"][1]["detail"].startswith("time: not done in the ")
    assert report["steps"][2]["detail"] == "time"


LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Whether a process has ended; waits a while for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.1)
        return False
    return True


@pytest.mark.slow
def test_a_step_that_hangs_is_ended_with_what_it_started(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = [gpu_check.Step("hangs", [*python(LAUNCHER), str(tmp_path / "pid")], 5)]
    status, _ = check(gpu_check, monkeypatch, steps, tmp_path)
    assert status == 1
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_stopped_check_ends_its_step(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
from pathlib import Path
module = runpy.run_path({str(PATH)!r})
names = module["main"].__globals__
names["read_machine"] = lambda: {MACHINE!r}
names["all_steps"] = lambda out: [names["Step"]("tests", {[*python(LAUNCHER), str(tmp_path / "pid")]!r}, 600)]
names["end_on_sigterm"]()
names["main"](["--out", {str(tmp_path)!r}])
"""
    process = subprocess.Popen(python(code))
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    assert gone(int(pid.read_text()))


def test_a_step_finds_the_sources_and_what_the_caller_had_on_its_path(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "only_there.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    step = gpu_check.Step("tests", [], 60, {"MADE_UP": "yes"})
    done = subprocess.run(
        python("import only_there, zoominnet; print(zoominnet.__file__)"),
        cwd="/",
        env=gpu_check.environment_of(step),
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{gpu_check.ROOT / 'zoominnet' / '__init__.py'}\n", done.stderr
    environment = gpu_check.environment_of(step)
    assert str(tmp_path / "toolkit" / "bin") in environment["PATH"].split(os.pathsep)
    assert environment["TRITON_CACHE_DIR"].startswith(str(gpu_check.ROOT))
    assert environment["MADE_UP"] == "yes"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert gpu_check.environment_of(step)["TRITON_CACHE_DIR"] == "/elsewhere"


def test_a_step_reads_what_is_there_and_leaves_what_it_made(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, other, log = tmp_path / "one.json", tmp_path / "other.json", tmp_path / "log"
    step = gpu_check.Step("tables", python("import sys; print(*sys.argv[1:])"), 60, reads=(one, other))
    outcome = gpu_check.run_step(step, log)
    assert (outcome.outcome, outcome.detail) == ("not run", f"there is no {one}")
    other.touch()
    assert gpu_check.run_step(step, log).outcome == "passed"
    assert log.read_text() == f"{other}\n"
    stale = gpu_check.Step("tests", python(""), 60, leaves=other, flaw=lambda: "" if other.exists() else "no report")
    assert gpu_check.run_step(stale, log).detail == "no report"


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


def test_each_fault_must_have_been_tested(gpu_check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "faults.xml"
    backends = ["test_f10_x[native-cuda]", "test_f10_x[fa-triton-cuda]"]

    def flaw(names: list[str], inside: str = "") -> str:
        cases = [f'<testcase name="{name}">{inside}</testcase>' for name in names]
        report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return gpu_check.flaw_of_faults(report)

    names = [f"test_{fault}_x[cuda]" for fault in gpu_check.GPU_FAULTS]
    assert flaw([*names, *backends]) == ""
    assert flaw(names) == "no test ran on CUDA with native and triton"
    assert flaw([name for name in names if "f16" not in name]) == "no test ran of f16"
    assert flaw([*names, *backends], "<skipped/>") == f"no test ran of {', '.join(gpu_check.GPU_FAULTS)}"


def test_the_faults_of_the_step_are_those_of_the_table(gpu_check: ModuleType) -> None:
    rows = (gpu_check.ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    numbers = {int(row[3:].split()[0]) for row in rows if row.startswith("| F") and "make gpu-check" in row}
    assert [f"f{number:02}" for number in sorted(numbers)] == list(gpu_check.GPU_FAULTS)


def test_each_fast_backend_must_have_been_timed(gpu_check: ModuleType, tmp_path: Path) -> None:
    report = tmp_path / "benchmarks.json"

    def flaw(*infos: dict[str, Any]) -> str:
        report.write_text(json.dumps({"benchmarks": [{"extra_info": info} for info in infos]}))
        return gpu_check.flaw_of_benchmarks(report)

    both = {"device": "cuda", "rivals": {"native": {}, "triton": {}}}
    assert flaw(both) == ""
    assert flaw({**both, "device": "cpu"}) == "no benchmark ran on CUDA with native and triton"
    assert flaw({"device": "cuda", "rivals": {"native": {}}}, {}) == "no benchmark ran on CUDA with triton"


def test_each_fast_backend_must_have_been_exercised(gpu_check: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "memcheck.log"
    for told, flaw in [
        ("7 cases agree with the reference on cuda: native, triton", ""),
        ("7 cases agree with the reference on cuda: triton", "nothing ran on CUDA with native"),
        ("7 cases agree with the reference on cpu: native", "nothing ran on CUDA with native and triton"),
        ("", "nothing ran on CUDA with native and triton"),
    ]:
        log.write_text(f"========= COMPUTE-SANITIZER\n{told}\n========= ERROR SUMMARY: 0 errors\n")
        assert gpu_check.flaw_of_exercise(log) == flaw


# What the steps cannot do without; the packages that the project depends on besides are not looked for.
NEEDED = {
    "build": set(),
    "tests": {"numpy", "pytest", "pytest_timeout", "hypothesis", "setuptools"},
    "benchmarks": {
        "numpy",
        "pytest",
        "pytest_timeout",
        "pytest_benchmark",
        "torchvision",
        "PIL",
        "safetensors",
        "yaml",
    },
}
NEEDED["models"] = NEEDED["benchmarks"] | {"rich", "tensorboard", "tyro"}
NEEDED["faults"] = NEEDED["models"] - {"pytest_benchmark"} | {"psutil", "pycocotools", "fvcore"}
NEEDED["cpu-tests"] = NEEDED["tests"]


@pytest.mark.parametrize("absent", [*sorted(set().union(*NEEDED.values())), "scipy"])
def test_a_step_is_left_out_where_it_lacks_a_module(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: str
) -> None:
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None if name == absent else name)
    monkeypatch.setattr(gpu_check, "SANITIZERS", ())
    left_out = {step.name: step.missing for step in gpu_check.all_steps(tmp_path) if step.missing}
    assert set(left_out) == {name for name, modules in NEEDED.items() if absent in modules}
    assert all(reason.startswith(f"there is no module {absent}; pip install") for reason in left_out.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmarks_run_without_what_is_not_looked_for(tmp_path: Path) -> None:
    """Without the packages of the commands' options, of the evaluation and of the log; the training step needs the trainer."""
    (tmp_path / "block.py").write_text(
        "import os, sys\nfor name in os.environ['BLOCKED'].split(): sys.modules[name] = None\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "block", "--tiny", "--benchmark-disable"]
    command += ["--device", "cpu", "benchmarks", "--ignore=benchmarks/bench_train_step.py"]
    command += ["-k", "54 or P5 or (student and snet)"]
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    blocked = "rich tensorboard tyro pycocotools fvcore"
    environment = {**os.environ, "PYTHONPATH": path, "BLOCKED": blocked, "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, cwd=PATH.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_steps_are_those_of_the_machine(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "compute-sanitizer"
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(gpu_check, "search_path", lambda: str(tool.parent))
    names = ["build", "tests", "faults", *gpu_check.SANITIZERS, "benchmarks", "models", "tables"]
    names.append("cpu-tests")
    steps = gpu_check.all_steps(tmp_path)
    assert [step.name for step in steps] == names
    assert [step.name for step in steps if step.missing] == names[3:7]
    tool.parent.mkdir()
    tool.touch(0o755)
    steps = {step.name: step for step in gpu_check.all_steps(tmp_path)}
    assert not any(step.missing for step in steps.values())
    assert steps["racecheck"].command[:2] == [str(tool), "--tool=racecheck"]
    files = [part.removeprefix("--ignore=") for step in steps.values() for part in step.command if part.endswith(".py")]
    assert all((gpu_check.ROOT / file).exists() for file in files)
    assert steps["build"].environment == {"ZOOMINNET_BUILD": "cuda"}
    assert {"--device=cuda"} <= set(steps["benchmarks"].command) & set(steps["models"].command)
    # Each file is in one step: tests of the kernels in `tests`, but for those in `cpu-tests`; every benchmark.
    left = {part.removeprefix("--ignore=") for part in steps["tests"].command if part.startswith("--ignore=")}
    assert left == {part for part in steps["cpu-tests"].command if part.endswith(".py")}
    timed = [part for name in ("benchmarks", "models") for part in steps[name].command if part.endswith(".py")]
    assert sorted(timed) == sorted(
        str(path.relative_to(gpu_check.ROOT)) for path in gpu_check.ROOT.glob("benchmarks/bench_*.py")
    )


def test_the_exercise_makes_blocks_take_second_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """More boxes than threads in a block, more images than in a launch, a box over more anchors than a block visits,
    and more work than the blocks of the loss's sum have threads."""
    spec = importlib.util.spec_from_file_location("exercise", PATH.parent / "exercise_kernels.py")
    assert spec is not None
    assert spec.loader is not None
    exercise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exercise)
    most: Counter[str] = Counter()

    def watch(anchors: Any, images: list[torch.Tensor], **_: Any) -> list[Any]:
        grids = anchors if isinstance(anchors, list) else []
        counts = [len(boxes) for boxes in images]
        whole = max((g.num_anchors for g in grids if any(len(b) and float(b[0, 2]) > 400 for b in images)), default=0)
        for what, value in (("boxes", max(counts)), ("images", len(images)), ("anchors under a box", whole)):
            most[what] = max(most[what], value)
        return []

    def loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, **_: Any) -> torch.Tensor:
        if student.is_contiguous():
            pack = 1 if student.shape[3] % 4 else 4
            most[f"columns in packs of {pack}"] = max(
                most[f"columns in packs of {pack}"], student[:, 0].numel() // pack
            )
        elif student.shape[1] % 4 == 0:
            most["channels"] = max(most["channels"], student.numel() // 4)
        return student.sum()

    def watch_stats(anchors: Any, images: list[torch.Tensor], **_: Any) -> Any:
        watch(anchors, images)
        return [] if isinstance(anchors, list) else SimpleNamespace(lam=torch.zeros(1), max_iou=[])

    for name, function in (("akdp_mask", watch), ("akdp_stats", watch_stats), ("max_iou_assign", watch)):
        monkeypatch.setattr(exercise, name, function)
    monkeypatch.setattr(exercise, "pa_l2_loss", loss)
    monkeypatch.setattr(
        exercise, "upsample_nearest2x", lambda x, *_, **__: x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )

    def focal(levels: list[torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        for level in levels:
            pack = 4 if level.is_contiguous() and level[0].numel() % 4 == 0 and level.data_ptr() % 16 == 0 else 1
            most[f"logits in packs of {pack}"] = max(most[f"logits in packs of {pack}"], level.numel() // pack)
        return sum(level.sum() for level in levels)

    monkeypatch.setattr(exercise, "sigmoid_focal_loss", focal)
    for _, run in (*exercise.anchor_cases(), *exercise.map_cases(), *exercise.focal_cases()):
        run("any", "cpu")
    assert most["boxes"] > 128
    assert most["images"] > 256
    assert most["anchors under a box"] > 128 * 128
    summed = (
        "columns in packs of 1",
        "columns in packs of 4",
        "channels",
        "logits in packs of 1",
        "logits in packs of 4",
    )
    assert all(most[what] > 2048 * 128 for what in summed)
