"""All that can be checked on a GPU alone: build, tests, faults, compute-sanitizer, benchmarks; with a report of each.

    make gpu-check                                  # or: python3 benchmarks/gpu_check.py
    python3 benchmarks/gpu_check.py --only build tests --limit 540 --out /tmp/report

Needs a CUDA device, nvcc, and torch with pytest, pytest-timeout, pytest-benchmark and hypothesis; for the benchmarks and
the faults what the package depends on, for the faults psutil too; no network and no virtual environment. The libraries
are built into the source tree.

report.json and report.md are written after each step. Calls with --only, on the same sources and kind of GPU, add up to
one report, which says "passed" when every step has passed. The exit status is of this call's steps: 0 when all passed, 1
when one failed, 2 without a GPU, 3 when none failed, but one was left out for lack of a tool or not run for lack of time.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (".py", ".cpp", ".cu", ".cuh", ".h")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAILED_SANITIZER = 9
"""Exit status of compute-sanitizer where the program is right and the tool is not content."""
PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "hypothesis")
TEST_TOOLS = ("numpy", "pytest", "pytest_timeout", "hypothesis", "setuptools")
BENCHMARK_TOOLS = ("numpy", "pytest", "pytest_timeout", "pytest_benchmark", "torchvision", "PIL", "safetensors", "yaml")
TRAINING_TOOLS = ("rich", "tensorboard", "tyro", "docstring_parser", "typeguard")
FAULT_TOOLS = (
    *("numpy", "pytest", "pytest_timeout", "psutil", "torchvision", "PIL", "safetensors", "yaml"),
    *(*TRAINING_TOOLS, "pycocotools", "fvcore", "iopath", "yacs", "termcolor", "tabulate"),
)
"""Modules that the tests of the kernels import, those that the benchmarks do, those that the trainer's step needs besides,
and those that the tests of faults do; with what tyro and fvcore import, for where wheels are brought one by one."""
GPU_FAULTS = ("f01", "f10", "f11", "f12", "f13", "f16", "f21", "f25")
"""Faults that have a test on a GPU, see docs/faults.md."""
CPU_TESTS = ("cuda_sources", "native_cpu", "triton")
"""Of the kernels' tests those that need no GPU, and take long."""
FAST = ("native", "triton")
RAN, BAD = ("passed", "failed"), ("failed", "left out", "not run")
GRACE = 20.0
"""Seconds, at most a quarter of its time, that a command has from Ctrl-C to its end: for the results that it has so far."""
TAIL = 60
"""Lines of a failed step's output that the report shows."""


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def exit_status(status: int) -> tuple[str, str]:
    """The outcome of a command, and what is wrong, by its exit status alone."""
    return ("failed", f"exit status {status}") if status else ("passed", "")


