"""Stop signals: noticed, agreed on by all ranks, and what a stopped run ends by."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from zoominnet.engine.distributed import Ranks
from zoominnet.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, a request to end, a cluster's notice that time is up, a terminal that goes away."""
ECHO_SECONDS = 1.0
"""torchrun passes on signals that its processes may have had from the terminal already."""


class Interrupted(UserError):  # noqa: N818
    """One of `STOP_SIGNALS` came; a checkpoint of the last whole step is written."""

    def __init__(self, signal_number: int, step: int, checkpoints: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {checkpoints} holds step {step}, the last one: go on with --resume")
        self.exit_status = 128 + signal_number


def first_stop(counts: list[float]) -> int | None:
    """Of `STOP_SIGNALS`, the first one that some rank has received."""
    return next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)


def agreed_stop(received: list[int], ranks: Ranks) -> int | None:
    """The same on every rank, who wait for each other longer than in a step."""
    flags = torch.tensor([[number in received for number in STOP_SIGNALS]], dtype=torch.float64)
    return first_stop(torch.cat(ranks.gather(flags)).sum(dim=0).tolist())


@contextmanager
def stop_signals(*, quiet: bool = False) -> Iterator[list[int]]:
    """A list that holds the number of the first of `STOP_SIGNALS`; a second one acts at once, as without this.

    A signal that is ignored stays so (nohup).
    """
    received: list[int] = []
    previous: dict[int, Any] = {}
    first, launched = 0.0, torch.distributed.is_torchelastic_launched()

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received and launched and time.monotonic() - first < ECHO_SECONDS:
            return
        if received:
            restore()
            os.kill(os.getpid(), number)
            return
        first = time.monotonic()
        received.append(number)
        if not launched:
            restore()
        if not quiet:
            with suppress(OSError):  # not print(): the signal may have come in the middle of one
                os.write(2, b"\nstopping after this step; once more stops at once\n")

    for each in STOP_SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:
            previous[each] = signal.signal(each, receive)
    try:
        yield received
    finally:
        restore()
