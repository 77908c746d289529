"""How much of the training's time goes by waiting for images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import torch

from zoominnet.config import TrainConfig
from zoominnet.data import Batch

LONG_ENOUGH = 20.0
"""Seconds of training after which the share that was waited is told."""

TOO_MUCH = 0.25
"""From this share on."""


def usable_cores() -> int:
    """The cores that this process may use, which a scheduler or a container may have made fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def more_than_cores(workers: int) -> str | None:
    """What there is to say of so many workers of a loader; None where each can have a core."""
    if workers <= (cores := usable_cores()):
        return None
    return f"{workers} on {cores} core{'s' * (cores > 1)}: they take turns, so --workers {cores} may be as fast"


class Waiting:
    """Measures the waiting of a phase's loop for its batches, and has advice where it is long.

    On a GPU too what the loop waits for a batch is time that nothing hides: as long as batches come in time, it waits for
    the GPU to be done with the step before, and the next batch lies ready by then.

    Args:
        config: of the run.
        device: that trains.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.waited = self.worked = 0.0
        self._told = False

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches. The first of a phase does not count: it is waited for while workers start."""
        since = time.perf_counter()
        for batch in batches:
            begun = time.perf_counter()
            if self.worked:
                self.waited += begun - since
            yield batch
            since = time.perf_counter()
            self.worked += since - begun

    def advice(self) -> str | None:
        """What to do about it, where there is something to do; once."""
        total = self.waited + self.worked
        if self._told or total < LONG_ENOUGH or self.waited < TOO_MUCH * total:
            return None
        self._told = True
        means, cores = [], usable_cores()
        # On the CPU more workers would take from the training what they give.
        if self.device.type != "cpu" and self.config.workers < cores:
            means.append(f"more --workers ({self.config.workers} now, on {cores} cores)")
        if self.config.cache == "none":
            means.append("--cache ram, disk or device")
        if not means:
            return None
        waits = f"{self.waited / total:.0%} of the time it waits for images"
        return f"{waits}; {' or '.join(means)} may help, with --resume as well"