@dataclass(frozen=True)
class Step:
    """A command, and what must hold after it.

    Attributes:
        name: as the report shows it.
        command: run in the repository's root.
        limit: seconds after which it counts as hanging.
        environment: variables beside the usual ones.
        missing: where it is not empty, why the step is left out.
        reads: files that the command gets as further arguments, those that are there; one must be.
        leaves: the file that it makes. What an earlier run left is removed, so that it cannot be taken for this one's.
        flaw: looks at what the command left behind; gives what is wrong with it, or an empty string.
        judge: of the exit status the outcome, and a line about it; `flaw` is asked of what has passed.
        within: further arguments of a command that keeps to a time by itself, of the seconds that it has.
        so_far: a line about what it left, where it was ended before it was done.
    """

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    reads: tuple[Path, ...] = ()
    leaves: Path | None = None
    flaw: Callable[[], str] = lambda: ""
    judge: Callable[[int], tuple[str, str]] = exit_status
    within: Callable[[float], list[str]] = lambda seconds: []
    so_far: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step. `outcome` is "passed", "failed", "left out" or "not run"; `detail` is one line."""

    name: str
    outcome: str
    seconds: float
    detail: str
    command: list[str]
    output_tail: str
    date: str = field(default_factory=now)


def run_step(step: Step, log: Path, left: float = math.inf) -> Outcome:
    """Runs a step's command, for `left` seconds at most, with all its output in `log`."""
    read = [str(path) for path in step.reads if path.is_file()]
    if step.missing:
        return Outcome(step.name, "left out", 0.0, step.missing, step.command, "")
    if step.reads and not read:
        return Outcome(step.name, "not run", 0.0, f"there is no {step.reads[0]}", step.command, "")
    if left <= 0:
        return Outcome(step.name, "not run", 0.0, "time", step.command, "")
    if step.leaves is not None:
        step.leaves.unlink(missing_ok=True)
    start, command = time.monotonic(), [*step.command, *step.within(min(step.limit, left)), *read]
    with log.open("w", encoding="utf-8", errors="replace") as file:
        try:
            outcome, detail = step.judge(run_command(command, environment_of(step), file, min(step.limit, left)))
            if outcome == "passed" and (flaw := step.flaw()):
                outcome, detail = "failed", flaw
        except subprocess.TimeoutExpired:
            outcome, detail = "failed", f"still running after {step.limit:.0f} s"
            if left < step.limit:
                outcome, detail = "not run", f"time: not done in the {left:.0f} s that --limit left"
            detail = "; ".join(filter(None, [detail, step.so_far()]))
        except OSError as error:
            outcome, detail = "failed", f"cannot be run: {error}"
    seconds = time.monotonic() - start
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
    return Outcome(step.name, outcome, seconds, detail, command, "" if outcome == "passed" else tail)


def run_command(command: list[str], environment: dict[str, str], output: IO[str], limit: float) -> int:
    """The exit status of a command that is ended, with all that it started, when it takes too long or we are ended.

    Shortly before its time is up the command itself gets Ctrl-C: pytest then writes its report of what it has done, and
    `reproduce` ends its trainings, whose processes are groups of their own. Its other processes are one group, and stay in
    our session: whoever ends that ends them too.

    Raises:
        subprocess.TimeoutExpired: it took too long.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
    )
    grace = min(GRACE, limit / 4)
    try:
        try:
            return process.wait(limit - grace)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(grace)
            raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment_of(step: Step) -> dict[str, str]:
    """Our environment, with the source tree first on Python's path, and what the step needs."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    usual = {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton")}  # by default in the home, which may be read-only
    return {**usual, **os.environ, "PYTHONPATH": path, "PATH": search_path(), **step.environment}


def search_path() -> str:
    """PATH, and after it the folders where a CUDA toolkit has its programs."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1]]
    folders = [str(Path(home, "bin")) for home in (*homes, "/usr/local/cuda") if home]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])


def passed_in(report: Path) -> list[str]:
    """The names of the tests that passed, of a JUnit report."""
    cases = xml.etree.ElementTree.parse(report).iter("testcase")
    others = {"skipped", "failure", "error"}
    return [case.get("name", "") for case in cases if not {child.tag for child in case} & others]


def flaw_of_tests(report: Path) -> str:
    """What is wrong with a JUnit report of the kernels' tests: each fast backend must have been tested on CUDA."""
    passed = passed_in(report)
    untested = [name for name in FAST if not any(f"{name}-cuda" in case for case in passed)]
    return f"no test ran on CUDA with {' and '.join(untested)}" if untested else ""


def flaw_of_faults(report: Path) -> str:
    """What is wrong with a JUnit report of the tests of faults: each fault, and each fast backend, must have been tested.

    These tests run on CUDA or not at all.
    """
    passed = passed_in(report)
    untested = [fault for fault in GPU_FAULTS if not any(name.startswith(f"test_{fault}_") for name in passed)]
    return f"no test ran of {', '.join(untested)}" if untested else flaw_of_tests(report)


