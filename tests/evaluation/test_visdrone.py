"""The VisDrone protocol against hand-worked numbers and a slow twin in exact fractions."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from evaluation_cases import detections, jittered, perfect, random_detections, random_record, record
from hypothesis import given, settings
from hypothesis import strategies as st

from zoominnet.data.records import ANY_CLASS, ImageRecord
from zoominnet.evaluation import Detections, VisDroneResult, evaluate_visdrone
from zoominnet.evaluation.visdrone import average_precision, covered_area, match

NAMES = ("car", "bus", "van")
BOX = [0, 0, 10, 10]

# Sums of a few hundred exactly rounded quotients, in another order than the slow twin's.
ROUNDING = 1e-12


def evaluate_one(truth: ImageRecord, found: Detections) -> VisDroneResult:
    return evaluate_visdrone([truth], [found], NAMES)


def slow_visdrone(records: list[ImageRecord], found: list[Detections], C: int) -> dict[str, float]:
    """The protocol's rules in plain loops and exact fractions. Boxes must have whole-number coordinates."""

    def corners(box) -> tuple[int, ...]:
        assert all(float(value).is_integer() for value in box)
        return tuple(int(value) for value in box)

    def ignored(box, label, truth) -> bool:
        x1, y1, x2, y2 = corners(box)
        pixels = set()
        for region, region_label in zip(truth.ignored, truth.ignored_labels, strict=True):
            if region_label not in (ANY_CLASS, label):
                continue
            left, top, right, bottom = corners(region)
            for x in range(max(x1, left), min(x2, right)):
                pixels.update((x, y) for y in range(max(y1, top), min(y2, bottom)))
        area = (x2 - x1) * (y2 - y1)
        return area > 0 and Fraction(len(pixels), area) >= Fraction(1, 2)

    def iou(a, b) -> Fraction:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inside = width * height if width > 0 and height > 0 else 0
        return Fraction(inside, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)

    images = []
    for truth, image in zip(records, found, strict=True):
        boxes = [
            (corners(box), label)
            for box, label in zip(truth.boxes, truth.labels, strict=True)
            if not ignored(box, label, truth)
        ]
        ranked = [
            (score, corners(box), label)
            for score, box, label in zip(image.scores, image.boxes, image.labels, strict=True)
            if not ignored(box, label, truth)
        ]
        ranked.sort(key=lambda detection: -detection[0])
        images.append((boxes, ranked))

    precisions: dict[tuple[int, int], Fraction] = {}
    recalls: dict[tuple[int, int, int], Fraction] = {}
    for label in range(C):
        total = sum(box_label == label for boxes, _ in images for _, box_label in boxes)
        if total == 0:
            continue
        for step in range(10):
            threshold = Fraction(10 + step, 20)
            for most in (1, 10, 100, 500):
                outcomes = []
                for boxes, ranked in images:
                    free = [box for box, box_label in boxes if box_label == label]
                    for score, box, detection_label in ranked[:most]:
                        if detection_label != label:
                            continue
                        best, best_iou = None, threshold
                        for number, candidate in enumerate(free):
                            if iou(box, candidate) >= best_iou:
                                best, best_iou = number, iou(box, candidate)
                        outcomes.append((score, best is not None))
                        if best is not None:
                            del free[best]
                outcomes.sort(key=lambda outcome: -outcome[0])
                hits = [hit for _, hit in outcomes]
                recalls[label, step, most] = Fraction(sum(hits), int(total))
                precision = [Fraction(sum(hits[: i + 1]), i + 1) for i in range(len(hits))]
                # The last of the four, 500, is the one that stays.
                precisions[label, step] = sum(
                    (max(precision[i:]) / int(total) for i, hit in enumerate(hits) if hit), start=Fraction(0)
                )

    def mean(values: list[Fraction]) -> float:
        return float(sum(values) / len(values)) if values else math.nan

    scores = {
        "AP": mean(list(precisions.values())),
        "AP50": mean([value for (_, step), value in precisions.items() if step == 0]),
        "AP75": mean([value for (_, step), value in precisions.items() if step == 5]),
    }
    for most in (1, 10, 100, 500):
        scores[f"AR_{most}"] = mean([value for (_, _, limit), value in recalls.items() if limit == most])
    for label in range(C):
        scores[f"class {label}"] = mean([value for (of, _), value in precisions.items() if of == label])
    return scores


def assert_equals_slow(records: list[ImageRecord], found: list[Detections], names: tuple[str, ...] = NAMES) -> None:
    result = evaluate_visdrone(records, found, names)
    scores = dict(result.rows()) | {f"class {label}": score.ap for label, score in enumerate(result.classes)}
    assert scores == pytest.approx(slow_visdrone(records, found, len(names)), abs=ROUNDING, nan_ok=True)


