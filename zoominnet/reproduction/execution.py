"""Runs in turn or side by side, a process each, within a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from rich.console import Console

from zoominnet.engine.stopping import stop_signals
from zoominnet.reproduction.estimates import Estimates, duration
from zoominnet.reproduction.runs import Run

GRACE_S = 120
"""A run that was told to stop finishes its step and writes a checkpoint; after so long it is ended."""


@dataclass
class Process:
    """A run that is at work.

    Attributes:
        run: which.
        process: its own.
        errors: what it writes on standard error.
        began: `time.monotonic` then.
    """

    run: Run
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    began: float


@dataclass(frozen=True)
class Left:
    """What was not done.

    Attributes:
        failed: runs, with what they said.
        waiting: runs that were not begun, or were stopped.
        signal: that stopped all; None where none did.
    """

    failed: dict[str, str]
    waiting: list[Run]
    signal: int | None


class Executor:
    """Does runs that are not done, each as ``python -m zoominnet.train`` in a process of its own, so that one that fails
    takes no other with it.

    Args:
        jobs: how many at once; each has its share of the CPU's cores.
        deadline: of `time.monotonic`, when what is at work is stopped, to be gone on with later; nothing is begun that
            would be so.
        about: what is written down with each attempt.
        estimates: how long runs take.
        console: where to say what is done.
        after: called behind each run that was done.
    """

    def __init__(
        self,
        jobs: int,
        deadline: float,
        about: dict[str, Any],
        estimates: Estimates,
        console: Console,
        after: Callable[[], object],
    ) -> None:
        self.jobs, self.deadline, self.about, self.estimates = jobs, deadline, about, estimates
        self.console, self.after = console, after
        self.at_work: list[Process] = []
        self.failed: dict[str, str] = {}

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def do(self, runs: Sequence[Run]) -> Left:
        """Begins them in their order, each once its teacher is done."""
        waiting = deque(run for run in runs if not run.done())
        skipped: list[Run] = []
        with stop_signals(quiet=True) as received:
            try:
                while (waiting or self.at_work) and not received:
                    self._collect(skipped)
                    if time.monotonic() >= self.deadline:
                        break
                    if waiting and len(self.at_work) < self.jobs:
                        self._begin_next(waiting, skipped)
                    time.sleep(0.2)
            finally:
                skipped += self._stop_all(received[0] if received else signal.SIGTERM)
        left = [run for run in runs if run in waiting or run in skipped]
        return Left(self.failed, left, received[0] if received else None)

    def _begin_next(self, waiting: deque[Run], skipped: list[Run]) -> None:
        """Begins the first run that can be, and sets aside those that cannot any more."""
        for run in list(waiting):
            teacher = run.teacher
            if teacher is not None and (teacher.name in self.failed or teacher in skipped):
                waiting.remove(run)
                skipped.append(run)
            elif teacher is None or teacher.done():
                waiting.remove(run)
                seconds = self.estimates.seconds_left(run)
                if seconds is not None and time.monotonic() + seconds > self.deadline:
                    self.say(f"{run.name}: would take {duration(seconds)}, longer than is left; not begun")
                    skipped.append(run)
                    continue
                self._begin(run)
                return

    def _begin(self, run: Run) -> None:
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        seconds = self.estimates.seconds_left(run)
        about = "" if seconds is None else f", about {duration(seconds)}"
        self.say(f"{run.name}: {'goes on' if run.begun() else 'begins'}{about} ({run.folder}/train.log)")
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *run.command()],
            stdout=None if self.jobs == 1 and self.console.is_terminal else subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            process_group=0,  # a Ctrl-C of the terminal comes to this process, which passes it on
        )
        self.at_work.append(Process(run, process, errors, time.monotonic()))

    def _collect(self, stopped: list[Run], number: int | None = None) -> None:
        """Takes note of the runs that have ended; `number` is of the signal that was sent to them."""
        for each in [each for each in self.at_work if each.process.poll() is not None]:
            self.at_work.remove(each)
            each.errors.seek(0)
            said = each.errors.read().decode(errors="replace").strip()
            each.errors.close()
            run, status = each.run, each.process.returncode
            if run.begun():
                ended = {"ended": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}", "status": status}
                run.note({**self.about, **ended, "seconds": round(time.monotonic() - each.began, 1)})
            if status == 0:
                self.say(f"{run.name}: AP {run.result['AP'] or 0:.4f} after {duration(run.seconds)}")
                self.after()
            elif status >= 128 or (
                number is not None and status == -number
            ):  # with a checkpoint, or before its first step
                stopped.append(run)
            else:
                self.failed[run.name] = said.splitlines()[-1] if said else f"ended with status {status}"
                self.say(f"{run.name}: failed: {self.failed[run.name]}")

    def _stop_all(self, number: int) -> list[Run]:
        """Has what is at work write its checkpoint and end. Returns the runs."""
        stopped: list[Run] = []
        for each in self.at_work:
            self.say(f"{each.run.name}: stopping; the same command goes on with it")
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, number)
        for each in self.at_work:
            try:
                each.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(each.process.pid, signal.SIGKILL)
                each.process.wait()
        self._collect(stopped, number)
        return stopped
