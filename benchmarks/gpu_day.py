"""What only a GPU can show, in parts of nine minutes, for a GPU that is to be had for a quarter of an hour.

    benchmarks/gpu_day.sh check                         # the kernels: right? how fast? the faults, the sanitizers
    benchmarks/gpu_day.sh tune                          # all kernels' times beside their targets, a profile of each
    benchmarks/gpu_day.sh train --data DATA --weights FILE [-- OPTIONS]     # Table 3, and the step beside torchvision's
    benchmarks/gpu_day.sh build                         # the library alone, for the GPU here or ZOOMINNET_CUDA_ARCHS

The most valuable steps come first, each has its own limit, and the part ends within --limit seconds whatever they do. A step
whose time is up leaves what it has measured so far; where the build fails, the others show what needs none of it. After
each step the folder --out has its results: eight files at most. A table of the steps is printed last.

The library is compiled for the GPU that is here. One that `build` made elsewhere, brought as `zoominnet/_C_cuda.so` with
`zoominnet/_C_cuda.json`, is taken as it is, where both say that it is of these sources. Needs no network and no virtual
environment; modules that a step lacks are named, and the others run. `train` passes OPTIONS on to `python -m zoominnet.train`.

--rehearse does all of it on the CPU with tiny shapes: it shows that nothing but the GPU is missing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check import (
    BENCHMARK_TOOLS,
    FAULT_TOOLS,
    PACKAGES,
    ROOT,
    TEST_TOOLS,
    TRAINING_TOOLS,
    Outcome,
    Report,
    Step,
    end_on_sigterm,
    flaw_of_benchmarks,
    flaw_of_exercise,
    flaw_of_faults,
    flaw_of_tests,
    lacking,
    read_machine,
    run_steps,
    sanitizer,
    search_path,
    status_of,
    version_of,
)

LIBRARY = ROOT / "zoominnet" / "_C_cuda.so"
RECORD = LIBRARY.with_suffix(".json")
"""Of which sources LIBRARY is, and its own digest."""
KERNEL_TESTS = (
    *("akdp_mask", "max_iou_assign", "pa_l2_loss", "sigmoid_focal_loss", "upsample_nearest2x"),
    *("triton_gpu", "kernel_operators", "anchor_grid", "verify", "kernel_cuda", "kernel_sizes"),
)
"""In the order of what they are worth; those with the largest shapes last."""
TARGETS = (
    *("akdp_mask.py::test_grids[{}-1024 px, 16 images]", "max_iou_assign.py::test_grids[{}-1024 px, 16 images]"),
    *("pa_l2_loss.py::test_loss[{}-LA, P3-both]", "upsample_nearest2x.py::test_upsample[{}-P3-both-True]"),
    *(
        "akdp_mask.py::test_dense[{}-1024 px, 54 boxes]",
        "sigmoid_focal_loss.py::test_focal_loss[{}-fa, 512 px, 4 images-both]",
    ),
    "akdp_mask.py::test_grids[{}-1024 px, 16 images of 2000 boxes]",
)
"""The benchmarks that have targets on a GPU, of a device; the one whose rivals take longest last."""
TRAINING = (
    *("--batch-size", "16", "--lr", "0.02", "--epochs", "24", "--val-every", "12", "--warmup-steps", "100"),
    *("--clip-grad-norm", "10", "--cache", "device", "--workers", "4", "--fused-kernels", "--amp", "bf16"),
)
"""Options of Table 3 that are not the paper's: few epochs of large batches. Later ones of the command line count."""
TRAINED = ("teacher", *(f"{student}{cskd}" for student in ("snet", "la", "fa") for cskd in ("", "-cskd")))
"""Of Table 3."""
TINY_TRAINING = (
    *("--backbone", "resnet10-quarter", "--channels", "16", "--weights", "none", "--image-size", "128"),
    *("--epochs", "1", "--max-steps", "2", "--val-images", "4", "--batch-size", "2", "--cache", "none"),
)
SHOWN = 4000
"""Characters of the tables that are printed whole."""
SESSION_ENDED = "session-timeout"
"""What pytest says when its time is up."""
PROFILED = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")
"""Sections of Nsight Compute's report."""


