"""Waiting for images is measured and, where it is long, told with what helps."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_run import Train

from zoominnet.config import PROFILES, TrainConfig
from zoominnet.data import DetectionDataset
from zoominnet.engine import waiting
from zoominnet.engine.waiting import Waiting
from zoominnet.evaluate import main as evaluate_main

GPU = torch.device("cuda")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def batches(self, waits: list[float]) -> Iterator[Any]:
        for seconds in waits:
            self.now += seconds
            yield seconds

    def epoch(self, watch: Waiting, waits: list[float], work: float) -> None:
        for _ in watch.watch(self.batches(waits)):
            self.now += work


def options(**changes: Any) -> TrainConfig:
    return dataclasses.replace(PROFILES["paper"], **changes)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of steps of 3 s: 1 s for a batch, 4 s for the first of the second epoch, 100 s that do not count."""
    monkeypatch.setattr(waiting, "usable_cores", lambda: 16)
    clock, watch = Clock(monkeypatch), Waiting(options(), GPU)
    clock.epoch(watch, [100, 1, 1, 1], work=3)
    assert (watch.waited, watch.worked) == (3, 12)
    assert watch.advice() is None  # 15 s
    clock.epoch(watch, [4, 1], work=3)
    assert (watch.waited, watch.worked) == (8, 18)
    assert watch.advice() == (
        "31% of the time it waits for images; more --workers (2 now, on 16 cores) or --cache ram, disk or device may help, "
        "with --resume as well"
    )
    assert watch.advice() is None  # once


def test_images_that_come_in_time_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Waiting(options(), GPU)
    clock.epoch(watch, [50, *[0.24] * 99], work=0.76)
    assert watch.advice() is None


@pytest.mark.parametrize(
    ("device", "changes", "means"),
    [
        ("cuda", {"workers": 16}, "--cache ram, disk or device"),
        ("cuda", {"cache": "ram"}, "more --workers (2 now, on 16 cores)"),
        ("cuda", {"cache": "ram", "workers": 16}, None),
        ("cpu", {}, "--cache ram, disk or device"),
        ("cpu", {"cache": "disk"}, None),
    ],
)
def test_what_can_help(
    monkeypatch: pytest.MonkeyPatch, device: str, changes: dict[str, Any], means: str | None
) -> None:
    monkeypatch.setattr(waiting, "usable_cores", lambda: 16)
    clock, watch = Clock(monkeypatch), Waiting(options(**changes), torch.device(device))
    clock.epoch(watch, [1.0] * 40, work=1)
    advice = watch.advice()
    assert (advice is None) == (means is None)
    assert means is None or f"images; {means} may help" in str(advice)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("slow", [True, False])
def test_a_run_says_so_once(
    tiny_train: Train,
    tiny_teacher: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slow: bool,
) -> None:
    monkeypatch.setattr(waiting, "LONG_ENOUGH", 0.1)
    load = DetectionDataset.__getitems__

    def late(self: DetectionDataset, keys: Any) -> Any:
        time.sleep(0.2 if slow else 0)
        return load(self, keys)

    monkeypatch.setattr(DetectionDataset, "__getitems__", late)
    monkeypatch.setattr(waiting, "TOO_MUCH", 0.5)
    assert tiny_train("--teacher", tiny_teacher) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "waits for images" in line]
    assert len(lines) == slow
    assert all(line.startswith("student: ") and "--cache ram, disk or device may help" in line for line in lines)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system does not say which cores are this process's"
)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("workers", [1, 2])
def test_more_workers_than_cores_are_told_once(
    tiny_train: Train,
    tiny_teacher: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    workers: int,
) -> None:
    """In a run's header and by an evaluation, and not by PyTorch's warning at each epoch and validation."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert tiny_train("--teacher", tiny_teacher, "--workers", str(workers)) == 0
    told = "2 on 1 core: they take turns, so --workers 1 may be as fast\n"
    assert capsys.readouterr().out.count(f"  workers   {told}") == (workers == 2)
    measure = ["--data", "synthetic", "--synthetic-images", "2", "--latency-repeats", "0", "--device", "cpu"]
    assert evaluate_main([tiny_teacher, *measure, "--workers", str(workers)]) == 0
    assert capsys.readouterr().out.count(f"--workers {told}") == (workers == 2)
    assert [str(each.message) for each in recwarn if "DataLoader" in str(each.message)] == []
