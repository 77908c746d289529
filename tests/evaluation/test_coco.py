"""The COCO protocol against hand-worked numbers and a plain run of pycocotools."""

import contextlib
import io
import math

import numpy as np
import pytest
from evaluation_cases import detections, jittered, perfect, random_detections, random_record, record
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zoominnet.data.records import ANY_CLASS, ImageRecord
from zoominnet.evaluation import CocoResult, Detections, evaluate_coco

NAMES = ("car", "bus", "van")
BOX = [0, 0, 10, 10]
STATS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L")

# COCOeval divides by (count + 2^-52), and means are taken over other groupings than by hand.
ROUNDING = 1e-12


def evaluate_one(truth: ImageRecord, found: Detections, **options) -> CocoResult:
    return evaluate_coco([truth], [found], NAMES, **options)


def plain_coco(records: list[ImageRecord], found: list[Detections], C: int, ignore: bool) -> dict[str, float]:
    """COCOeval by the book: a json-like dictionary, loadRes on a list of results, summarize()."""
    annotations = []
    results = []
    for image_id, (truth, image) in enumerate(zip(records, found, strict=True), start=101):
        crowds = [
            (region, label)
            for region, region_label in zip(truth.ignored, truth.ignored_labels, strict=True)
            for label in range(C)
            if label == region_label or (ignore and region_label == ANY_CLASS)
        ]
        for iscrowd, things in ((0, zip(truth.boxes, truth.labels, strict=True)), (1, crowds)):
            for box, label in things:
                x1, y1, x2, y2 = (float(value) for value in box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(label) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": iscrowd,
                    }
                )
        for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 101 + index} for index in range(len(records))],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(C)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: math.nan if value == -1 else value for name, value in zip(STATS, evaluation.stats, strict=True)}


def test_two_boxes_three_detections():
    # The case of test_visdrone.py: hit, miss, hit up to 0.70, hit, miss, miss from 0.75 on.
    result = evaluate_one(
        record([BOX, [20, 0, 30, 10]], [0, 0]),
        detections([BOX, [0, 20, 10, 30], [20, 0, 30, 7.2]], [0.9, 0.8, 0.7], [0, 0, 0]),
    )
    # At 101 recall points: precision 1 at the 51 points 0.00 to 0.50, 2/3 at the other 50, where VisDrone's area
    # gives 5/6; then 1 at 51 points and 0, where the area is 1/2.
    ap50 = (51 + 50 * 2 / 3) / 101
    ap75 = 51 / 101
    assert result.ap50 == pytest.approx(ap50, abs=ROUNDING)
    assert result.ap75 == pytest.approx(ap75, abs=ROUNDING)
    assert result.ap == pytest.approx((ap50 + ap75) / 2, abs=ROUNDING)
    assert result.ar == pytest.approx({1: 0.5, 10: 0.75, 100: 0.75}, abs=ROUNDING)
    assert [score.boxes for score in result.classes] == [2, 0, 0]
    assert result.classes[0].ap == result.ap
    assert result.classes[0].ap50 == result.ap50


def test_a_box_that_only_the_first_threshold_takes():
    result = evaluate_one(record([BOX], [0]), detections([[0, 0, 10, 5.2]], [0.9], [0]))  # IoU 0.52
    assert (result.ap50, result.classes[0].ap50) == pytest.approx((1, 1), abs=ROUNDING)
    assert (result.ap, result.classes[0].ap) == pytest.approx((0.1, 0.1), abs=ROUNDING)


def test_sizes_go_by_area_in_original_pixels():
    # Sides 31, 33, 95 and 97: one small, two medium, one large. Only the small and one medium box are found.
    boxes = [[100 * i, 0, 100 * i + side, side] for i, side in enumerate((31, 33, 95, 97))]
    result = evaluate_one(record(boxes, [0] * 4), detections(boxes[:2], [0.9, 0.8], [0, 0]))
    assert (result.ar_small, result.ar_medium, result.ar_large) == (1, 0.5, 0)
    # Recall 1/2: precision 1 at the 51 points 0.00 to 0.50.
    assert (result.ap_small, result.ap_medium, result.ap_large) == pytest.approx((1, 51 / 101, 0), abs=ROUNDING)


def test_max_dets_counts_over_all_classes():
    truth = record([BOX, [20, 0, 30, 10]], [0, 1])
    found = detections([BOX, [50, 0, 60, 10], [20, 0, 30, 10]], [0.9, 0.8, 0.7], [0, 0, 1])
    # Two places go to class 0: class 1 gets none though it has only one detection.
    result = evaluate_one(truth, found, max_dets=2)
    assert [score.ap for score in result.classes[:2]] == pytest.approx([1, 0], abs=ROUNDING)
    assert result.ar == {1: 0.5, 2: 0.5}
    result = evaluate_one(truth, found, max_dets=3)
    assert [score.ap for score in result.classes[:2]] == pytest.approx([1, 1], abs=ROUNDING)


