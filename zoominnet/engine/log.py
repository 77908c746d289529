"""What a run says: the terminal, metrics.jsonl and TensorBoard's event files."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from PIL import Image
from rich.console import Console, NewLine
from rich.control import Control
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

LOG_WIDTH = 120


class RunLog:
    """Writes metrics to ``metrics.jsonl`` (one JSON object a line) and to TensorBoard, in the run's folder.

    A log that cannot be written does not stop a run: it is reported once, and metrics.jsonl lacks the lines.

    Args:
        folder: of the run, made if missing.
        warn: reports what cannot be written.
        keep_bytes: length of metrics.jsonl to go on from: what stands behind it belongs to steps that a resumed run
            does again. 0 starts anew.
        first_step: the first step that will be logged (TensorBoard hides what it had from there on).
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], keep_bytes: int = 0, first_step: int = 0) -> None:
        self._warn = warn
        self._warned: set[str] = set()
        self._path = folder / "metrics.jsonl"
        self._bytes = keep_bytes
        self._file: FileIO | None = None
        self._board: SummaryWriter | None = None
        with self._survive("metrics.jsonl"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            length = self._path.stat().st_size
            if length < keep_bytes:
                warn(f"{self._path}: {keep_bytes - length} bytes shorter than when the checkpoint was written")
            self._bytes = min(keep_bytes, length)
            self._file.truncate(self._bytes)
        with self._survive("TensorBoard's files"):
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)

    @contextmanager
    def _survive(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a log meets, the training is worth more
            if what not in self._warned:
                self._warned.add(what)
                self._warn(f"{self._path.parent}: {what} cannot be written ({error}); training goes on without")

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs `values` (JSON-ready; null stands for NaN and Inf) of `kind` ("train", "val", "event") at `step`.

        All but "images", the ids of a batch, also go to TensorBoard.
        """
        if self._file is not None:
            with self._survive("metrics.jsonl"):
                self._append(json.dumps(_finite({"kind": kind, "step": step, **values}), allow_nan=False) + "\n")
        board, self._board = self._board, None  # stays so after an error: its own thread has ended by then
        if board is not None:
            with self._survive("TensorBoard's files"):
                for name, value in values.items():
                    if name == "images":
                        continue  # numbers, but no measurements
                    if isinstance(value, (int, float)):
                        board.add_scalar(f"{kind}/{name}", value, step)
                    elif isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):
                        for i, v in enumerate(value):
                            board.add_scalar(f"{kind}/{name}/{i}", v, step)
                self._board = board

    def write_pictures(self, kind: str, step: int, make: Callable[[], Mapping[str, Image.Image]]) -> None:
        """Logs pictures by name to TensorBoard; where that is off, or cannot be written, they are not made.

        As JPEG, which `SummaryWriter.add_image` does not write: as PNG those of a long run would be larger than its checkpoints.
        """
        if self._board is None:
            return
        pictures: Mapping[str, Image.Image] = {}
        with self._survive("the pictures of validation images"):
            pictures = make()
        board, self._board = self._board, None
        with self._survive("TensorBoard's files"):
            for name, picture in pictures.items():
                image = Summary.Image(
                    height=picture.height, width=picture.width, colorspace=3, encoded_image_string=_jpeg(picture)
                )
                board._get_file_writer().add_summary(
                    Summary(value=[Summary.Value(tag=f"{kind}/{name}", image=image)]), step
                )
            self._board = board

    def _append(self, line: str) -> None:
        """A whole line or nothing."""
        assert self._file is not None
        data = line.encode()
        self._file.truncate(self._bytes)
        if self._file.write(data) != len(data):
            self._file.truncate(self._bytes)
            raise OSError(f"no room for {len(data)} bytes")
        self._bytes += len(data)

    def tell(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._bytes

    def sync(self) -> None:
        """Puts metrics.jsonl on the disk, so that a checkpoint never knows of more of it than there is."""
        if self._file is not None and not self._file.closed:
            with self._survive("metrics.jsonl"):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with self._survive("metrics.jsonl"):
                self._file.close()
        if self._board is not None:
            with self._survive("TensorBoard's files"):
                self._board.close()


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    """`value` with None in the place of NaN and Inf, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


class NoLog(RunLog):
    """Of the ranks that write nothing."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        pass

    def write_pictures(self, kind: str, step: int, make: Callable[[], Mapping[str, Image.Image]]) -> None:
        pass

    def tell(self) -> int:
        return 0

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def draws_bars(objects: Sequence[Any]) -> bool:
    """Whether what a console is given to print is of rich's progress bars, and no words."""
    return all(isinstance(each, Control | NewLine) for each in objects)


@contextmanager
def logged(console: Console, file: IO[str]) -> Iterator[Console]:
    """Within, `file` gets all that `console` is given but progress bars, whether the console shows it or not.

    Yields:
        A console that writes to the file alone.
    """
    # In a notebook rich would show it there instead.
    log, show = Console(file=file, width=LOG_WIDTH, force_jupyter=False), console.print

    def show_and_log(*objects: Any, **options: Any) -> None:
        if not draws_bars(objects):
            log.print(*objects, **options)
        show(*objects, **options)

    console.print = show_and_log  # type: ignore[method-assign]
    try:
        yield log
    finally:
        console.print = show  # type: ignore[method-assign]


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

    def restart(self, step: int) -> None:
        """What is left is reckoned from here on; the steps before took a time of their own."""
        self._start, self._first = time.monotonic(), step

    def note(self, text: str) -> None:
        """What goes on between two steps, on a terminal."""
        if self._progress is not None:
            self._progress.update(self._task, text=text)

    def update(self, step: int, text: str) -> None:
        """`step` steps are done; `text` tells of the last one."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
        elif step % self._every == 0 or step == self._total:
            left = (self._total - step) * (time.monotonic() - self._start) / max(1, step - self._first)
            self._console.out(f"{self._phase} {step}/{self._total} {text} ETA {left:.0f} s", highlight=False)


def describe_step(values: Mapping[str, Any], device: torch.device) -> str:
    """What the terminal tells of a step: losses, of the distillation by level with the mask's coverage, speed, memory."""
    parts = [f"cls {values['classification']:.3f} box {values['bbox_regression']:.3f}"]
    if "distill" in values:
        levels = " ".join(f"{v:.1f}" for v in values["distill_levels"])
        coverage = " ".join(f"{v:.0%}" for v in values["coverage"])
        parts.append(f"distill {values['distill']:.2f} [{levels}] mask [{coverage}]")
    parts.append(f"{values['images_per_s']:.1f} images/s {peak_memory_mib(device):.0f} MiB")
    return escape(" ".join(parts))


def peak_memory_mib(device: torch.device) -> float:
    """Peak of the GPU's allocated memory, or of this process's resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
