"""All that can be checked on a GPU alone: build, tests, compute-sanitizer, benchmarks; with a report of each.

    make gpu-check                                  # or: python3 benchmarks/gpu_check.py
    python3 benchmarks/gpu_check.py --only build tests --out /tmp/report

Needs a CUDA device, nvcc and torch with pytest, pytest-timeout, pytest-benchmark and hypothesis, and for the benchmarks
what the package itself depends on; no network and no virtual environment. The libraries are built into the source tree.
Exits 0 when every step passed or, for lack of a tool, was left out; 1 when one failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAILED_SANITIZER = 9
"""Exit status of compute-sanitizer where the program is right and the tool is not content."""
PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "hypothesis")
DEPENDENCIES = ("torchvision", "PIL", "safetensors", "tyro", "rich", "pycocotools", "yaml", "fvcore", "tensorboard")
"""Modules that the package imports, as the benchmarks of whole models do."""
TAIL = 60
"""Lines of a failed step's output that the report shows."""


@dataclass(frozen=True)
class Step:
    """A command, and what must hold after it.

    Attributes:
        name: as the report shows it.
        command: run in the repository's root.
        limit: seconds after which it counts as hanging.
        environment: variables beside the usual ones.
        missing: where it is not empty, why the step is left out.
        flaw: looks at what the command left behind; gives what is wrong with it, or an empty string.
    """

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    flaw: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step. `outcome` is "passed", "failed" or "left out"; `detail` is one line."""

    name: str
    outcome: str
    seconds: float
    detail: str
    command: list[str]
    output_tail: str


def run_step(step: Step, log: Path) -> Outcome:
    """Runs a step's command, with all its output in `log`."""
    if step.missing:
        return Outcome(step.name, "left out", 0.0, step.missing, step.command, "")
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **step.environment}
    with log.open("w", encoding="utf-8", errors="replace") as file:
        try:
            done = subprocess.run(
                step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=step.limit
            )
            detail = step.flaw() if done.returncode == 0 else f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            detail = f"still running after {step.limit:.0f} s"
        except OSError as error:
            detail = f"cannot be run: {error}"
    seconds = time.monotonic() - start
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
    return Outcome(step.name, "failed" if detail else "passed", seconds, detail, step.command, tail if detail else "")


def flaw_of_tests(report: Path) -> str:
    """What is wrong with a JUnit report of the kernels' tests: each fast backend must have been tested on CUDA."""
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    passed = [
        case.get("name", "") for case in cases if not {child.tag for child in case} & {"skipped", "failure", "error"}
    ]
    untested = [name for name in ("native", "triton") if not any(f"{name}-cuda" in case for case in passed)]
    return f"no test ran on CUDA with {' and '.join(untested)}" if untested else ""


def flaw_of_benchmarks(report: Path) -> str:
    """What is wrong with a report of pytest-benchmark: each fast backend must have been timed on CUDA."""
    infos = [benchmark["extra_info"] for benchmark in json.loads(report.read_text(encoding="utf-8"))["benchmarks"]]
    timed = {name for info in infos if info.get("device") == "cuda" for name in info.get("rivals", {})}
    untimed = [name for name in ("native", "triton") if name not in timed]
    return f"no benchmark ran on CUDA with {' and '.join(untimed)}" if untimed else ""


def lacking(modules: Sequence[str]) -> str:
    """Why what needs these modules is left out; empty where all are there."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"there is no module {', '.join(absent)}; pip install . brings what the package depends on" if absent else ""


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path, or beside nvcc."""
    nvcc = shutil.which("nvcc")
    folders = [os.environ.get("PATH", os.defpath), *([str(Path(nvcc).resolve().parent)] if nvcc else [])]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def all_steps(out: Path) -> list[Step]:
    """The steps in their order; the commands leave what they report in `out`."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    tests, benchmarks = out / "tests.xml", out / "benchmarks.json"
    sanitizer = find_sanitizer()
    missing = "" if sanitizer else "there is no compute-sanitizer on the path; it comes with the CUDA toolkit"
    without_cache = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 1800, {"ZOOMINNET_BUILD": "cuda"}),
        Step(
            "tests",
            [*pytest, "tests/kernels", f"--junitxml={tests}"],
            3600,
            flaw=lambda: flaw_of_tests(tests),
        ),
        *(
            Step(
                tool,
                [
                    sanitizer or "compute-sanitizer",
                    f"--tool={tool}",
                    f"--error-exitcode={FAILED_SANITIZER}",
                    python,
                    "benchmarks/exercise_kernels.py",
                ],
                1800,
                without_cache,
                missing,
            )
            for tool in SANITIZERS
        ),
        Step(
            "benchmarks",
            [*pytest, "benchmarks/", "--benchmark-only", f"--benchmark-json={benchmarks}"],
            3600,
            missing=lacking(DEPENDENCIES),
            flaw=lambda: flaw_of_benchmarks(benchmarks),
        ),
        Step(
            "tables",
            [python, "benchmarks/report.py", "--show", str(benchmarks), "--out", str(out / "benchmarks.md")],
            60,
            missing=lacking(DEPENDENCIES),
        ),
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
                "nvcc": told_by("nvcc", "--version"),
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
    """The commit of the source tree, with a mark where files differ from it."""
    commit = told_by("git", "rev-parse", "HEAD")
    changed = told_by("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, changed" if changed and commit != "unknown" else commit


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
        f"| commit | {report['commit']} |",
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
    options = parser.parse_args(arguments)
    machine = read_machine()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for step in all_steps(out):
        if step.name not in options.only:
            continue
        if outcomes and outcomes[0].name == "build" and outcomes[0].outcome == "failed":
            outcomes.append(Outcome(step.name, "failed", 0.0, "not run, since the build failed", step.command, ""))
        else:
            print(f"{step.name}: {' '.join(step.command)}", flush=True)
            outcomes.append(run_step(step, out / f"{step.name}.log"))
        print(f"{step.name}: {outcomes[-1].outcome} {outcomes[-1].detail}".rstrip(), flush=True)
    failed = [outcome.name for outcome in outcomes if outcome.outcome == "failed"]
    left_out = [outcome.name for outcome in outcomes if outcome.outcome == "left out"]
    result = f"failed: {', '.join(failed)}" if failed else "passed"
    report = {
        "result": result + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": read_commit(),
        "machine": machine,
        "steps": [asdict(outcome) for outcome in outcomes],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(to_markdown(report), encoding="utf-8")
    print(f"gpu-check {report['result']}; see {out / 'report.md'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
