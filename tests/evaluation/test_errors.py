"""Kinds of errors by hand-worked cases, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import detections, random_detections, random_record, record

from zoominnet.evaluation import Detections, count_errors, error_costs, evaluate_coco, image_errors
from zoominnet.evaluation.errors import BOX_OUTCOMES, DETECTION_OUTCOMES, KINDS, NO_BOX, interpolated_ap

CAR, VAN = 0, 1
BOX = [100, 100, 200, 200]
HALF = [100, 100, 200, 180]
"""IoU 0.8 with BOX."""
LOW = [100, 100, 200, 130]
"""IoU 0.3 with BOX."""
FAR = [600, 600, 700, 700]


def outcomes(truth, found) -> tuple[list[str], list[str]]:
    errors = image_errors(truth, found)
    return [DETECTION_OUTCOMES[i] for i in errors.detections], [BOX_OUTCOMES[i] for i in errors.boxes]


@pytest.mark.parametrize(
    ("box", "label", "kind", "left"),
    [
        (HALF, CAR, "correct", "found"),
        ([100, 100, 200, 150], CAR, "correct", "found"),  # exactly 0.5
        (LOW, CAR, "location", "mistaken"),
        ([100, 100, 200, 110], CAR, "location", "mistaken"),  # exactly 0.1
        ([100, 100, 200, 109], CAR, "background", "missed"),
        (HALF, VAN, "class", "mistaken"),
        ([100, 100, 200, 150], VAN, "class", "mistaken"),  # exactly 0.5
        (LOW, VAN, "both", "missed"),
        ([100, 100, 200, 110], VAN, "background", "missed"),  # exactly 0.1
        (FAR, CAR, "background", "missed"),
    ],
)
def test_one_detection_of_one_box(box, label, kind, left) -> None:
    truth = record([BOX], [CAR])
    assert outcomes(truth, detections([box], [0.7], [label])) == ([kind], [left])
    errors = image_errors(truth, detections([box], [0.7], [label]))
    assert errors.about[0] == (0 if kind in ("correct", "class", "location") else NO_BOX)


def test_the_higher_score_takes_the_box_and_the_other_is_a_duplicate() -> None:
    found = detections([BOX, HALF], [0.4, 0.6], [CAR, CAR])
    assert outcomes(record([BOX], [CAR]), found) == (["duplicate", "correct"], ["found"])


def test_a_detection_takes_the_box_that_is_free() -> None:
    """The second one overlaps the taken box more, and is right all the same."""
    boxes = [[0, 0, 100, 100], [0, 40, 100, 140]]
    found = detections([[0, 0, 100, 100], [0, 18, 100, 118]], [0.9, 0.8], [CAR, CAR])
    assert outcomes(record(boxes, [CAR, CAR]), found) == (["correct", "correct"], ["found", "found"])


def test_location_comes_before_class() -> None:
    """0.3 with a car, 0.8 with a van: a car not well located, as in the authors' code."""
    truth = record([[100, 100, 200, 130], [100, 100, 200, 180]], [CAR, VAN])
    found = detections([[100, 100, 200, 200]], [0.5], [CAR])
    assert outcomes(truth, found) == (["location"], ["mistaken", "missed"])


def test_ignored_regions_are_left_out_of_both_sides() -> None:
    truth = record([BOX, FAR], [CAR, VAN], ignored=[[500, 500, 700, 700]])
    found = detections([BOX, FAR, [510, 510, 520, 520], [690, 690, 720, 720]], [0.9, 0.8, 0.7, 0.6], [CAR] * 4)
    assert outcomes(truth, found) == (["correct", "ignored", "ignored", "background"], ["found", "ignored"])


def test_a_region_of_a_class_holds_for_that_class() -> None:
    truth = record([BOX], [CAR], ignored=[[500, 500, 700, 700]], ignored_labels=[VAN])
    found = detections([FAR, FAR], [0.9, 0.8], [VAN, CAR])
    assert outcomes(truth, found) == (["ignored", "background"], ["missed"])


@pytest.mark.parametrize("boxes", [0, 1])
def test_nothing_found_and_nothing_there(boxes) -> None:
    truth = record([BOX] * boxes, [CAR] * boxes)
    assert outcomes(truth, detections()) == ([], ["missed"] * boxes)
    assert outcomes(record(), detections([BOX], [0.5], [CAR])) == (["background"], [])
    assert np.isnan(image_errors(record(), detections()).f1)


def test_harmonic_mean_of_precision_and_recall() -> None:
    """One of three detections is right, and one of two boxes is found: 2 / 5."""
    truth = record([BOX, FAR], [CAR, CAR])
    found = detections([BOX, HALF, [300, 300, 320, 320]], [0.9, 0.8, 0.7], [CAR] * 3)
    assert image_errors(truth, found).f1 == pytest.approx(2 / 5)