@dataclass(frozen=True)
class Day:
    """What the steps of a part are made from.

    Attributes:
        out: the folder of the results.
        work: the folder of what is not kept.
        device: "cuda", or "cpu" in a rehearsal.
        data: the data set of `train`.
        weights: initial weights of `train`.
        options: further ones of `train`.
    """

    out: Path
    work: Path
    device: str = "cuda"
    data: str | None = None
    weights: str | None = None
    options: Sequence[str] = ()

    @property
    def rehearsed(self) -> bool:
        return self.device == "cpu"

    @property
    def jobs(self) -> int:
        """Processes at once."""
        return max(1, min(8, (os.cpu_count() or 1) // 2))


# The library


def digest(paths: Sequence[Path]) -> str:
    """Of files' names and content."""
    hashed = hashlib.sha256()
    for path in paths:
        hashed.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return hashed.hexdigest()


def library_record() -> dict[str, str]:
    """What RECORD must hold for LIBRARY to be taken."""
    names = ("setup.py", "kernels/_schemas.py", "zoominnet/__init__.py", "csrc/library.cpp")
    sources = [*(ROOT / name for name in names), *sorted(ROOT.glob("csrc/**/*.h")), *sorted(ROOT.glob("csrc/*/*.cu"))]
    return {"library": digest([LIBRARY]), "sources": digest(sources)}


def take_library() -> str:
    """Why LIBRARY cannot be taken as it is; empty where it can."""
    if not (LIBRARY.is_file() and RECORD.is_file()):
        return "there is none"
    found, wanted = json.loads(RECORD.read_text(encoding="utf-8")), library_record()
    wrong = [name for name in wanted if found.get(name) != wanted[name]]
    return f"the record beside it has another digest of the {wrong[0]}" if wrong else ""


def build() -> int:
    """Compiles the library unless it is there; returns the exit status."""
    reason = take_library()
    if not reason:
        print(f"{LIBRARY.name}: taken, it is of these sources")
        return 0
    print(f"{LIBRARY.name}: built, {reason}", flush=True)
    environment = {"PATH": search_path(), "ZOOMINNET_BUILD": "cuda", "MAX_JOBS": str(os.cpu_count() or 1)}
    if "ZOOMINNET_CUDA_ARCHS" not in os.environ and (here := capability()):
        environment["ZOOMINNET_CUDA_ARCHS"] = here
    RECORD.unlink(missing_ok=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode
    if status == 0:
        RECORD.write_text(json.dumps(library_record()) + "\n", encoding="utf-8")
    return status


def capability() -> str:
    """Of the first GPU here, as "90"; empty where there is none."""
    import torch

    return "{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


# The steps


def judge_tests(report: Path, log: Path, status: int) -> tuple[str, str]:
    """The outcome of tests that end by themselves when their time is up, and what is wrong."""
    if not report.is_file():
        return "failed", f"exit status {status}, and no report"
    wrong, right = count_tests(report)
    if wrong:
        return "failed", f"{wrong} failed, {right}"
    if status and SESSION_ENDED in log.read_text(encoding="utf-8", errors="replace"):
        return "not run", f"time: {right}, the others not begun"
    return ("failed", f"exit status {status}") if status else ("passed", right)


def count_tests(report: Path) -> tuple[int, str]:
    """How many failed of a JUnit report, and a word about the others."""
    suite = next(xml.etree.ElementTree.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    wrong = count["failures"] + count["errors"]
    return wrong, f"{count['tests'] - wrong - count['skipped']} passed, {count['skipped']} skipped"


def tests_so_far(report: Path) -> str:
    """About tests that were ended."""
    return "{} failed, {} so far".format(*count_tests(report)) if report.is_file() else ""


def build_step(day: Day) -> Step:
    if day.rehearsed:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        return Step("build", command, 300, {"ZOOMINNET_BUILD": "cpu"})
    return Step("build", [sys.executable, "benchmarks/gpu_day.py", "build"], 200)


def pytest_step(
    day: Day, name: str, arguments: Sequence[str], limit: float, flaw: Callable[[Path], str], needs: Sequence[str]
) -> Step:
    """Tests in several processes, which end by themselves before the limit; those that ran are in NAME.xml."""
    report = day.out / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-n", str(day.jobs)]
    return Step(
        name,
        [*command, "--dist", "worksteal", *arguments, f"--junitxml={report}"],
        limit,
        {"OMP_NUM_THREADS": "2"},
        missing=lacking([*needs, "xdist"]),
        leaves=report,
        flaw=lambda: "" if day.rehearsed else flaw(report),
        judge=lambda status: judge_tests(report, day.work / f"{name}.log", status),
        within=lambda seconds: [f"--session-timeout={max(1.0, 0.85 * seconds - 5):.0f}"],
        so_far=lambda: tests_so_far(report),
    )


def benchmark_step(day: Day, name: str, what: Sequence[str], limit: float, needs: Sequence[str]) -> Step:
    results = day.out / f"{name}.json"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *what, f"--device={day.device}"]
    command += ["--benchmark-only", "--benchmark-disable-gc", *(["--tiny"] if day.rehearsed else [])]
    return Step(
        name,
        [*command, f"--benchmark-json={results}"],
        limit,
        missing=lacking(needs),
        leaves=results,
        flaw=lambda: "" if day.rehearsed else flaw_of_benchmarks(results),
    )


def tables_step(day: Day, *names: str) -> Step:
    """What is met of the targets."""
    tables = day.out / "benchmarks.md"
    command = [sys.executable, "benchmarks/report.py", "--out", str(tables), "--show"]
    return Step("tables", command, 60, reads=tuple(day.out / f"{name}.json" for name in names), leaves=tables)


def sanitizer_step(day: Day, kind: str) -> Step:
    log = day.work / f"{kind}.log"
    return sanitizer(kind, log, 150, "a rehearsal has no GPU for it" if day.rehearsed else "")


def check_steps(day: Day) -> list[Step]:
    exercise = [sys.executable, "benchmarks/exercise_kernels.py", "--device", day.device, "--jobs", str(day.jobs)]
    tests = [f"tests/kernels/test_{name}.py" for name in KERNEL_TESTS]
    # Of a rehearsal a few: `make test` runs them all.
    chosen = ["-k", "upsample and cpu"] if day.rehearsed else ["-k", "cuda or gpu"]
    faults = ["tests/engine", "tests/test_soak.py", "-m", "gpu", *(["-k", "f10"] if day.rehearsed else [])]
    return [
        build_step(day),
        Step(
            "smallest",
            exercise,
            150,
            {"OMP_NUM_THREADS": "2"},
            flaw=lambda: "" if day.rehearsed else flaw_of_exercise(day.work / "smallest.log"),
        ),
        benchmark_step(
            day,
            "times",
            [f"benchmarks/bench_{target.format(day.device)}" for target in TARGETS],
            150,
            BENCHMARK_TOOLS,
        ),
        tables_step(day, "times"),
        pytest_step(day, "tests", [*tests, *chosen], 200, flaw_of_tests, TEST_TOOLS),
        pytest_step(day, "faults", faults, 150, flaw_of_faults, FAULT_TOOLS),
        sanitizer_step(day, "memcheck"),
        sanitizer_step(day, "racecheck"),
    ]


def tune_steps(day: Day) -> list[Step]:
    files = ("akdp_mask", "max_iou_assign", "pa_l2_loss", "upsample_nearest2x", "sigmoid_focal_loss")
    tiny = ["--tiny"] if day.rehearsed else []
    times, profile = day.out / "variants.json", day.out / "profile.txt"
    tool = shutil.which("ncu", path=search_path())
    variants = any(ROOT.glob("build/variants/*/*.so"))
    kernels = [sys.executable, "benchmarks/profile_kernels.py", "--device", day.device]
    profiler = [tool or "ncu", "--profile-from-start", "off", "--clock-control", "none"]
    profiler += [part for section in PROFILED for part in ("--section", section)]
    profiler += [f"--log-file={profile}"]
    return [
        build_step(day),
        Step(
            "variants",
            [sys.executable, "benchmarks/variants.py", "time", "--device", day.device, f"--json={times}", *tiny],
            120,
            {"PYTHONPATH": str(ROOT)},
            missing="" if day.rehearsed or variants else "there is none; benchmarks/variants.py build makes them",
            leaves=times,
        ),
        Step(
            "profile",
            [*([] if day.rehearsed else profiler), *kernels, *tiny],
            150,
            missing="" if tool or day.rehearsed else "there is no ncu on the path; it comes with the CUDA toolkit",
            leaves=profile,
        ),
        benchmark_step(day, "benchmarks", [f"benchmarks/bench_{name}.py" for name in files], 400, BENCHMARK_TOOLS),
        tables_step(day, "benchmarks"),
    ]


def train_steps(day: Day) -> list[Step]:
    needs = (*FAULT_TOOLS, *TRAINING_TOOLS)
    where = day.work / "table3"
    command = [sys.executable, "-m", "zoominnet.reproduce", "table3", "--scale", "paper", "--seeds", "1"]
    command += ["--jobs", "2", "--only", *TRAINED, "--out", str(where)]
    own = ["--data", str(day.data), *(["--weights", day.weights] if day.weights else [])]
    more = [*(TINY_TRAINING if day.rehearsed else ()), "--device", day.device, *day.options]

    def table3(seconds: float) -> list[str]:
        return ["--budget", f"{max(0.2, (seconds - 130) / 60):.1f}", "--", *own, *TRAINING, *more]

    def judge(status: int) -> tuple[str, str]:
        log = (day.work / "table3.log").read_text(encoding="utf-8", errors="replace")
        left = [line for line in log.splitlines() if line.startswith("left: ")]
        if status:
            return "failed", f"exit status {status}"
        return ("not run", f"time; {left[0].partition(',')[0]}") if left else ("passed", "")

    def steps(name: str, limit: float, *cases: str) -> Step:
        tests = [f"benchmarks/bench_train_step.py::test_train_step[{day.device}-{case}]" for case in cases]
        return benchmark_step(day, name, tests, limit, (*BENCHMARK_TOOLS, *TRAINING_TOOLS))

    return [
        build_step(day),
        # Tiny maps in bf16 differ by more than the rivals may.
        steps("step", 160, "fa-fp32" if day.rehearsed else "fa-bf16"),
        Step(
            "table3",
            command,
            520,
            missing=lacking(needs) or ("" if day.data else "there is no --data"),
            judge=judge,
            within=table3,
        ),
        steps("steps", 240, "snet-fp32" if day.rehearsed else "snet-bf16", "fa-fp32"),
        tables_step(day, "step", "steps"),
    ]


PARTS: dict[str, Callable[[Day], list[Step]]] = {"check": check_steps, "tune": tune_steps, "train": train_steps}
KEPT = ("results.json", "table3.md")
"""Of the folder of `reproduce`; its pictures can be drawn from these."""


# The run


def rehearsal_machine() -> dict[str, Any]:
    """In the place of `read_machine`."""
    return {
        "gpus": [{"name": "none, a rehearsal", "capability": "", "memory_gib": 0, "multiprocessors": 0}],
        "driver": "",
        "nvcc": "",
        "cuda": "",
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
    }


def keep(day: Day, step: Step) -> None:
    """What a step left in `work`, in `out`: its log at the end of log.txt, and tables."""
    log = day.work / f"{step.name}.log"
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1500:]
        with (day.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write("\n".join([f"===== {step.name}", *lines, ""]))
    for name in KEPT:
        if (file_ := day.work / "table3" / name).is_file():
            shutil.copy(file_, day.out / name)


def table(outcomes: Sequence[Outcome]) -> str:
    """For the terminal."""
    return "\n".join(f"{o.name:12} {o.outcome:9} {o.seconds:6.1f} s  {o.detail}"[:160] for o in outcomes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: as gpu_check.py's."""
    begun = time.monotonic()
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, options = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "build"])
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results/gpu_day/PART)")
    parser.add_argument("--limit", type=float, default=540, metavar="SECONDS", help="for the whole part (540)")
    parser.add_argument("--data", help="data set of `train`")
    parser.add_argument("--weights", help="initial weights of `train`")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    given = parser.parse_args(own)
    if options and given.part != "train":
        parser.error("only train takes options behind --")
    if given.part == "build":
        return build()
    machine = rehearsal_machine() if given.rehearse else read_machine()
    out = (given.out or ROOT / "benchmarks" / "results" / "gpu_day" / given.part).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        device = "cpu" if given.rehearse else "cuda"
        day = Day(out, Path(work), device, given.data, given.weights, options)
        steps = PARTS[given.part](day)
        # What an earlier call left must not be taken for this one's.
        for old in ("log.txt", *KEPT, *(step.leaves.name for step in steps if step.leaves)):
            (out / old).unlink(missing_ok=True)
        report = Report(out, machine, [step.name for step in steps])
        report.content["steps"] = []
        outcomes = run_steps(
            steps, report, day.work, begun + given.limit, functools.partial(keep, day), needs_build=False
        )
    if ("tables", "passed") in [(each.name, each.outcome) for each in outcomes]:
        text = (out / "benchmarks.md").read_text(encoding="utf-8")
        print(text if len(text) < SHOWN else text.partition("## All")[0])
    print(table(outcomes))
    print(
        f"gpu_day {given.part}: {report.content['result']}; {time.monotonic() - begun:.0f} s; see {out / 'report.md'}"
    )
    return status_of(outcomes)


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