def test_two_boxes_three_detections():
    # IoU of the three with their nearest box: 1, 0, 0.72.
    result = evaluate_one(
        record([BOX, [20, 0, 30, 10]], [0, 0]),
        detections([BOX, [0, 20, 10, 30], [20, 0, 30, 7.2]], [0.9, 0.8, 0.7], [0, 0, 0]),
    )
    # At 0.50 to 0.70 the detections are hit, miss, hit: recall 1/2, 1/2, 1 at precision 1, 1/2, 2/3, made
    # non-increasing 1, 2/3, 2/3. Area: 1/2 * 1 + 1/2 * 2/3 = 5/6. (With COCO's 101 points: test_coco.py.)
    # From 0.75 on they are hit, miss, miss: 1/2.
    assert result.ap50 == pytest.approx(5 / 6, abs=ROUNDING)
    assert result.ap75 == 0.5
    assert result.ap == pytest.approx((5 * 5 / 6 + 5 * 1 / 2) / 10, abs=ROUNDING)
    # The first detection alone takes one of two boxes; all take both at five thresholds, one at the other five.
    assert result.ar == pytest.approx({1: 0.5, 10: 0.75, 100: 0.75, 500: 0.75}, abs=ROUNDING)
    assert [score.boxes for score in result.classes] == [2, 0, 0]
    assert result.classes[0].ap == result.ap
    assert result.classes[0].ap50 == result.ap50


@pytest.mark.parametrize("height", range(9, 20))
def test_iou_equal_to_a_threshold_matches(height):
    # IoU height / 20 exactly: passes the thresholds 10/20, 11/20, ... up to itself.
    passed = match(np.array([[0, 0, 10, height]], dtype=float), np.array([[0, 0, 10, 20]], dtype=float))
    assert passed[0].tolist() == [step <= height for step in range(10, 20)]


def test_a_box_that_only_the_first_threshold_takes():
    result = evaluate_one(record([BOX], [0]), detections([[0, 0, 10, 5.2]], [0.9], [0]))  # IoU 0.52
    assert (result.ap50, result.classes[0].ap50) == pytest.approx((1, 1), abs=ROUNDING)
    assert (result.ap, result.classes[0].ap) == pytest.approx((0.1, 0.1), abs=ROUNDING)


def test_duplicate_detection_is_a_miss():
    # hit, miss, hit at every threshold: 5/6 as above.
    result = evaluate_one(
        record([BOX, [20, 0, 30, 10]], [0, 0]), detections([BOX, BOX, [20, 0, 30, 10]], [0.9, 0.8, 0.7], [0, 0, 0])
    )
    assert result.ap == pytest.approx(5 / 6, abs=ROUNDING)
    assert result.ar[500] == 1


def test_each_detection_takes_its_best_free_box():
    # The first overlaps the boxes at 1 and 80/120; the second likewise, so it gets the other one at 80/120 = 0.667.
    truth = np.array([[0, 0, 10, 10], [0, 2, 10, 12]], dtype=float)
    hits = match(np.array([BOX, BOX], dtype=float), truth)
    assert hits.tolist() == [[True] * 10, [True] * 4 + [False] * 6]


def test_later_of_two_equal_boxes_is_taken():
    # The first detection overlaps both boxes at 90/110. It takes the later one, which leaves the earlier one for the
    # second detection, equal to it. Had it taken the earlier one, the second would have 80/120 and miss from 0.70 on.
    truth = np.array([[0, 0, 10, 10], [0, 2, 10, 12]], dtype=float)
    hits = match(np.array([[0, 1, 10, 11], [0, 0, 10, 10]], dtype=float), truth)
    assert hits[:, :7].all()


def test_other_class_does_not_match():
    result = evaluate_one(record([BOX], [0]), detections([BOX], [0.9], [1]))
    assert result.ap == 0
    # The detection belongs to a class without boxes, which is left out: not a number rather than 0.
    assert math.isnan(result.classes[1].ap)
    assert math.isnan(result.classes[1].ap50)


def test_means_leave_absent_classes_out():
    truth = record([BOX, [20, 0, 30, 10]], [0, 2])
    result = evaluate_one(truth, detections([BOX, BOX], [0.9, 0.8], [0, 1]))
    assert [score.ap for score in result.classes] == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert result.ap == 0.5
    assert result.ar[1] == 0.5


def test_classes_count_once_however_many_images_show_them():
    # Class 0, in two images, has AP 1; class 1, in one, has 0.
    truth = [record([BOX], [0]), record([BOX, [20, 0, 30, 10]], [0, 1])]
    found = [detections([BOX], [0.9], [0])] * 2
    assert evaluate_visdrone(truth, found, NAMES).ap == 0.5


