"""Checkpoints written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch import Tensor

from zoominnet.engine.checkpoint.discovery import prune_checkpoints
from zoominnet.engine.checkpoint.format import save_checkpoint
from zoominnet.engine.checkpoint.model_file import ModelInfo


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that later changes of `tensors` do not reach."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, so that training waits for a copy of the tensors, not for the disk.

    One checkpoint at a time, each followed by the deletion of old ones. Takes memory for one copy of the tensors.

    Args:
        folder: the run's checkpoints folder.
        keep: see :func:`prune_checkpoints`.
        before: called in the thread before each write.
    """

    def __init__(self, folder: Path, keep: int, before: Callable[[], None] = lambda: None) -> None:
        self.folder, self.keep, self.before = folder, keep, before
        self._pending: Future[Path] | None = None
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        info: ModelInfo,
        optimizer_state: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> None:
        """Waits for the write before, copies the tensors and starts writing; arguments as :func:`save_checkpoint`.

        Raises:
            CheckpointWriteError: of the write before.
        """
        self.wait()
        arguments = (self.folder, step, to_cpu(model_state), info, to_cpu(optimizer_state), dict(state))
        pending: Future[Path] = Future()

        def write() -> None:
            try:
                self.before()
                path = save_checkpoint(*arguments)
                prune_checkpoints(path, self.keep)
            except BaseException as error:  # raised again by wait(), in the thread that trains
                pending.set_exception(error)
            else:
                pending.set_result(path)

        # A daemon, so that a second Ctrl-C need not wait for the disk.
        self._thread = threading.Thread(target=write, name="checkpoint-writer", daemon=True)
        self._thread.start()
        self._pending = pending

    def poll(self) -> None:
        """Raises the error of a write that has failed; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last write is done, or raises its error (once).

        And when its thread has ended: while that gives its tensors back, the end of this process would abort it.
        """
        if self._thread is not None:
            self._thread.join()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
