"""Long runs: nothing grows."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from devices import on_gpu
from small_run import SMALL_RUN

from zoominnet.engine.trainer import Phase
from zoominnet.train import main as train_main

OPTIONS = [
    *SMALL_RUN,
    *("--synthetic-images", "8", "2", "--image-size", "64", "--batch-size", "1"),
    *(
        "--student",
        "snet",
        "--channels",
        "8",
        "--warmup-steps",
        "0",
        "--log-every",
        "10",
        "--no-check-teacher",
        "--device",
        "cpu",
    ),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher of one step."""
    out = tmp_path_factory.mktemp("teacher")
    assert train_main([*OPTIONS, "--max-steps", "1", "--teacher-epochs", "1", "--workers", "0", "--out", str(out)]) == 0
    return str(out / "teacher")


def watch_steps(monkeypatch: pytest.MonkeyPatch, measure: Callable[[], object]) -> list[Any]:
    """What `measure` gave before each training step."""
    seen: list[Any] = []
    step = Phase._train_step

    def watched(self: Phase, batch, log: bool):  # type: ignore[no-untyped-def]
        seen.append(measure())
        return step(self, batch, log)

    monkeypatch.setattr(Phase, "_train_step", watched)
    return seen


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.parametrize(("device", "images", "epochs"), [("cpu", 4, 6), on_gpu("cuda", 20, 15)])
@pytest.mark.timeout(900)
def test_f25_steps_leave_no_tensor_and_no_file_behind(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, images: int, epochs: int
) -> None:
    """Counts, which no other process on the machine can disturb, unlike the memory that `make soak` looks at.

    On a GPU also the bytes that torch was asked for there, over 300 steps; its tensors alone, for batches on the host lie
    in the queue of the thread that pins them, none or two as it happens.
    """

    def count() -> tuple[int, int, int] | None:
        # The third step of each epoch is compared; the first epochs build what is kept.
        if len(seen) % images != 2:
            return None
        for thread in threading.enumerate():  # a checkpoint on its way to a slow disk has a copy of the tensors
            if thread.name == "checkpoint-writer":
                thread.join()
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        counted = [each for each in tensors if each.device.type == device]
        asked_for = torch.cuda.memory_stats().get("requested_bytes.all.current", 0)
        return len(counted), asked_for, open_files()

    seen = watch_steps(monkeypatch, count)
    options = ["--teacher", teacher, "--synthetic-images", str(images), "2", "--epochs", str(epochs)]
    options += ["--workers", "1", "--device", device]
    gc.collect()
    gc.freeze()  # what other tests have left is not looked through each time
    try:
        assert train_main([*OPTIONS, *options, "--out", str(tmp_path / "run")]) == 0
    finally:
        gc.unfreeze()
    assert len(seen) == images * epochs
    tensors, allocated, files = zip(*seen[2::images][2:], strict=True)
    assert len(set(tensors)) == 1, f"in the epochs from the third: {tensors}"
    assert len(set(allocated)) == 1, f"bytes in the epochs from the third: {allocated}"
    assert allocated[0] > 0 or device == "cpu"
    # A batch on its way from a worker holds a file or two; one left by each step would make 12.
    assert max(files) - min(files) <= 3, f"in the epochs from the third: {files}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [0, 2])
def test_f25_two_thousand_steps(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Resident memory rises by less than 1 MB in 100 steps after the warm-up, and open files not at all."""
    process = psutil.Process()
    seen = watch_steps(monkeypatch, lambda: (process.memory_info().rss / 2**20, open_files()))
    # epochs of 100 steps, so that loaders, validations and checkpoints come and go as well
    options = ["--teacher", teacher, "--synthetic-images", "100", "2", "--epochs", "20", "--workers", str(workers)]
    assert train_main([*OPTIONS, *options, "--checkpoint-every", "50", "--out", str(tmp_path / "run")]) == 0
    memory, files = np.array(seen[500:]).T
    assert len(memory) == 1500
    slope, file_slope = (np.polyfit(np.arange(1500) / 100, values, 1)[0] for values in (memory, files))
    print(
        f"workers {workers}: {slope:.3f} MiB per 100 steps, {memory[0]:.0f} to {memory[-1]:.0f} MiB, {files.max():g} files"
    )
    assert slope < 1
    assert abs(file_slope) < 0.1  # a batch on its way from a worker holds a file or two, now and then