def test_the_best_are_counted_in_whatever_order_they_come():
    found = detections([[50, 0, 60, 10], BOX], [0.1, 0.9], [0, 0])
    assert evaluate_one(record([BOX], [0]), found, max_dets=1).ap == pytest.approx(1, abs=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(("max_dets", "counts"), [(1, [1]), (5, [1, 5]), (10, [1, 10]), (500, [1, 10, 500])])
def test_any_max_dets_has_scores(max_dets, counts):
    # 600 boxes of one class, all found.
    boxes = [[12 * (i % 50), 12 * (i // 50), 12 * (i % 50) + 10, 12 * (i // 50) + 10] for i in range(600)]
    truth = record(boxes, [0] * 600)
    result = evaluate_one(truth, perfect(truth), max_dets=max_dets)
    assert result.ar == pytest.approx({count: count / 600 for count in counts}, abs=ROUNDING)
    # Precision 1 at the recall points 0.00, 0.01, ... up to the recall reached.
    points = math.floor(100 * max_dets / 600) + 1
    assert result.ap == pytest.approx(points / 101, abs=ROUNDING)
    assert result.ap_small == result.ap


def test_regions_without_class_are_background_or_ignored():
    # A detection in a region for every class comes before the hit: a miss, or nothing.
    truth = record([BOX], [0], [[50, 50, 90, 90]])
    found = detections([[60, 60, 70, 70], BOX], [0.9, 0.8], [0, 0])
    assert evaluate_one(truth, found).ap == pytest.approx(0.5, abs=ROUNDING)
    assert evaluate_one(truth, found, regions="background").ap == pytest.approx(0.5, abs=ROUNDING)
    assert evaluate_one(truth, found, regions="ignore").ap == pytest.approx(1, abs=ROUNDING)


@pytest.mark.parametrize("regions", ["background", "ignore"])
def test_crowd_regions_hold_for_their_class(regions):
    found = detections([[60, 60, 70, 70], BOX], [0.9, 0.8], [0, 0])
    own = evaluate_one(record([BOX], [0], [[50, 50, 90, 90]], [0]), found, regions=regions)
    other = evaluate_one(record([BOX], [0], [[50, 50, 90, 90]], [1]), found, regions=regions)
    assert own.ap == pytest.approx(1, abs=ROUNDING)
    assert other.ap == pytest.approx(0.5, abs=ROUNDING)
    # A crowd is not a box: it gives its class no score.
    assert (other.boxes, other.classes[1].boxes) == (1, 0)
    assert math.isnan(other.classes[1].ap)


def test_first_detection_of_the_first_box_matches():
    # COCOeval cannot tell a match with an annotation numbered 0 from no match.
    assert evaluate_one(record([BOX], [0]), detections([BOX], [0.9], [0])).ap == pytest.approx(1, abs=ROUNDING)


def test_means_leave_absent_classes_out():
    truth = record([BOX, [20, 0, 30, 10]], [0, 2])
    result = evaluate_one(truth, detections([BOX, BOX], [0.9, 0.8], [0, 1]))
    assert [score.ap for score in result.classes] == pytest.approx([1, math.nan, 0], nan_ok=True, abs=ROUNDING)
    assert result.ap == pytest.approx(0.5, abs=ROUNDING)


def test_no_detections_score_zero():
    result = evaluate_one(record([BOX], [0]), detections())
    assert (result.ap, result.ap50, result.ap_small, result.ar_small) == (0, 0, 0, 0)
    assert result.ar == {1: 0, 10: 0, 100: 0}


@pytest.mark.parametrize("found", [detections(), detections([BOX], [0.9], [0])])
def test_no_boxes_define_no_score(found):
    result = evaluate_one(record(), found)
    assert all(math.isnan(value) for _, value in result.rows())
    assert (result.images, result.boxes) == (1, 0)


def test_prints_nothing_and_leaves_its_input_alone(capfd):
    truth, found = record([BOX], [0]), detections([BOX, BOX], [0.1, 0.9], [0, 0])
    evaluate_one(truth, found)
    assert capfd.readouterr() == ("", "")
    assert found.scores.tolist() == [0.1, 0.9]


@pytest.mark.parametrize(("options", "message"), [({"max_dets": 0}, "max_dets"), ({"regions": "drop"}, "regions")])
def test_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_one(record([BOX], [0]), detections(), **options)


@pytest.mark.parametrize("regions", ["background", "ignore"])
@pytest.mark.parametrize("seed", range(6))
def test_random_scenes_equal_a_plain_run(seed, regions):
    rng = np.random.default_rng(seed)
    records = [random_record(rng, len(NAMES)) for _ in range(5)]
    found = [random_detections(truth, rng, len(NAMES)) for truth in records]
    result = evaluate_coco(records, found, NAMES, regions=regions)
    expected = plain_coco(records, found, len(NAMES), ignore=regions == "ignore")
    assert dict(result.rows()) == pytest.approx(expected, abs=ROUNDING, nan_ok=True)


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_boxes(visdrone_val):
    names = tuple(str(label) for label in range(10))
    # 173 boxes at most in an image.
    result = evaluate_coco(visdrone_val, [perfect(truth) for truth in visdrone_val], names, max_dets=500)
    assert (result.images, result.boxes) == (106, 9806)
    assert result.ap == pytest.approx(1, abs=ROUNDING)
    assert (result.ar_small, result.ar_medium, result.ar_large) == (1, 1, 1)

    rng = np.random.default_rng(0)
    records = visdrone_val[::4]
    found = [jittered(truth, rng, 100) for truth in records]
    result = evaluate_coco(records, found, names)
    assert dict(result.rows()) == pytest.approx(plain_coco(records, found, 10, ignore=False), abs=ROUNDING)
