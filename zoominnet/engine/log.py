"""What a run says: the terminal, metrics.jsonl and TensorBoard's event files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes metrics to ``metrics.jsonl`` (one JSON object a line) and to TensorBoard, in the run's folder.

    Args:
        folder: of the run, made if missing.
        keep_bytes: length of metrics.jsonl to go on from: what stands behind it belongs to steps that a resumed run
            does again. 0 starts anew.
        first_step: the first step that will be logged (TensorBoard hides what it had from there on).
    """

    def __init__(self, folder: Path, keep_bytes: int = 0, first_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        path.touch()
        os.truncate(path, min(keep_bytes, path.stat().st_size))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs `values` (JSON-ready) of `kind` ("train", "val", "event") at optimiser step `step`."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):
                for i, v in enumerate(value):
                    self._board.add_scalar(f"{kind}/{name}/{i}", v, step)

    def tell(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoLog(RunLog):
    """Of the ranks that write nothing."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        pass

    def tell(self) -> int:
        return 0

    def close(self) -> None:
        pass


class StepDisplay:
    """A live line on a terminal, a plain line every `every` steps elsewhere.

    Args:
        console: where to write.
        phase: "teacher" or "student".
        total, done: optimiser steps of the phase, and those done before.
        every: steps between plain lines.
    """

    def __init__(self, console: Console, phase: str, total: int, done: int, every: int) -> None:
        self._console, self._phase, self._total, self._every = console, phase, total, every
        self._progress: Progress | None = None
        self._start, self._first = time.monotonic(), done
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                refresh_per_second=2,
            )
            self._task = self._progress.add_task(phase, total=total, completed=done, text="")

    def __enter__(self) -> StepDisplay:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, step: int, text: str) -> None:
        """`step` steps are done; `text` tells of the last one."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
        elif step % self._every == 0 or step == self._total:
            left = (self._total - step) * (time.monotonic() - self._start) / max(1, step - self._first)
            self._console.print(
                f"{self._phase} {step}/{self._total} {text} ETA {left:.0f} s", highlight=False, soft_wrap=True
            )