def flaw_of_benchmarks(report: Path) -> str:
    """What is wrong with a report of pytest-benchmark: each fast backend must have been timed on CUDA."""
    infos = [benchmark["extra_info"] for benchmark in json.loads(report.read_text(encoding="utf-8"))["benchmarks"]]
    timed = {name for info in infos if info.get("device") == "cuda" for name in info.get("rivals", {})}
    untimed = [name for name in FAST if name not in timed]
    return f"no benchmark ran on CUDA with {' and '.join(untimed)}" if untimed else ""


def flaw_of_exercise(log: Path) -> str:
    """What is wrong with the output of exercise_kernels.py: each fast backend must have taken part."""
    found = re.search(
        r"cases agree with the reference on cuda: (.*)", log.read_text(encoding="utf-8", errors="replace")
    )
    absent = [name for name in FAST if found is None or name not in found.group(1)]
    return f"nothing ran on CUDA with {' and '.join(absent)}" if absent else ""


def lacking(modules: Sequence[str]) -> str:
    """Why what needs these modules is left out; empty where all are there."""
    absent = [name for name in dict.fromkeys(modules) if importlib.util.find_spec(name) is None]
    return f"there is no module {', '.join(absent)}; pip install -r requirements.lock brings all" if absent else ""


def sanitizer(kind: str, log: Path, limit: float, missing: str = "") -> Step:
    """The small inputs under a tool of compute-sanitizer, which prints into `log`."""
    tool = shutil.which("compute-sanitizer", path=search_path())
    if not tool:
        missing = missing or "there is no compute-sanitizer on the path; it comes with the CUDA toolkit"
    return Step(
        kind,
        [
            *(tool or "compute-sanitizer", f"--tool={kind}", f"--error-exitcode={FAILED_SANITIZER}"),
            # PyTorch asks for what may fail, and looks at the answer.
            *(["--report-api-errors=no"] if kind == "memcheck" else []),
            *(sys.executable, "benchmarks/exercise_kernels.py"),
        ],
        limit,
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        missing=missing,
        flaw=lambda: flaw_of_exercise(log),
    )


def all_steps(out: Path) -> list[Step]:
    """The steps in their order; the commands leave what they report in `out`."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    tests, faults = out / "tests.xml", out / "faults.xml"
    kernels, models = out / "benchmarks.json", out / "models.json"
    on_cpu = [f"tests/kernels/test_{name}.py" for name in CPU_TESTS]

    def benchmark(name: str, files: Sequence[str], modules: Sequence[str], results: Path) -> Step:
        command = [*pytest, *(f"benchmarks/bench_{file}.py" for file in files), "--device=cuda", "--benchmark-only"]
        return Step(
            name,
            [*command, f"--benchmark-json={results}"],
            3600,
            missing=lacking(modules),
            leaves=results,
            flaw=lambda: flaw_of_benchmarks(results),
        )

    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 1800, {"ZOOMINNET_BUILD": "cuda"}),
        Step(
            "tests",
            [*pytest, "tests/kernels", *(f"--ignore={path}" for path in on_cpu), f"--junitxml={tests}"],
            3600,
            missing=lacking(TEST_TOOLS),
            leaves=tests,
            flaw=lambda: flaw_of_tests(tests),
        ),
        Step(
            "faults",
            [*pytest, "tests/engine", "tests/test_soak.py", "-m", "gpu", f"--junitxml={faults}"],
            3600,
            missing=lacking(FAULT_TOOLS),
            leaves=faults,
            flaw=lambda: flaw_of_faults(faults),
        ),
        *(sanitizer(kind, out / f"{kind}.log", 1800) for kind in SANITIZERS),
        benchmark(
            "benchmarks",
            ("akdp_mask", "max_iou_assign", "pa_l2_loss", "sigmoid_focal_loss", "upsample_nearest2x"),
            BENCHMARK_TOOLS,
            kernels,
        ),
        benchmark("models", ("la_predictor", "train_step", "inference"), (*BENCHMARK_TOOLS, *TRAINING_TOOLS), models),
        Step(
            "tables",
            [python, "benchmarks/report.py", "--out", str(out / "benchmarks.md"), "--show"],
            60,
            reads=(kernels, models),
        ),
        Step("cpu-tests", [*pytest, *on_cpu], 3600, missing=lacking(TEST_TOOLS)),
    ]


def read_machine() -> dict[str, Any]:
    """The machine and the versions, for the report.

    Raises:
        SystemExit: there is no CUDA device that torch can use; exit status 2.
    """
    reason = "torch is not installed"
    if importlib.util.find_spec("torch") is not None:
        import torch

        reason = f"torch {torch.__version__} finds none" if torch.version.cuda else "torch is a build without CUDA"
        if torch.cuda.is_available():
            devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return {
                "gpus": [
                    {
                        "name": device.name,
                        "capability": f"{device.major}.{device.minor}",
                        "memory_gib": round(device.total_memory / 2**30, 1),
                        "multiprocessors": device.multi_processor_count,
                    }
                    for device in devices
                ],
                "driver": told_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
                "nvcc": told_by(shutil.which("nvcc", path=search_path()) or "nvcc", "--version"),
                "cuda": torch.version.cuda,
                "system": platform.platform(),
                "processors": os.cpu_count(),
                "python": platform.python_version(),
                "packages": {name: version_of(name) for name in PACKAGES},
            }
    print(f"gpu-check needs a CUDA device, and there is none: {reason}", file=sys.stderr)
    raise SystemExit(2)


def version_of(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def told_by(*command: str) -> str:
    """The last line that a command prints; "unknown" where it cannot be run or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ["", *done.stdout.strip().splitlines()][-1] if done.returncode == 0 else "unknown"


