"""Options and fixtures of the benchmarks; `measure.py` says how they measure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import measure
from measure import EFFORT, Clock, Rival
from shapes import BOXES

from zoominnet.kernels import available_backends

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("zoominnet")
    group.addoption("--tiny", action="store_true", help="tiny shapes, one round: that everything runs, not how fast")
    group.addoption("--threads", type=int, default=1, help="CPU threads of every rival (default 1)")
    group.addoption("--device", choices=["cpu", "cuda"], help="this alone (default: each that there is)")
    group.addoption("--compile", action="store_true", help="the training step compiled takes turns too (takes minutes)")
    group.addoption("--before", metavar="COMMIT", help="the training step of that commit takes turns with today's")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") not in (None, *DEVICES):
        raise pytest.UsageError("--device cuda: torch finds no CUDA device; leave it out to measure on the CPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: each that there is, or the one asked for."""
    if "device" in metafunc.fixturenames:
        names = [name for name in DEVICES if metafunc.config.getoption("--device") in (None, name)]
        metafunc.parametrize("device", [torch.device(name) for name in names], ids=names, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A benchmark that Ctrl-C ends is left out of the results, which pytest-benchmark could not write with it: it leaves
    out only those that an Exception has ended."""
    try:
        return (yield)
    except KeyboardInterrupt:
        if benchmark := getattr(item, "funcargs", {}).get("benchmark"):
            benchmark.has_error = True
        raise


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> str:
    """ "full" or "tiny"."""
    return "tiny" if request.config.getoption("--tiny") else "full"


@pytest.fixture(scope="session", autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clock(device: torch.device, _threads: None) -> Clock:
    return Clock(device)


@pytest.fixture
def shape(request: pytest.FixtureRequest, shape_name: str, size: str) -> Any:
    """The shape of that name, of the test module's SHAPES."""
    return request.module.SHAPES[size][shape_name]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """What one benchmark compiled must not make the next one's graphs more general, and so slower."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


Race = Callable[..., None]


@pytest.fixture
def race(benchmark: Any, clock: Clock, size: str) -> Race:
    """`race(op, shape_name, shape, direction, rivals, check, bytes_moved)`, see :func:`measure.race`."""

    def run(
        op: str,
        shape_name: str,
        shape: Any,
        direction: str,
        rivals: Sequence[Rival],
        check: Callable[[str, Any], None],
        bytes_moved: int,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        benchmark.group = op
        left_out = dict(left_out or {})
        for name, state in available_backends(clock.device.type)["akdp_mask"].items():
            if state != "ok":
                left_out[name] = state
        benchmark.extra_info |= {
            "op": op,
            "shape": shape_name,
            "sizes": str(shape),
            "dtype": str(getattr(shape, "dtype", torch.float32)).removeprefix("torch."),
            "direction": direction,
            **measure.facts(clock.device),
            "boxes": BOXES,
        }
        benchmark.extra_info |= measure.race(benchmark, clock, EFFORT[size], rivals, check, left_out, bytes_moved)

    return run


@pytest.fixture
def backends(device: torch.device) -> list[str]:
    """Ours that run on the device, the reference first."""
    return [name for name, state in available_backends(device.type)["akdp_mask"].items() if state == "ok"]


@dataclass(frozen=True)
class Before:
    """Another commit: its name, and its files with the compiled library in a folder."""

    commit: str
    tree: Path


@pytest.fixture(scope="session")
def before(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Before | None]:
    """The commit of --before, None without."""
    name = request.config.getoption("--before")
    if name is None:
        yield None
        return

    def run(*command: str, cwd: Path = measure.ROOT, **environment: str) -> str:
        done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode:
            raise pytest.UsageError(
                f"--before {name}: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout.strip()

    commit = run("git", "rev-parse", "--short=7", f"{name}^{{commit}}")
    tree = tmp_path_factory.mktemp("before") / commit
    run("git", "worktree", "add", "--detach", str(tree), commit)
    try:
        if run("git", "diff", "--name-only", commit, "--", "csrc", "setup.py"):
            kind = "cuda" if "cuda" in DEVICES and request.config.getoption("--device") != "cpu" else "cpu"
            run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, ZOOMINNET_BUILD=kind)
        else:  # the same sources: this tree's library is that one's too
            own = measure.ROOT / "zoominnet"
            for file in (*own.glob("*.so"), own / "_build.json"):
                shutil.copy(file, tree / "zoominnet")
        yield Before(commit, tree)
    finally:
        run("git", "worktree", "remove", "--force", str(tree))
