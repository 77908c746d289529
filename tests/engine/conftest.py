"""Tiny training runs through the command itself."""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import scenes
from devices import threads
from fault_runs import QUICK, TinyRun, digest, small_resnet18
from small_run import SMALL_RUN, Train

from zoominnet.train import main as train_main

TINY = [
    *SMALL_RUN,
    "--synthetic-images",
    "8",
    "4",
    "--image-size",
    "64",
    "--batch-size",
    "2",
    "--workers",
    "0",
    "--epochs",
    "2",
    "--student",
    "snet",
    "--channels",
    "16",
    "--log-every",
    "1",
    "--warmup-steps",
    "0",
    "--device",
    "cpu",
]


@pytest.fixture
def tiny_train(tmp_path: Path) -> Train:
    """`tiny_train("--option", ..., out="name")` trains in tmp_path/name and returns the exit status."""

    def run(*options: str, out: str = "run") -> int:
        return train_main([*TINY, *options, "--out", str(tmp_path / out)])

    return run


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a teacher for `tiny_train` with the fixture `small`, barely trained."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    with scenes.kept(), small_resnet18():
        assert train_main([*TINY, "--no-check-teacher", "--max-steps", "1", "--out", str(run)]) == 0
    return str(run / "teacher")


@pytest.fixture(autouse=True)
def _scenes_painted_once() -> Iterator[None]:
    with scenes.kept():
        yield


@pytest.fixture
def two_threads(_threads: None) -> Iterator[None]:
    """For runs that are compared with `tiny_runs`."""
    with threads(2):
        yield


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that several tests look at, and none changes; and what it said."""

    path: Path
    out: str


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedRun]:
    """`tiny_runs("--option", ...)` is what `tiny_train` makes of the options with `small` and two threads; made once."""

    @functools.cache
    def finished(*options: str) -> FinishedRun:
        run, said = tmp_path_factory.mktemp("finished") / "run", io.StringIO()
        with small_resnet18(), threads(2), contextlib.redirect_stdout(said):
            assert train_main([*TINY, *options, "--out", str(run)]) == 0
        return FinishedRun(run, said.getvalue())

    return finished


def uninterrupted(out: Path, *options: str) -> dict[str, str]:
    assert TinyRun(out, *options).wait() == 0
    hashes = digest(out)
    for what, value in hashes.items():
        print(f"F1 uninterrupted, {what}: {value[:16]}")
    return hashes


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the run of fault_runs.py ends with when nothing happens to it."""
    return uninterrupted(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="session")
def quick_whole_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """The same of the quick run on a device."""

    @functools.cache
    def whole(device: str) -> dict[str, str]:
        return uninterrupted(tmp_path_factory.mktemp("whole") / "run", *QUICK, "--device", device)

    return whole


@pytest.fixture(scope="session")
def quick_whole(quick_whole_on: Callable[[str], dict[str, str]]) -> dict[str, str]:
    """The same on the CPU."""
    return quick_whole_on("cpu")


@pytest.fixture
def small() -> Iterator[None]:
    """The small backbone of fault_runs.py, in this process."""
    with small_resnet18():
        yield
