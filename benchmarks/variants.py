"""Times the CUDA library with other constants beside the library as it is: which of them should stay?

    ZOOMINNET_CUDA_ARCHS=90 python benchmarks/variants.py build      # into build/variants; needs nvcc and no GPU
    python benchmarks/variants.py time --json FILE                   # on the GPU: what is there, and the library as it is

A variant is the sources with some text replaced, compiled by setup.py in a copy of the tree. Each runs in a process of its own;
they take turns of `CALLS` calls of each kernel at the shape of its target, with cold caches. A variant whose result is not the
reference's is named, and not timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, Clock, Rival, facts
from profile_kernels import kernels

from zoominnet.kernels._extension import LIBRARIES

FOLDER = ROOT / "build" / "variants"
ROUNDS, CALLS, WARM_UP = 7, 15, 3
AS_IT_IS = "as it is"
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels/_schemas.py", "zoominnet/__init__.py")
"""What setup.py reads, beside the sources."""
SUM_BLOCKS, THREADS = "constexpr int64_t kMaxSumBlocks = 2048", "constexpr int kThreads = 128"
AHEAD, MIN_BLOCKS = "kAhead = step == 1 ? 4 : 2", "kMinBlocks = 4"
LOSS, FOCAL = "csrc/pa_l2_loss/pa_l2_loss_cuda.cu", "csrc/sigmoid_focal_loss/sigmoid_focal_loss_cuda.cu"
VARIANTS: dict[str, list[tuple[str, str, str]]] = {
    "threads-64": [("csrc/launch_cuda.h", THREADS, THREADS.replace("128", "64"))],
    "threads-256": [("csrc/launch_cuda.h", THREADS, THREADS.replace("128", "256"))],
    "sum-blocks-1024": [(file, SUM_BLOCKS, SUM_BLOCKS.replace("2048", "1024")) for file in (LOSS, FOCAL)],
    "sum-blocks-8192": [(file, SUM_BLOCKS, SUM_BLOCKS.replace("2048", "8192")) for file in (LOSS, FOCAL)],
    "ahead-2-1": [(LOSS, AHEAD, AHEAD.replace("4 : 2", "2 : 1"))],
    "ahead-8-4": [(LOSS, AHEAD, AHEAD.replace("4 : 2", "8 : 4"))],
    "min-blocks-8": [(LOSS, MIN_BLOCKS, MIN_BLOCKS.replace("4", "8"))],
}
"""By name: a file, what stands there, and what is to stand there."""


def sources() -> list[str]:
    """The files that a library for CUDA is made of, relative to ROOT."""
    found = [str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*") if path.is_file()]
    return [*NEEDED, *(path for path in found if not path.endswith("_cpu.cpp"))]


def write_sources(name: str, folder: Path) -> None:
    """The tree that setup.py compiles a variant from.

    Raises:
        SystemExit: what is to be replaced is not there just once.
    """
    for path in sources():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    for path, old, new in VARIANTS[name]:
        text = (folder / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"variants: {name}: {path} has {old!r} {text.count(old)} times; mend VARIANTS")
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")


def build(names: Sequence[str], folder: Path) -> None:
    """Compiles variants that are not there or older than the sources, each into a folder of its name."""
    newest = max((ROOT / path).stat().st_mtime for path in [*sources(), "benchmarks/variants.py"])
    for name in names:
        library = folder / name / "_C_cuda.so"
        if library.is_file() and library.stat().st_mtime > newest:
            continue
        with tempfile.TemporaryDirectory() as tree:
            write_sources(name, Path(tree))
            command = [sys.executable, "setup.py", "build_ext", "--inplace"]
            done = subprocess.run(
                command, cwd=tree, env={**os.environ, "ZOOMINNET_BUILD": "cuda"}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"variants: {name} cannot be compiled:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
            library.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(tree, "zoominnet", "_C_cuda.so"), library)
        print(f"{name}: built", flush=True)


def serve(device: str, size: str) -> None:
    """Answers requests, the name of a kernel a line, with the seconds of `CALLS` calls; first says which are right."""
    clock = Clock(torch.device(device))
    calls = dict(kernels(device, size))
    wrong = [name for name, call in calls.items() if not same(call("native"), call("reference"))]
    for name, call in calls.items():
        for _ in range(WARM_UP if name not in wrong else 0):
            call("native")
    print(json.dumps(wrong), flush=True)
    rivals = {name: Rival("native", functools.partial(call, "native")) for name, call in calls.items()}
    for line in sys.stdin:
        rival = rivals[line.strip()]
        times = [clock.device_time(rival) if clock.cuda else clock.time(rival) for _ in range(CALLS)]
        print(json.dumps(times), flush=True)


def same(got: Any, expected: Any) -> bool:
    """Whether results are equal, floating-point ones but for the order of sums."""
    if isinstance(got, torch.Tensor):
        return bool(torch.allclose(got.double(), expected.double(), rtol=1e-5, atol=1e-6))
    return len(got) == len(expected) and all(map(same, got, expected))


class Process:
    """A variant at work.

    Attributes:
        wrong: the kernels whose results are not the reference's.
    """

    def __init__(self, library: Path | None, device: str, size: str) -> None:
        environment = dict(os.environ)
        if library is not None:
            environment["ZOOMINNET_LIBRARY_DIR"] = str(library)
        command = [sys.executable, __file__, "serve", "--device", device, *(["--tiny"] if size == "tiny" else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    @functools.cached_property
    def wrong(self) -> list[str]:
        return self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"variants: a process ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, kernel: str) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kernel}\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def race(folder: Path, device: str, size: str) -> Iterator[dict[str, dict[str, float | None]]]:
    """After each round the median seconds of each kernel by each variant; None where its result is wrong."""
    found = sorted(folder.glob(f"*/{LIBRARIES[torch.device(device).type]}"))
    libraries = {AS_IT_IS: None, **{path.parent.name: path.parent for path in found}}
    names = [name for name, _ in kernels("cpu", "tiny")]
    processes: dict[str, Process] = {}
    try:
        for variant, library in libraries.items():
            processes[variant] = Process(library, device, size)
        for process in processes.values():
            process.wrong  # noqa: B018 - all have begun, and are at work when the clock starts
        seconds: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS if size == "full" else 1):
            for kernel in names:
                for variant, process in processes.items():
                    if kernel not in process.wrong:
                        seconds.setdefault((kernel, variant), []).extend(process.ask(kernel))
            yield {
                kernel: {v: statistics.median(s) if (s := seconds.get((kernel, v))) else None for v in libraries}
                for kernel in names
            }
    finally:
        for process in processes.values():
            process.end()


def table(found: dict[str, dict[str, float | None]]) -> str:
    """For people: of the library as it is the time, of the others how many times as long they take."""
    names = list(found)
    lines = [f"{'':16}" + "".join(f"{name:>20}" for name in names)]
    for variant in next(iter(found.values())):
        cells = []
        for name in names:
            own, base = found[name][variant], found[name][AS_IT_IS]
            if own is None or base is None:
                cells.append("wrong")
            else:
                cells.append(f"{own * 1e6:.1f} us" if variant == AS_IT_IS else f"{own / base:.3f} x")
        lines.append(f"{variant:16}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "time", "serve"])
    parser.add_argument("names", nargs="*", help="variants to build (all)")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, one round: that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the medians are kept")
    options = parser.parse_args()
    size = "tiny" if options.tiny else "full"
    if unknown := [name for name in options.names if name not in VARIANTS]:
        parser.error(f"{unknown[0]}: no such variant; these are {', '.join(VARIANTS)}")
    if options.what == "serve":
        serve(options.device, size)
    elif options.what == "build":
        build(options.names or list(VARIANTS), options.folder)
    else:
        about = facts(torch.device(options.device))
        for found in race(options.folder, options.device, size):
            if options.json:
                options.json.write_text(json.dumps({**about, "seconds": found}, indent=1) + "\n", encoding="utf-8")
        print(table(found))


if __name__ == "__main__":
    main()