def test_every_detection_and_every_box_is_counted_once() -> None:
    rng = np.random.default_rng(0)
    records = [random_record(rng, 3) for _ in range(40)]
    found = [random_detections(each, rng, 3) for each in records]
    errors = [image_errors(*each) for each in zip(records, found, strict=True)]
    of_detections, of_boxes = count_errors(errors)
    assert sum(of_detections.values()) == sum(map(len, found))
    assert sum(of_boxes.values()) == sum(len(each.boxes) for each in records)
    assert of_detections["correct"] == of_boxes["found"]
    assert min(of_detections.values()) > 0
    assert min(of_boxes.values()) > 0
    assert of_boxes["mistaken"] <= of_detections["class"] + of_detections["location"]


def with_all_scores_different(found: Detections, rng: np.random.Generator) -> Detections:
    return Detections(found.boxes, rng.random(len(found)), found.labels)


def test_ap50_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(1)
    records = [random_record(rng, 3, regions=0) for _ in range(30)]
    found = [with_all_scores_different(random_detections(each, rng, 3), rng) for each in records]
    ap50, _ = error_costs(records, found, ("a", "b", "c"))
    assert ap50 == pytest.approx(evaluate_coco(records, found, ("a", "b", "c")).ap50, abs=1e-12)


def costs(truth, found) -> tuple[float, dict[str, float]]:
    return error_costs([truth], [found], ("car", "van"))


def test_costs_of_background_and_missed() -> None:
    """Two cars; a wrong detection at 0.9, a right one at 0.8. Precision 1/2 up to recall 1/2, which are 51 of 101 points;
    without the wrong one 1 there; without the missed car 1/2 at all points."""
    found = detections([[0, 0, 10, 10], BOX], [0.9, 0.8], [CAR, CAR])
    ap50, cost = costs(record([BOX, FAR], [CAR, CAR]), found)
    assert ap50 == pytest.approx(51 / 101 / 2)
    expected = dict.fromkeys(KINDS, 0.0) | {"background": 51 / 101 / 2, "missed": 1 / 2 - 51 / 101 / 2}
    assert cost == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "box", "label"), [("location", LOW, CAR), ("class", HALF, VAN)])
def test_a_mended_detection_is_correct_in_the_class_of_its_box(kind, box, label) -> None:
    """A car and a far van that is found; what is about the car becomes right, and its worse double goes."""
    truth = record([BOX, FAR], [CAR, VAN])
    found = detections([box, box, FAR], [0.9, 0.8, 0.7], [label, label, VAN])
    ap50, cost = costs(truth, found)
    before = {"location": (0 + 1) / 2, "class": (0 + 1 / 3) / 2}[kind]
    assert ap50 == pytest.approx(before)
    assert cost[kind] == pytest.approx(1 - before)
    assert cost["missed"] == 0  # it is mistaken, not missed


def test_a_box_is_mended_once_by_its_best_error_of_either_kind() -> None:
    """As in the authors' code: the class error has the higher score, so that mending locations only takes one away."""
    truth = record([BOX], [CAR])
    ap50, cost = costs(truth, detections([HALF, LOW], [0.9, 0.8], [VAN, CAR]))
    assert ap50 == 0
    assert cost == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"class": 1.0})


def test_errors_about_a_found_box_and_duplicates_go() -> None:
    truth = record([BOX, FAR], [CAR, CAR])
    found = detections([BOX, HALF, LOW, FAR], [0.9, 0.8, 0.7, 0.6], [CAR] * 4)
    ap50, cost = costs(truth, found)
    with_one_wrong = (51 + 50 * 2 / 3) / 101
    assert ap50 == pytest.approx((51 + 50 * 2 / 4) / 101)
    assert cost["duplicate"] == cost["location"] == pytest.approx(with_one_wrong - ap50)


def test_both_goes() -> None:
    ap50, cost = costs(record([BOX, FAR], [CAR, VAN]), detections([LOW, FAR], [0.9, 0.8], [VAN, VAN]))
    assert ap50 == pytest.approx(1 / 4)
    assert cost["both"] == pytest.approx(1 / 4)


def test_what_is_ignored_costs_nothing() -> None:
    truth = record([BOX, FAR], [CAR, CAR], ignored=[[500, 500, 800, 800]])
    ap50, cost = costs(truth, detections([BOX, [510, 510, 520, 520]], [0.5, 0.9], [CAR, CAR]))
    assert ap50 == 1
    assert cost == dict.fromkeys(KINDS, 0.0)


def test_interpolated_ap_edges() -> None:
    assert interpolated_ap(np.zeros(0), np.zeros(0, dtype=bool), 3) == 0
    assert interpolated_ap(np.array([0.5]), np.array([True]), 0) == 0
    assert interpolated_ap(np.array([0.5]), np.array([True]), 1) == 1


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="2 detections for 1 records"):
        error_costs([record()], [detections(), detections()], ("car",))