@pytest.mark.parametrize(
    "regions", [[[0, 0, 10, 5]], [[0, 0, 10, 3], [0, 2, 10, 5]], [[-5, -5, 5, 50], [70, 0, 80, 9]]]
)
def test_half_inside_ignored_regions_is_dropped(regions):
    truth = record([BOX, [20, 0, 30, 10]], [0, 0], regions)
    # With the higher score, but counted for nothing.
    result = evaluate_one(truth, detections([BOX, [20, 0, 30, 10]], [0.9, 0.8], [0, 0]))
    assert (result.boxes, result.boxes_ignored) == (1, 1)
    assert result.ap == 1
    assert result.ar[1] == 1


@pytest.mark.parametrize("regions", [[[0, 0, 10, 4.99]], [[0, 0, 10, 3], [0, 1, 10, 4]], [[-5, -5, 4.99, 50]]])
def test_less_than_half_inside_is_kept(regions):
    # In the second case the two regions' areas add up to 60 of 100 px, their union to 40.
    truth = record([BOX, [20, 0, 30, 10]], [0, 0], regions)
    result = evaluate_one(truth, detections([[20, 0, 30, 10]], [0.9], [0]))
    assert (result.boxes, result.boxes_ignored) == (2, 0)
    assert result.ap == 0.5
    # A detection on the edge that matches nothing is a false positive: miss, hit.
    result = evaluate_one(
        record([[20, 0, 30, 10]], [0], regions), detections([BOX, [20, 0, 30, 10]], [0.9, 0.8], [0, 0])
    )
    assert result.ap == 0.5


def test_region_of_one_class_holds_for_that_class():
    truth = record([BOX, BOX], [0, 1], [BOX], [1])
    result = evaluate_one(truth, detections([BOX, BOX], [0.9, 0.8], [0, 1]))
    assert [score.boxes for score in result.classes] == [1, 0, 0]
    assert result.ap == 1


def test_ignored_detections_take_none_of_the_500_places():
    truth = record([[20, 0, 30, 10]], [0], [BOX])
    found = detections([BOX] * 500 + [[20, 0, 30, 10]], [0.9] * 500 + [0.1], [0] * 501)
    assert evaluate_one(truth, found).ap == 1


def test_detection_without_area_is_a_miss_even_in_a_region():
    truth = record([[20, 0, 30, 10]], [0], [BOX])
    result = evaluate_one(truth, detections([[5, 5, 5, 5], [20, 0, 30, 10]], [0.9, 0.8], [0, 0]))
    assert result.ap == 0.5


