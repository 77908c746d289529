"""The confusion matrix by a hand-worked case, its sums, and supervision's."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_cases import detections, jittered, random_detections, random_record, record

from zoominnet.evaluation import confusion_matrix

NAMES = ("car", "van", "bus")


def test_by_hand() -> None:
    """A car found, a van taken for a car, a bus missed, a car from nowhere, and an ignored one."""
    truth = record(
        [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100]], [0, 1, 2], ignored=[[800, 800, 1000, 1000]]
    )
    found = detections(
        [[0, 0, 100, 80], [200, 0, 300, 80], [600, 600, 610, 610], [850, 850, 900, 900]],
        [0.9, 0.8, 0.7, 0.6],
        [0, 0, 0, 1],
    )
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert confusion_matrix([truth], [found], NAMES).tolist() == expected


def test_the_pair_of_higher_iou_goes_together() -> None:
    """Whatever the scores: 0.9 of the box is a van's, 0.6 a car's."""
    truth = record([[0, 0, 100, 100]], [0])
    found = detections([[0, 0, 100, 60], [0, 0, 100, 90]], [0.9, 0.1], [0, 1])
    expected = np.zeros((4, 4), dtype=int)
    expected[0, 1] = expected[3, 0] = 1
    assert np.array_equal(confusion_matrix([truth], [found], NAMES), expected)


def test_rows_sum_to_boxes_and_columns_to_detections() -> None:
    rng = np.random.default_rng(0)
    records = [random_record(rng, 3, regions=0) for _ in range(30)]
    found = [random_detections(each, rng, 3) for each in records]
    matrix = confusion_matrix(records, found, NAMES)
    labels = np.concatenate([each.labels for each in records])
    assert matrix[:3].sum(axis=1).tolist() == np.bincount(labels, minlength=3).tolist()
    assert (
        matrix[:, :3].sum(axis=0).tolist()
        == np.bincount(np.concatenate([each.labels for each in found]), minlength=3).tolist()
    )
    assert matrix[3, 3] == 0


def test_as_supervision_counts_where_boxes_lie_apart() -> None:
    """Where boxes crowd, supervision pairs by rules of its own."""
    sv = pytest.importorskip("supervision")
    rng = np.random.default_rng(1)
    records, found, theirs, targets = [], [], [], []
    for _ in range(20):
        corners = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2)[: rng.integers(1, 25)] * 200
        truth = record(np.hstack([corners, corners + 60]).tolist(), rng.integers(0, 3, len(corners)).tolist())
        seen = jittered(truth, rng, 20, 0.15)
        seen = seen.select(np.unique(np.round(seen.boxes[:, :2] / 200), axis=0, return_index=True)[1])
        records.append(truth)
        found.append(seen)
        targets.append(sv.Detections(xyxy=truth.boxes.astype(float), class_id=truth.labels.astype(int)))
        theirs.append(
            sv.Detections(
                xyxy=seen.boxes.astype(float), class_id=seen.labels.astype(int), confidence=np.full(len(seen), 0.9)
            )
        )
    expected = sv.ConfusionMatrix.from_detections(theirs, targets, list(NAMES), 0.5, 0.5).matrix
    assert np.array_equal(confusion_matrix(records, found, NAMES), expected)


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="records is empty"):
        confusion_matrix([], [], NAMES)
