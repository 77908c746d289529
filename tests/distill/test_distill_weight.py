"""--lambda-distill auto: the weights that follow from measured ratios, by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from zoominnet.distill import DistillOptions
from zoominnet.distill.weight import HeldWeight


def test_weights_by_hand() -> None:
    """Ratios of weight 1 are 4, 1, 16 in steps 0, 1 and 2, and 4 in step 6; the target is 2. In step s a measurement n steps
    after the one before counts 1 - exp(-2 n / (s + 1)): 0.632, 0.487 and, of step 6, 0.681. So the base-2 logarithms of the
    means are 2, 0.736, 2.324 and 2.103."""
    held = HeldWeight(2.0)
    assert [held.at(0), held.at(1)] == [1e-6, 1e-6]
    held.tell(0, 1e-6, 4e-6)
    assert held.at(1) == 1e-6  # what step 0 gave is not known yet in step 1, on a GPU
    assert held.at(2) == pytest.approx(2 / 2**2)
    held.tell(1, 1e-6, 1e-6)
    assert held.at(2) == pytest.approx(2 / 2**2)
    assert held.at(3) == pytest.approx(2 / 2**0.736, rel=1e-3)
    held.tell(2, 0.5, 8.0)
    assert held.at(3) == pytest.approx(2 / 2**0.736, rel=1e-3)
    assert held.at(4) == pytest.approx(2 / 2**2.324, rel=1e-3)
    for step, nothing in ((3, 0.0), (4, math.inf), (5, math.nan)):
        held.tell(step, 1.0, nothing)
    held.tell(6, 0.25, 1.0)
    assert held.at(7) == pytest.approx(2 / 2**2.324, rel=1e-3)
    assert held.at(8) == held.at(50) == pytest.approx(2 / 2**2.103, rel=1e-3)


def test_a_long_run_looks_back_a_hundred_steps() -> None:
    """After many steps of a ratio of e per weight 1 it is 1: of the former logarithm, 1, exp(-steps / 100) is left."""
    held = HeldWeight(1.0)
    for step in range(0, 2000, 10):
        held.tell(step, 0.5, 0.5 * math.e)
    for step in range(2000, 2300, 10):
        held.tell(step, 0.5, 0.5)
        left = math.exp(-(step - 1990) / 100)
        assert held.at(step + 2) == pytest.approx(math.exp(-left))


def test_a_fresh_heads_first_steps_are_soon_forgotten() -> None:
    """A ratio that falls by half in each of ten steps and then stays is held within a factor of 2 from step 40 on."""
    held = HeldWeight(1.0)
    for step in range(80):
        own = 2.0 ** (10 - min(step, 10))
        if held.measures(step):
            held.tell(step, 1.0, own)
        assert step < 40 or 0.5 < own * held.at(step) <= 1


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


@pytest.mark.parametrize("state", [[[1.5, 0.0]], [[-1, 0.0]], [[0, math.nan]], [[0]], [[0, 1, 0.0]], [3]])
def test_a_state_that_cannot_be(state: list[list[float]]) -> None:
    with pytest.raises((ValueError, TypeError)):
        HeldWeight(0.5).load_state(state)
