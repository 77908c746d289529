"""The weight of the distillation loss that holds a ratio of gradients (--lambda-distill auto)."""

from __future__ import annotations

import math
from collections import deque

FIRST_WEIGHT = 1e-6
"""Until a ratio is known, which takes two steps: heads begin with small weights, and the task's gradient on the pyramid is
tens of thousands of times smaller at first than the distillation's of weight 1."""
FIRST_STEPS, PERIOD = 10, 10
"""The ratio is measured in each of the first steps, then in every so many-th, whatever is logged."""
LARGEST_WEIGHT = 1e6
"""Where the maps are all but equal the weight grows no further."""
LONGEST_MEMORY = 100
"""The mean forgets by 1/e in half the steps so far, and in so many at most: what the first steps of a fresh head measure, which
is larger by orders of magnitude, is soon forgotten, and later no batch moves the weight much."""
STEPS_BEHIND = 2
"""A step knows what the steps so far before it have measured: on a GPU the last one is not read yet."""


class HeldWeight:
    """From measured ratios |gradient of distillation| / |gradient of task| the weight at which that ratio is `target`.

    The gradient is proportional to the weight, so a ratio / its weight is the ratio of weight 1, whose logarithm is averaged:
    the weight is target / its geometric mean. Gradients of a batch differ by factors from one to the next, and of two that
    are twice and half the usual the geometric mean is the usual.

    Args:
        target: the ratio to hold, over 0.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        # A measured step, and the mean logarithm behind it: no step asks for older ones than the last two.
        self._known: deque[tuple[int, float]] = deque(maxlen=STEPS_BEHIND)

    @staticmethod
    def measures(step: int) -> bool:
        """Whether step `step` (0 is the first) is to be measured."""
        return step < FIRST_STEPS or step % PERIOD == 0

    def at(self, step: int) -> float:
        """The weight of step `step`, of which the steps up to `STEPS_BEHIND` before it have been told."""
        for measured, mean in reversed(self._known):
            if measured <= step - STEPS_BEHIND:
                return min(self.target * math.exp(-mean), LARGEST_WEIGHT)
        return FIRST_WEIGHT

    def tell(self, step: int, weight: float, ratio: float) -> None:
        """Step `step`, of that weight, has had that ratio. One that says nothing (0, infinite, NaN) is passed over: where
        nothing is masked there is no distillation, and where nothing is left to learn no task."""
        if not 0 < ratio < math.inf:
            return
        logarithm = math.log(ratio / weight)
        before, mean = self._known[-1] if self._known else (step, logarithm)
        kept = math.exp((before - step) / min((step + 1) / 2, LONGEST_MEMORY))
        self._known.append((step, kept * mean + (1 - kept) * logarithm))

    def state(self) -> list[list[float]]:
        """What a resumed run needs, JSON-ready."""
        return [list(each) for each in self._known]

    def load_state(self, state: list[list[float]]) -> None:
        """Takes back what :meth:`state` gave.

        Raises:
            ValueError, TypeError: it cannot have been given by it.
        """
        for step, mean in state:
            if not (type(step) is int and step >= 0 and math.isfinite(mean)):
                raise ValueError(f"held_weight is {str(state)[:40]}")
            self._known.append((step, float(mean)))
