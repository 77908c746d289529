"""Losses far above the usual are reported; they are trained on all the same."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from zoominnet.engine.watchers.interface import StepReport, Watched, Watcher

SPIKE_WINDOW, SPIKE_MINIMUM, SPIKE_FACTOR = 50, 10, 10.0
"""A loss so many times the median of the last losses (of the whole window, or at least of so many) is reported."""


class LossSpikes(Watcher):
    """Says and logs a loss that is `SPIKE_FACTOR` times the median of the last ones."""

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.losses: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def after_step(self, report: StepReport) -> None:
        loss = report.values["loss"]
        if not math.isfinite(loss):
            return
        if len(self.losses) >= SPIKE_MINIMUM and loss > SPIKE_FACTOR * (usual := statistics.median(self.losses)) > 0:
            ids = report.images()
            self.phase.warn(
                f": step {report.step}: loss {loss:g} is {loss / usual:.0f} times the usual {usual:g} (images {ids})"
            )
            event = {"event": "loss spike", "loss": loss, "usual": usual, "images": ids}
            report.log.write("event", report.step, event)
        self.losses.append(loss)

    def state(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if not all(isinstance(loss, float) and 0 <= loss < math.inf for loss in state["losses"]):
            raise ValueError("losses are not all numbers from 0")
        self.losses.extend(state["losses"])
