"""Ground truth and detections that the evaluation's tests share."""

from collections.abc import Sequence

import numpy as np

from zoominnet.data.records import ANY_CLASS, ImageRecord
from zoominnet.evaluation import Detections

NO_BOXES: list[list[float]] = []


def record(
    boxes: Sequence[Sequence[float]] = NO_BOXES,
    labels: Sequence[int] = (),
    ignored: Sequence[Sequence[float]] = NO_BOXES,
    ignored_labels: Sequence[int] | None = None,
) -> ImageRecord:
    """A record of a 1000 x 1000 image; ignored regions hold for every class unless told."""
    return ImageRecord(
        path=None,
        image_id=0,
        width=1000,
        height=1000,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        ignored=np.array(ignored, dtype=np.float32).reshape(-1, 4),
        ignored_labels=np.array([ANY_CLASS] * len(ignored) if ignored_labels is None else ignored_labels, dtype=int),
    )


def detections(
    boxes: Sequence[Sequence[float]] = NO_BOXES, scores: Sequence[float] = (), labels: Sequence[int] = ()
) -> Detections:
    return Detections(
        np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(scores, dtype=float), np.array(labels, dtype=int)
    )


def perfect(truth: ImageRecord) -> Detections:
    """Each ground-truth box, found with the same score."""
    return Detections(truth.boxes, np.full(len(truth.boxes), 0.5, dtype=np.float32), truth.labels)


def jittered(truth: ImageRecord, rng: np.random.Generator, count: int, spread: float = 0.1) -> Detections:
    """`count` copies of random ground-truth boxes, corners moved by about `spread` sides, a tenth of the labels wrong."""
    chosen = rng.integers(0, len(truth.boxes), count)
    boxes, labels = truth.boxes[chosen].astype(np.float64), truth.labels[chosen].copy()
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes[:, :2] += rng.normal(0, spread, (count, 2)) * sides
    boxes[:, 2:] = np.maximum(boxes[:, 2:] + rng.normal(0, spread, (count, 2)) * sides, boxes[:, :2])
    wrong = rng.random(count) < 0.1
    labels[wrong] = rng.integers(0, labels.max() + 1, wrong.sum())
    # Scores in steps of 1/64, so that some are equal.
    return Detections(boxes.astype(np.float32), (rng.integers(0, 64, count) / 64).astype(np.float32), labels)


def random_record(rng: np.random.Generator, C: int, most: int = 12, regions: int = 3) -> ImageRecord:
    """Whole-pixel boxes of 4 to 150 px (all three COCO sizes), and ignored regions, some of one class."""

    def boxes(count: int) -> np.ndarray:
        corners = rng.integers(0, 400, (count, 2))
        return np.hstack([corners, corners + rng.integers(4, 150, (count, 2))])

    count, ignored = rng.integers(0, most + 1), rng.integers(0, regions + 1)
    return record(
        boxes(count).tolist(),
        rng.integers(0, C, count).tolist(),
        boxes(ignored).tolist(),
        rng.integers(-1, C, ignored).tolist(),
    )


def random_detections(truth: ImageRecord, rng: np.random.Generator, C: int, most: int = 25) -> Detections:
    """Moved ground-truth boxes and boxes from nowhere, all in whole pixels, with scores that are often equal."""
    count = int(rng.integers(0, most + 1))
    corners = rng.integers(0, 400, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 150, (count, 2))]).astype(np.float64)
    labels = rng.integers(0, C, count)
    if len(truth.boxes):
        for i in np.flatnonzero(rng.random(count) < 0.8):
            chosen = rng.integers(len(truth.boxes))
            box = truth.boxes[chosen] + rng.integers(-3, 4, 4)
            boxes[i] = [*box[:2], *np.maximum(box[:2], box[2:])]
            if rng.random() < 0.9:
                labels[i] = truth.labels[chosen]
    return Detections(boxes, rng.integers(0, 10, count) / 10, labels)
