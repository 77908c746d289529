"""Runs side by side, in their order, within a time; the trainings are stood in for by a script that sleeps."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from zoominnet.data import SyntheticScenes
from zoominnet.reproduction.estimates import Estimates, duration
from zoominnet.reproduction.execution import Executor, Left
from zoominnet.reproduction.plan import Item, Row, Training
from zoominnet.reproduction.runs import Run, runs_of
from zoominnet.reproduction.scales import SCALES

SCRIPT = """
import json, os, pathlib, signal, sys, time
folder, phase, config, seconds, fate = pathlib.Path(sys.argv[1]), *sys.argv[2:]
if fate != "dies":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(config)
with (folder / "times").open("a") as file:
    print("begins", time.monotonic(), os.environ.get("OMP_NUM_THREADS"), file=file, flush=True)
    time.sleep(float(seconds))
    if fate == "fails":
        sys.exit("one line\\nthe reason")
    (folder / "result.json").write_text(json.dumps({"models": {phase: {"AP": 0.5}}}))
    print("ends", time.monotonic(), file=file)
"""
TEACHER = Training("teacher", {"student": "none"})
A, B = (Row(name, Training(name, {"student": "snet", "distill": False})) for name in "ab")
C = Row("c", Training("c", {"student": "snet"}, TEACHER))
TABLE = Item("", ("AP",), (C, A, B))
SCENES = SyntheticScenes(100).split


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """teacher, c (which needs it), a and b; each takes 0.5 s."""
    stand_in(monkeypatch)
    return runs_of(TABLE.trainings(range(1)), SCALES["small"].config, tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5, **fates: str) -> None:
    def command(run: Run) -> list[str]:
        fate = fates.get(run.training.name, "")
        config = json.dumps(run.config.settled().as_dict())
        return ["-c", SCRIPT, str(run.folder), run.phase, config, str(seconds), fate]

    monkeypatch.setattr(Run, "command", command)


def execute(runs: list[Run], jobs: int = 1, within: float = math.inf, rate: float | None = None) -> tuple[Left, str]:
    """What is left, and what was said; `rate` is the seconds that every run is expected to take."""

    class Known(Estimates):
        def seconds(self, run: Run) -> float | None:
            return rate

    text = io.StringIO()
    estimates = Known(runs, SCENES)
    console, deadline = Console(file=text, width=200), time.monotonic() + within
    return Executor(jobs, deadline, {"commit": "abc"}, estimates, console, lambda: None).do(runs), text.getvalue()


def times(run: Run) -> dict[str, list[str]]:
    lines = (run.folder / "times").read_text().splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


def span(run: Run) -> tuple[float, float]:
    return float(times(run)["begins"][0]), float(times(run)["ends"][0])


def test_one_after_the_other(runs: list[Run]) -> None:
    left, _ = execute(runs)
    assert (left.failed, left.waiting, left.signal) == ({}, [], None)
    spans = [span(run) for run in runs]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert [len(run.attempts) for run in runs] == [1] * 4
    assert runs[0].attempts[0]["commit"] == "abc"
    assert runs[0].seconds >= 0.5
    execute(runs)  # all are done: nothing is begun again
    assert [len(run.attempts) for run in runs] == [1] * 4


def test_two_at_a_time_share_the_cores_and_wait_for_their_teacher(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stand_in(monkeypatch, 1.5)  # longer than a busy machine takes to start another
    teacher, c, a, _ = runs
    execute(runs, jobs=2)
    assert span(a)[0] < span(teacher)[1]  # beside it, before c, which needs it
    assert span(c)[0] >= span(teacher)[1]
    assert {times(run)["begins"][1] for run in runs} == {str(max(1, (os.cpu_count() or 1) // 2))}
    moments = sorted((moment, change) for run in runs for moment, change in zip(span(run), (1, -1), strict=True))
    at_work = [sum(change for _, change in moments[: i + 1]) for i in range(len(moments))]
    assert max(at_work) == 2


def test_what_fails_takes_nothing_with_it_but_what_needs_it(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 0.1, teacher="fails")
    left, said = execute(runs)
    assert left.failed == {"teacher": "the reason"}
    assert [run.name for run in left.waiting] == ["c seed 0"]
    assert runs[2].done()
    assert runs[3].done()
    assert "teacher: failed: the reason" in said
    stand_in(monkeypatch, 0.1)
    assert execute(runs)[0].failed == {}
    assert all(run.done() for run in runs)


def test_nothing_is_begun_that_does_not_fit(runs: list[Run]) -> None:
    left, said = execute(runs, within=5.0, rate=100.0)
    assert left.waiting == runs
    assert "teacher: would take 2 min, longer than is left; not begun" in said
    assert not any(run.begun() for run in runs)


def test_what_is_at_work_at_the_end_is_stopped_and_gone_on_with(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, 30.0)
    left, said = execute(runs, jobs=2, within=4.0)
    assert left.waiting == runs
    assert left.signal is None
    assert [run.begun() for run in runs] == [True, False, True, False]
    assert runs[0].attempts[0]["status"] == 143
    assert 0.5 < runs[0].seconds < 25
    assert "teacher: stopping; the same command goes on with it" in said
    stand_in(monkeypatch, 0.1)
    left, said = execute(runs)
    assert left.waiting == []
    assert "teacher: goes on" in said
    assert [len(run.attempts) for run in runs] == [2, 1, 2, 1]


def test_what_is_stopped_while_it_still_starts_has_not_failed(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its handlers are there, the signal itself ends it."""
    stand_in(monkeypatch, 30.0, teacher="dies")
    left, _ = execute(runs, within=2.0)
    assert (left.failed, left.waiting) == ({}, runs)


def test_a_signal_stops_all(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 30.0)

    def send() -> None:
        while not runs[0].begun():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    left, _ = execute(runs)
    sender.join()
    assert left.signal == signal.SIGTERM
    assert left.waiting == runs
    assert runs[0].attempts[0]["status"] == 143


def test_time_follows_the_multiply_adds(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one run that is done: three passes of its own model, and one of the teacher where there is one."""
    teacher, c, a, _ = runs

    def gigas(architecture: str, *rest: object) -> float:
        assert architecture in ("teacher", "snet")
        return (cast(int, rest[-1]) / SCALES["small"].config.image_size) ** 2

    monkeypatch.setattr("zoominnet.reproduction.estimates.gflops", gigas)
    estimates = Estimates(runs, SCENES)
    assert estimates.seconds(c) is None
    stand_in(monkeypatch, 0.1)
    execute([a])
    a.note({"seconds": 80 - a.seconds})
    assert a.seconds == 80
    epochs, teacher_epochs = a.config.epochs, a.config.teacher_epochs
    assert teacher_epochs is not None
    assert estimates.work(a) == 3 * 100 * epochs
    assert estimates.work(c) == (3 + 4) * 100 * epochs
    assert estimates.work(teacher) == 3 * 4 * 100 * teacher_epochs
    both = dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, teacher_scales="both"))
    assert estimates.work(both) == 3 * (4 + 1) * 100 * teacher_epochs
    assert estimates.seconds(c) == pytest.approx(80 * 7 / 3)
    c.folder.mkdir()
    c.note({"seconds": 80})
    assert estimates.seconds_left(c) == pytest.approx(80 * 4 / 3)


def test_durations_for_people() -> None:
    assert [duration(s) for s in (45, 720, 12_600)] == ["45 s", "12 min", "3.5 h"]
