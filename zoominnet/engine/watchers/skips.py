"""Steps that were skipped, for loss or gradient were not finite: counted, said, and in the end the end of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoominnet.engine.watchers.interface import StepReport, Watched, Watcher, whole_number
from zoominnet.errors import EXIT_DIVERGED, UserError

MAX_SKIPPED_IN_A_ROW = 10


class DivergedError(UserError):
    """Loss or gradient were not finite `MAX_SKIPPED_IN_A_ROW` steps in a row."""

    exit_status = EXIT_DIVERGED


class SkippedSteps(Watcher):
    """Adds "skipped", their number so far, to the values."""

    def __init__(self, phase: Watched) -> None:
        super().__init__(phase)
        self.skipped = self.skipped_in_a_row = 0

    def after_step(self, report: StepReport) -> None:
        if report.applied:
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            ids = report.images()
            loss, norm = report.values["loss"], report.values["grad_norm"]
            self.phase.warn(f" step {report.step}: loss {loss:g}, gradient norm {norm:g}: step skipped (images {ids})")
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise DivergedError(
                    f"{self.phase.name}: loss or gradient were not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row (the "
                    f"last at step {report.step}, images {ids}); lower --lr, or look at these images"
                )
        report.values["skipped"] = self.skipped

    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.skipped = whole_number(state, "skipped")
        self.skipped_in_a_row = whole_number(state, "skipped_in_a_row")
