"""RELIABILITY.md F1: runs that are killed end, resumed, bit for bit as if nothing had been."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from devices import each_device
from fault_runs import QUICK, STEPS, TINY, TinyRun, digest, steps_done
from safetensors.torch import load_file

from zoominnet.engine.checkpoint import MODEL, OPTIMIZER, newest_checkpoint
from zoominnet.train import main as train_main

KILLS = 25


def run_and_kill(out: Path, step: int, delay_s: float, *options: str) -> None:
    """Trains until `step` steps are logged, and `delay_s` more; then SIGKILL."""
    run = TinyRun(out, *options)
    run.wait_for(lambda: steps_done(out) >= step)
    time.sleep(delay_s)
    run.process.kill()
    assert run.wait() in (-9, 0)


def resume(out: Path, *options: str) -> float:
    """Trains to the end; the seconds that takes."""
    start = time.monotonic()
    run = TinyRun(out, "--resume", *options)
    assert run.wait() == 0, run.text()
    return time.monotonic() - start


def moments(count: int, seed: int) -> list[tuple[int, float, str]]:
    """Seeded moments: steps spread over the whole run, up to 0.3 s after them; every fifth with loader workers."""
    rng = random.Random(seed)
    return [
        (1 + (STEPS - 2) * i // count + rng.randrange(2), rng.uniform(0, 0.3), "2" if i % 5 == 2 else "0")
        for i in range(count)
    ]


@pytest.mark.slow
@each_device
def test_f01_killed_three_times_mid_epoch(
    tmp_path: Path, device: str, quick_whole_on: Callable[[str], dict[str, str]]
) -> None:
    """Kills in the second epoch of the teacher, and in the second and the third of the student."""
    out, options = tmp_path / "run", [*QUICK, "--device", device]
    run_and_kill(out, 9, 0.05, *options)
    run_and_kill(out, 19, 0.1, *options, "--resume", "--workers", "1")
    run_and_kill(out, 26, 0.0, *options, "--resume")
    resume(out, *options)
    assert digest(out) == quick_whole_on(device)
    text = (tmp_path / "run.txt").read_text()
    assert len(re.findall(rf"^zoominnet \S+ on {device} \(", text, re.MULTILINE)) == 4
    assert text.count("teacher: going on from") == 3
    assert text.count("student: going on from") == 2


@pytest.mark.slow
def test_f01_killed_with_an_adapter(tmp_path: Path) -> None:
    """A teacher of more channels: what brings the student's maps to them goes on as well, weights and optimiser."""
    options = [*QUICK, "--teacher-channels", "12", "--optimizer", "adamw", "--lr", "0.002"]
    assert TinyRun(tmp_path / "whole", *options).wait() == 0
    out = tmp_path / "run"
    run_and_kill(out, 5, 0.0, *options)
    run_and_kill(out, 19, 0.1, *options, "--resume")
    resume(out, *options)
    whole = digest(tmp_path / "whole")
    assert digest(out) == whole
    file = newest_checkpoint(out / "student" / "checkpoints")[0]
    assert file is not None
    assert any(name.startswith("adapter.") for name in load_file(file / OPTIMIZER))
    assert not [name for name in load_file(file / MODEL) if "adapter" in name or "convs" in name]
    assert (tmp_path / "run.txt").read_text().count("bring its maps of 8 channels to the teacher's 12") == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from /proc")
@pytest.mark.usefixtures("small")
def test_f01_what_resume_reads_is_on_the_disk_before_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave checkpoints, but no configuration to go on with."""
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    assert train_main([*TINY, "--no-distill", "--max-steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert synced[:3] == ["/run/data.writing", "/run/config.writing", "/run"]
    assert "/run/student/checkpoints" in synced[3:]


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kill", moments(KILLS, seed=0), ids=lambda kill: f"step {kill[0]} workers {kill[2]}")
def test_f01_killed_once_at_any_moment(tmp_path: Path, whole: dict[str, str], kill: tuple[int, float, str]) -> None:
    step, delay_s, workers = kill
    out = tmp_path / "run"
    run_and_kill(out, step, delay_s, "--workers", workers)
    seconds = resume(out)
    same = digest(out) == whole
    print(
        f"F1 killed {delay_s:.2f} s after step {step} of {STEPS}, {workers} workers: same {same}, {seconds:.0f} s more"
    )
    assert same


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_f01_killed_again_and_again(tmp_path: Path, whole: dict[str, str]) -> None:
    """One run, killed at 12 moments, each time resumed."""
    out = tmp_path / "run"
    for i, (step, delay_s, workers) in enumerate(moments(12, seed=1)):
        run_and_kill(out, step, delay_s, "--workers", workers, *(["--resume"] if i else []))
    resume(out)
    assert digest(out) == whole
