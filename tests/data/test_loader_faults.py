"""Worker processes of the loader that die, raise or hang, and the end of a command that meets them."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from zoominnet.command import run_command
from zoominnet.data import DataReport, DetectionDataset, ImageRecord, Split, loader_failure, make_loader, shard_batches

BAD = 5


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Twelve images in files."""
    records = []
    for index in range(12):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((20, 20, 3), index, dtype=np.uint8)).save(path)
        records.append(ImageRecord(path, index, 20, 20))
    return Split("train", records, ("a",), (1,), DataReport())


def faulty(split: Split, fault: Callable[[], None]) -> DetectionDataset:
    """A dataset in which `fault` happens when image BAD is loaded."""

    class Faulty(DetectionDataset):
        def _load(self, record: ImageRecord) -> torch.Tensor:
            if record.image_id == BAD:
                fault()
            return super()._load(record)

    return Faulty(split, 16, flip=False, seed=0)


def run(dataset: DetectionDataset, *, workers: int = 2, timeout: float = 60.0, debug: bool = False) -> int:
    """All batches through the loader, as a command does it."""

    def job() -> None:
        for _ in make_loader(dataset, shard_batches(len(dataset), 2), workers=workers, timeout=timeout):
            pass

    return run_command("zoominnet.train", job, debug=debug)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def fail() -> None:
    raise RuntimeError("broken\nover two lines")


def run_out_of_memory() -> None:
    raise MemoryError


def hang() -> None:
    time.sleep(600)


_others: set[int] = set()
"""Processes that earlier tests keep for later ones, such as a forkserver."""


@pytest.fixture(autouse=True)
def _note_other_processes() -> None:
    _others.clear()
    _others.update(child.pid for child in psutil.Process().children(recursive=True))


def no_child_is_left() -> bool:
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in _others]
    _, alive = psutil.wait_procs(children, timeout=20)
    return not alive


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (kill, r"DataLoader worker \(pid.*\) (is killed by signal: Killed|exited unexpectedly|died)"),
        (leave, r"DataLoader worker \(pid.*\) (exited unexpectedly|died)"),
    ],
    ids=["SIGKILL", "exit"],
)
@pytest.mark.parametrize("workers", [1, 3], ids=["1 worker", "3 workers"])
def test_f15_a_worker_that_dies(
    split: Split, fault: Callable[[], None], what: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(faulty(split, fault), workers=workers) == 74
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    path = split.records[BAD].path
    found = rf"^zoominnet\.train: {what}.*, while reading {path}: if memory ran out, give fewer --workers"
    assert re.search(found, line), line
    assert no_child_is_left()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "reason"), [(fail, "RuntimeError: broken over two lines"), (run_out_of_memory, "MemoryError:")]
)
def test_f15_a_worker_that_raises(
    split: Split, fault: Callable[[], None], reason: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(faulty(split, fault), workers=workers) == 74
    path = split.records[BAD].path
    assert capfd.readouterr().err == f"zoominnet.train: {path} (epoch 0): cannot be loaded: {reason}\n"
    assert no_child_is_left()


@pytest.mark.slow
def test_f15_a_worker_that_hangs(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(faulty(split, hang), timeout=1.5) == 74
    expected = (
        f"zoominnet.train: DataLoader timed out after 1.5 seconds, while reading {split.records[BAD].path}: "
        "look at that file and its disk, or give a longer --loader-timeout\n"
    )
    assert capfd.readouterr().err == expected
    assert no_child_is_left()


def test_f15_workers_get_the_open_files_that_they_need(split: Split) -> None:
    """It is raised before the workers start, each of which takes some."""
    dataset = DetectionDataset(replace(split, records=list(split.records) * 40), 16, flip=False, seed=0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    try:
        batches = list(make_loader(dataset, shard_batches(len(dataset), 160), workers=1, timeout=30))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [len(batch.targets) for batch in batches] == [160] * 3


def test_f15_generated_images_are_named_too(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    generated = replace(
        split,
        records=[replace(record, path=None) for record in split.records],
        render=lambda record: torch.zeros(3, 20, 20, dtype=torch.uint8),
    )
    assert run(faulty(generated, kill)) == 74
    assert f"while reading image {BAD} of split 'train': " in capfd.readouterr().err


def test_f15_debug_shows_the_traceback(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(faulty(split, fail), debug=True) == 74
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert "in fail" in error
    assert no_child_is_left()


def test_f15_a_death_that_shows_while_the_batch_is_in_use(split: Split, capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch then raises from a signal handler, in the middle of a training step or of writing a checkpoint."""
    dataset = faulty(split, kill)

    def job() -> None:
        for _ in make_loader(dataset, shard_batches(12, 2), workers=1, timeout=60):
            time.sleep(0.5)

    assert run_command("zoominnet.train", job, debug=False) == 74
    assert f"while reading {split.records[BAD].path}: " in capfd.readouterr().err
    assert no_child_is_left()


def test_f15_other_errors_are_not_taken_for_the_loader_s() -> None:
    def job() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert loader_failure(RuntimeError("mat1 and mat2")) is None
    with pytest.raises(RuntimeError, match="mat1"):
        run_command("zoominnet.train", job, debug=False)


def test_f15_what_was_read_is_forgotten_when_it_is_done(split: Split) -> None:
    """Else a later fault would name files that were loaded long ago."""
    dataset = DetectionDataset(split, 16, flip=False, seed=0)
    for _ in make_loader(dataset, shard_batches(len(dataset), 2), workers=2, timeout=60):
        pass
    assert dataset.reading[:, 0].min() > 0
    assert dataset.reading[:, 1].tolist() == [-1, -1]