def read_commit() -> str:
    """The commit of the source tree, with a mark where files differ from it; as `measure.read_commit` has it."""
    commit = told_by("git", "rev-parse", "HEAD")
    if commit == "unknown":
        return os.environ.get("ZOOMINNET_COMMIT", commit)
    return f"{commit}, changed" if told_by("git", "status", "--porcelain", "--untracked-files=no") else commit


def read_sources() -> str:
    """A digest of the sources: all states of a changed tree have the same commit, and a copy without git has none."""
    hashed = hashlib.sha256()
    files = [ROOT / "setup.py", ROOT / "pyproject.toml"]
    for folder in ("benchmarks", "csrc", "kernels", "tests", "zoominnet"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    for path in sorted(files):
        hashed.update(f"{path.relative_to(ROOT)} {path.stat().st_size} ".encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


class Report:
    """report.json and report.md of a folder: the latest outcome of each step on these sources and this kind of GPU.

    Attributes:
        content: of report.json.
        begun_anew: whether what the folder held was of others.
    """

    def __init__(self, out: Path, machine: dict[str, Any], names: Sequence[str]) -> None:
        self.out, self.names, self.begun_anew = out, names, False
        self.content: dict[str, Any] = {"commit": read_commit(), "sources": read_sources(), "machine": machine}
        self.content["steps"] = []
        with contextlib.suppress(FileNotFoundError):
            text = (out / "report.json").read_text(encoding="utf-8")
            try:
                earlier = json.loads(text)
                same = all(earlier[key] == self.content[key] for key in ("commit", "sources"))
                if same and earlier["machine"]["gpus"] == machine["gpus"]:
                    self.content["steps"] = earlier["steps"]
                else:
                    self.begun_anew = True
            except (ValueError, KeyError, TypeError):
                self.begun_anew = True

    def add(self, outcome: Outcome) -> None:
        """Writes the files, with `outcome` in place of the step's earlier one, unless that one alone was of a run."""
        steps = {step["name"]: step for step in self.content["steps"]}
        if outcome.outcome in RAN or outcome.name not in steps or steps[outcome.name]["outcome"] not in RAN:
            steps[outcome.name] = asdict(outcome)
        self.content["steps"] = [steps[name] for name in self.names if name in steps]
        self.content |= {"result": self.result(), "date": now()}
        write_whole(self.out / "report.json", json.dumps(self.content, indent=2) + "\n")
        write_whole(self.out / "report.md", to_markdown(self.content))

    def result(self) -> str:
        """ "passed" where every step has passed; else what has not."""
        outcomes = {step["name"]: step["outcome"] for step in self.content["steps"]}
        names = {what: [name for name in self.names if outcomes.get(name, "not run") == what] for what in BAD}
        told = [f"{what}: {', '.join(names[what])}" for what in BAD if names[what]]
        if told and not names["failed"]:
            told.insert(0, "incomplete")
        return "; ".join(told) or "passed"


def write_whole(path: Path, text: str) -> None:
    """Leaves no half of a file, whenever this process is ended."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def to_markdown(report: dict[str, Any]) -> str:
    """The readable form of a report."""
    machine = report["machine"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB, {gpu['capability']})" for gpu in machine["gpus"])
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"# GPU check: {report['result']}",
        "",
        "| | |",
        "|---|---|",
        f"| GPU | {gpus} |",
        f"| driver, CUDA of torch, nvcc | {machine['driver']}, {machine['cuda']}, {machine['nvcc']} |",
        f"| system | {machine['system']}, {machine['processors']} processors, Python {machine['python']} |",
        f"| packages | {packages} |",
        f"| commit, digest of the sources | {report['commit']}, {report['sources']} |",
        f"| date | {report['date']} |",
        "",
        "| step | outcome | time | |",
        "|---|---|---|---|",
        *(f"| {s['name']} | {s['outcome']} | {s['seconds']:.1f} s | {s['detail']} |" for s in report["steps"]),
    ]
    for step in report["steps"]:
        if step["output_tail"]:
            lines += [
                "",
                f"## {step['name']}",
                "",
                "The end of what it printed:",
                "",
                "```",
                step["output_tail"],
                "```",
            ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the steps; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in all_steps(Path())]
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_check", help="folder")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--limit", type=float, default=math.inf, metavar="SECONDS", help="for all steps of this call")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.limit
    machine = read_machine()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out, machine, names)
    steps = all_steps(out)
    if report.begun_anew:
        print(f"{out} held a report of other sources or another GPU: it is begun anew", flush=True)
        for step in steps:
            if step.leaves is not None:
                step.leaves.unlink(missing_ok=True)
    outcomes = run_steps([step for step in steps if step.name in options.only], report, out, end)
    print(f"gpu-check {report.content['result']}; see {out / 'report.md'}")
    return status_of(outcomes)


def run_steps(
    steps: Sequence[Step],
    report: Report,
    logs: Path,
    end: float,
    after: Callable[[Step], None] = lambda step: None,
    *,
    needs_build: bool = True,
) -> list[Outcome]:
    """Runs steps until `end`, of `time.monotonic`.

    Args:
        steps: in their order.
        report: gets each outcome.
        logs: the folder of what they print.
        end: when the last one is stopped.
        after: called behind each, before its outcome is in the report.
        needs_build: whether none is run behind one named "build" that failed.
    """
    outcomes: list[Outcome] = []
    for step in steps:
        if needs_build and ("build", "failed") in [(each.name, each.outcome) for each in outcomes]:
            outcome = Outcome(step.name, "not run", 0.0, "the build failed", step.command, "")
        else:
            print(f"{step.name}: {' '.join(step.command)}", flush=True)
            outcome = run_step(step, logs / f"{step.name}.log", end - time.monotonic())
        outcomes.append(outcome)
        after(step)
        report.add(outcome)
        print(f"{step.name}: {outcome.outcome} {outcome.detail}".rstrip(), flush=True)
    return outcomes


def status_of(outcomes: Sequence[Outcome]) -> int:
    """The exit status."""
    found = {outcome.outcome for outcome in outcomes}
    return 1 if "failed" in found else 3 if found - {"passed"} else 0


def end_on_sigterm() -> None:
    """Makes SIGTERM an exception, so that the step's processes end with this one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
