"""Input checks that both protocols make, and what a result can be turned into."""

import io
import json

import numpy as np
import pytest
from evaluation_cases import detections, perfect, record
from rich.console import Console

from zoominnet.evaluation import Detections, evaluate_coco, evaluate_visdrone

NAMES = ("car", "bus")
BOX = [0.0, 0.0, 10.0, 10.0]
TRUTH = record([BOX], [0])
NAN = float("nan")


@pytest.mark.parametrize("evaluate", [evaluate_coco, evaluate_visdrone])
@pytest.mark.parametrize(
    ("records", "found", "names", "message"),
    [
        ([], [], NAMES, "records is empty"),
        ([TRUTH, TRUTH], [detections()], NAMES, "1 detections for 2 records"),
        ([TRUTH], [detections()], (), "class_names must be one or more different names"),
        ([TRUTH], [detections()], ("car", "car"), "class_names must be one or more different names"),
        ([TRUTH, record([BOX], [2])], [detections()] * 2, NAMES, r"records\[1\].labels has 2, outside 0..1"),
        ([record([], [], [BOX], [-2])], [detections()], NAMES, r"records\[0\].ignored_labels has -2, outside -1..1"),
        ([TRUTH], [detections([BOX], [0.5], [2])], NAMES, r"detections\[0\].labels has 2, outside 0..1"),
        ([TRUTH], [detections([BOX], [0.5], [-1])], NAMES, r"detections\[0\].labels has -1, outside 0..1"),
        ([TRUTH], [detections([BOX], [NAN], [0])], NAMES, r"detections\[0\].scores has values that are not finite"),
        ([TRUTH], [detections([[0, 0, 9, NAN]], [0.5], [0])], NAMES, r"detections\[0\].boxes has .* not finite"),
        ([TRUTH], [detections([[0, 9, 9, 8]], [0.5], [0])], NAMES, r"detections\[0\].boxes\[0\] is .*y1 <= y2"),
        (
            [TRUTH],
            [detections([BOX], [0.5], [0, 1])],
            NAMES,
            r"detections\[0\].labels has shape \(2,\), expected \(1,\)",
        ),
        ([TRUTH], [detections([BOX, BOX], [0.5], [0])], NAMES, r"boxes has shape \(2, 4\), expected \(1, 4\)"),
        (
            [TRUTH],
            [Detections(np.zeros((1, 4)), np.zeros(1), np.zeros(1))],
            NAMES,
            r"detections\[0\].labels must be integers, got float64",
        ),
        (
            [TRUTH],
            [Detections(np.zeros((1, 4), dtype=np.int64), np.zeros(1), np.zeros(1, dtype=np.int64))],
            NAMES,
            r"detections\[0\].boxes must be floating point, got int64",
        ),
    ],
)
def test_refuses_what_it_cannot_evaluate(evaluate, records, found, names, message):
    with pytest.raises(ValueError, match=message):
        evaluate(records, found, names)


def test_best_first_keeps_the_order_of_equal_scores():
    found = detections([BOX] * 4, [0.5, 0.9, 0.5, 0.9], [0, 1, 2, 3]).best_first()
    assert found.labels.tolist() == [1, 3, 0, 2]
    assert found.scores.tolist() == [0.9, 0.9, 0.5, 0.5]


def test_visdrone_as_dict_holds_plain_json_values():
    result = evaluate_visdrone([record([BOX, [50, 50, 60, 60]], [0, 0], [[50, 50, 60, 60]])], [perfect(TRUTH)], NAMES)
    expected = {
        "protocol": "VisDrone",
        "images": 1,
        "boxes": 1,
        "boxes_ignored": 1,
        **dict.fromkeys(("AP", "AP50", "AP75", "AR_1", "AR_10", "AR_100", "AR_500"), 1.0),
        "classes": {
            "car": {"boxes": 1, "AP": 1.0, "AP50": 1.0},
            "bus": {"boxes": 0, "AP": None, "AP50": None},
        },
    }
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False)) == expected


def test_coco_as_dict_holds_plain_json_values():
    result = evaluate_coco([TRUTH], [perfect(TRUTH)], NAMES, max_dets=300)
    # The only box is small: medium and large are not defined.
    ones = ("AP", "AP50", "AP75", "AP_S", "AR_1", "AR_10", "AR_300", "AR_S")
    expected = {
        "protocol": "COCO",
        "images": 1,
        "boxes": 1,
        "max_dets": 300,
        "regions": "background",
        **dict.fromkeys(ones, 1.0),
        **dict.fromkeys(("AP_M", "AP_L", "AR_M", "AR_L")),
        "classes": {
            "car": {"boxes": 1, "AP": 1.0, "AP50": 1.0},
            "bus": {"boxes": 0, "AP": None, "AP50": None},
        },
    }
    text = json.dumps(result.as_dict(), allow_nan=False)
    # COCOeval divides by (count + 2^-52), so its ones are just below 1.
    assert json.loads(text, parse_float=lambda number: round(float(number), 12)) == expected


def test_table_shows_every_row_class_and_count():
    result = evaluate_coco([TRUTH], [perfect(TRUTH)], NAMES)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    for expected in (["AP_S", "1.0000"], ["AP_L", "-"], ["AP", "car", "1.0000"], ["AP", "bus", "-"], ["boxes", "1"]):
        assert expected in lines
    names = [name for name, _ in result.rows()]
    assert names == ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L"]