def grid(count: int) -> list[list[int]]:
    return [[12 * (i % 50), 12 * (i // 50), 12 * (i % 50) + 10, 12 * (i // 50) + 10] for i in range(count)]


def test_most_detections_count_over_all_classes():
    # 600 detections: 300 of class 0 score higher than 300 of class 1. Class 0 has one box, which the very first takes;
    # class 1 has 300 boxes, one for each of its detections.
    boxes = grid(301)
    truth = record(boxes, [0] + [1] * 300)
    found = detections([boxes[0]] * 300 + boxes[1:], np.linspace(1, 0.1, 600), [0] * 300 + [1] * 300)
    result = evaluate_one(truth, found)
    # Of the best 500, 200 are of class 1: all hits, recall 200/300.
    assert result.classes[0].ap == 1
    assert result.classes[1].ap == pytest.approx(200 / 300, abs=ROUNDING)
    assert result.ar == pytest.approx({1: 0.5, 10: 0.5, 100: 0.5, 500: (1 + 200 / 300) / 2}, abs=ROUNDING)
    # The order in which they are handed over is of no account.
    shuffled = found.select(np.random.default_rng(0).permutation(600))
    assert evaluate_one(truth, shuffled).as_dict() == result.as_dict()


def test_recalls_by_number_of_detections():
    # 600 boxes of one class, all found: 1, 10, 100 and 500 of them.
    truth = record(grid(600), [0] * 600)
    result = evaluate_one(truth, perfect(truth))
    assert result.ar == pytest.approx({1: 1 / 600, 10: 10 / 600, 100: 100 / 600, 500: 500 / 600}, abs=ROUNDING)
    assert result.ap == pytest.approx(500 / 600, abs=ROUNDING)


def test_detections_are_ranked_over_all_images():
    # Ranked by score: a hit (image 2), two misses (image 1), a hit (image 1). AP = 1/2 * 1 + 1/2 * 1/2.
    truth = [record([BOX], [0]), record([BOX], [0])]
    found = [
        detections([[50, 50, 60, 60], [70, 70, 80, 80], BOX], [0.8, 0.7, 0.6], [0, 0, 0]),
        detections([BOX], [0.9], [0]),
    ]
    assert evaluate_visdrone(truth, found, NAMES).ap == 0.75


def test_no_detections_score_zero():
    result = evaluate_one(record([BOX], [0]), detections())
    assert (result.ap, result.ap50, result.ap75) == (0, 0, 0)
    assert result.ar == {1: 0, 10: 0, 100: 0, 500: 0}


@pytest.mark.parametrize("found", [detections(), detections([BOX], [0.9], [0])])
def test_no_boxes_define_no_score(found):
    result = evaluate_one(record(), found)
    assert all(math.isnan(value) for _, value in result.rows())
    assert (result.images, result.boxes) == (1, 0)


def test_average_precision_of_known_rankings():
    # By hand, one column a threshold, 5 boxes: all hits; hit, hit, miss, hit; miss, hit, hit, hit, whose precisions
    # 1/2, 2/3, 3/4 all become 3/4; nothing.
    hits = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=bool)
    values = average_precision(np.array([0.9, 0.8, 0.7, 0.6]), hits, 5)
    assert values == pytest.approx([4 / 5, (1 + 1 + 3 / 4) / 5, 3 * (3 / 4) / 5, 0], abs=ROUNDING)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_covered_area_is_the_area_of_the_union(data):
    side = st.integers(-3, 12)
    boxes = data.draw(st.lists(st.tuples(side, side, side, side), min_size=1, max_size=4))
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in boxes]
    regions = data.draw(st.lists(st.tuples(side, side, side, side), max_size=4))
    regions = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in regions]
    painted = {(x, y) for x1, y1, x2, y2 in regions for x in range(x1, x2) for y in range(y1, y2)}
    expected = [sum((x, y) in painted for x in range(x1, x2) for y in range(y1, y2)) for x1, y1, x2, y2 in boxes]
    # A quarter of a pixel's size keeps every number exact and makes coordinates fractional.
    scaled = covered_area(np.array(boxes) / 4, np.array(regions, dtype=float).reshape(-1, 4) / 4)
    assert (scaled * 16).tolist() == expected


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes_equal_the_slow_twin(seed):
    rng = np.random.default_rng(seed)
    records = [random_record(rng, len(NAMES)) for _ in range(4)]
    assert_equals_slow(records, [random_detections(truth, rng, len(NAMES)) for truth in records])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_crowded_scenes_equal_the_slow_twin(data):
    # On a 12 px canvas boxes, regions and detections overlap in every way, and ties of IoU and score are common.
    corner = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.integers(1, 4))
    box = corner.map(lambda values: [values[0], values[1], values[0] + values[2], values[1] + values[3]])
    label = st.integers(0, 1)
    records, found = [], []
    for _ in range(data.draw(st.integers(1, 2))):
        objects = data.draw(st.lists(st.tuples(box, label), max_size=5))
        regions = data.draw(st.lists(st.tuples(box, st.integers(-1, 1)), max_size=2))
        detected = data.draw(st.lists(st.tuples(box, st.sampled_from([0.2, 0.5, 0.9]), label), max_size=6))
        records.append(
            record([b for b, _ in objects], [c for _, c in objects], [b for b, _ in regions], [c for _, c in regions])
        )
        found.append(detections([b for b, _, _ in detected], [s for _, s, _ in detected], [c for _, _, c in detected]))
    assert_equals_slow(records, found, NAMES[:2])


@pytest.mark.shared_data
def test_real_boxes(visdrone_val):
    names = tuple(str(label) for label in range(10))
    result = evaluate_visdrone(visdrone_val, [perfect(truth) for truth in visdrone_val], names)
    assert (result.images, result.boxes + result.boxes_ignored) == (106, 9806)
    assert result.ap == 1
    assert result.ar[500] == 1
    assert [score.ap for score in result.classes] == [1] * 10

    rng = np.random.default_rng(0)
    records = visdrone_val[::20]
    found = [jittered(truth, rng, 60) for truth in records]
    whole = [Detections(np.round(image.boxes), image.scores, image.labels) for image in found]
    assert_equals_slow(records, whole, names)


@pytest.mark.shared_data
def test_real_boxes_are_evaluated_in_time(visdrone_val):
    rng = np.random.default_rng(0)
    found = [jittered(truth, rng, 500) for truth in visdrone_val]
    start = time.process_time()
    result = evaluate_visdrone(visdrone_val, found, tuple(str(label) for label in range(10)))
    # Processor time. The limit is generous: 0.6 s was measured.
    assert time.process_time() - start < 15
    assert 0 < result.ap < 1
