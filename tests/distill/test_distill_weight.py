"""--lambda-distill auto: the weights that follow from measured ratios, by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from zoominnet.distill import DistillOptions
from zoominnet.distill.weight import HeldWeight


def test_weights_by_hand() -> None:
    """Ratios of weight 1 are 4, 1, 16, 4: geometric means 4, 2, 4, 4; the target is 2."""
    held = HeldWeight(2.0)
    assert [held.at(0), held.at(1)] == [1e-6, 1e-6]
    held.tell(0, 1e-6, 4e-6)
    assert held.at(1) == 1e-6  # what step 0 gave is not known yet in step 1, on a GPU
    assert held.at(2) == pytest.approx(2 / 4)
    held.tell(1, 1e-6, 1e-6)
    assert held.at(2) == pytest.approx(2 / 4)
    assert held.at(3) == pytest.approx(2 / 2)
    held.tell(2, 0.5, 8.0)
    assert held.at(3) == pytest.approx(2 / 2)
    assert held.at(4) == pytest.approx(2 / 4)
    for step, nothing in ((3, 0.0), (4, math.inf), (5, math.nan)):
        held.tell(step, 1.0, nothing)
    held.tell(6, 0.25, 1.0)
    assert held.at(7) == pytest.approx(2 / 4)
    assert held.at(50) == pytest.approx(2 / 4)


def test_the_mean_forgets_a_tenth_from_the_eleventh_measurement_on() -> None:
    held = HeldWeight(1.0)
    logs = [random.Random(i).uniform(-3, 3) for i in range(25)]
    for step, log in enumerate(logs):
        held.tell(step, 0.5, 0.5 * math.exp(log))
        mean = sum(logs[:10][: step + 1]) / min(step + 1, 10)
        for later in logs[10 : step + 1]:
            mean = 0.9 * mean + 0.1 * later
        assert held.at(step + 2) == pytest.approx(math.exp(-mean))


def test_the_ratio_of_steady_gradients_is_the_target_from_the_third_step_on() -> None:
    """A model whose ratio is 37 times the weight, with a warm-up of the weight, which the measurements see through."""
    held, options = HeldWeight(0.5), DistillOptions(weight="auto", warmup_steps=4)
    ratios = []
    for step in range(8):
        weight = options.warmed_up(held.at(step), step)
        ratios.append(37 * weight)
        held.tell(step, weight, ratios[-1])
    assert ratios[:2] == pytest.approx([37e-6 / 4, 37e-6 / 2])
    assert ratios[2:] == pytest.approx([0.5 * 3 / 4, 0.5, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("read_later", [False, True])
def test_a_resumed_weight_goes_on_whenever_values_are_read(read_later: bool) -> None:
    """The weights of a run that reads values at once, of one that reads a step later, and of ones that stop anywhere and
    then know all that was measured, are equal."""

    def weights(stop: int | None, later: bool) -> list[float]:
        held, found, unread = HeldWeight(0.5), [], []
        for step in range(40):
            if step == stop:
                for each in unread:
                    held.tell(*each)
                unread, text = [], json.dumps(held.state())
                held = HeldWeight(0.5)
                held.load_state(json.loads(text))
            found.append(held.at(step))
            if held.measures(step):
                unread.append((step, found[-1], found[-1] * math.exp(random.Random(step).uniform(-3, 3))))
            while unread and unread[0][0] <= step - later:
                held.tell(*unread.pop(0))
        return found

    whole = weights(None, False)
    assert len(set(whole)) == 1 + 10 + 3  # the first, and those behind steps 0 to 9, 10, 20 and 30
    for stop in (None, *range(40)):
        assert weights(stop, read_later) == whole, stop


def test_which_steps_are_measured() -> None:
    assert [step for step in range(45) if HeldWeight.measures(step)] == [*range(10), 10, 20, 30, 40]


def test_maps_that_are_all_but_equal_have_a_finite_weight() -> None:
    held = HeldWeight(0.5)
    held.tell(0, 1.0, 1e-150)
    assert held.at(2) == 1e6


@pytest.mark.parametrize("state", [[[1.5, 1, 0.0]], [[-1, 1, 0.0]], [[0, 0, 0.0]], [[0, 1, math.nan]], [[0, 1]], [3]])
def test_a_state_that_cannot_be(state: list[list[float]]) -> None:
    with pytest.raises((ValueError, TypeError)):
        HeldWeight(0.5).load_state(state)
