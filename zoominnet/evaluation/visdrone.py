"""The VisDrone-DET protocol, after the rules of the challenge's evaluation toolkit (VisDrone2018-DET-toolkit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torchvision.ops import box_iou

from zoominnet.data.records import ANY_CLASS, ImageRecord
from zoominnet.evaluation.detections import Detections, check_inputs
from zoominnet.evaluation.result import ClassScore, Result, mean_defined

THRESHOLDS = np.arange(10, 20) / 20
"""The IoU thresholds. Divided, not added up, so that a box whose IoU is exactly 0.6 passes 0.60."""

MAX_DETS = (1, 10, 100, 500)
"""Detections counted per image for the recalls; the precisions count the last."""


@dataclass(frozen=True)
class VisDroneResult(Result):
    """Scores of the VisDrone protocol.

    Attributes:
        boxes_ignored: ground-truth boxes left out because they lie in ignored regions; not in `boxes`.
    """

    protocol: ClassVar[str] = "VisDrone"

    boxes_ignored: int

    def counts(self) -> dict[str, int]:
        return {**super().counts(), "boxes_ignored": self.boxes_ignored}


def evaluate_visdrone(
    records: Sequence[ImageRecord], detections: Sequence[Detections], class_names: Sequence[str]
) -> VisDroneResult:
    """Average precision (area under the whole curve) and recall as the VisDrone-DET challenge defines them.

    1. A ground-truth box or detection with at least half its area inside the union of the image's ignored regions
       counts for nothing. (A region with a class holds for that class.)
    2. The 500 best detections of an image, over all classes, are evaluated; recall also with the best 1, 10 and 100.
    3. Per class, image and IoU threshold, detections by falling score each take the free ground-truth box of highest
       IoU if it reaches the threshold; the later box where two are equal.
    4. A class's AP at a threshold is the area under precision over recall, precision made non-increasing (VOC 2010).
       Its recall is the share of boxes taken.
    5. Scores are means over the thresholds 0.50, 0.55, ..., 0.95 and the classes with boxes.

    Where this differs from the toolkit:
    - It draws the regions into a pixel map, which rounds boxes to whole px and widens each region by one. Here the
      areas are exact, also for fractional boxes. Detections are not clipped to the image.
    - Its regions are category 0 only. Objects of category 11 it leaves out, so that detecting one is a mistake, and
      those with score 0 it ignores in matching. The project's readers make ignored regions of all three.
    - Its later releases repeat a class in the means for every image that shows it. Here each class with boxes counts
      once, as the challenge describes its scores.
    - Detections are sorted here, not taken as sorted.

    Args:
        records: ground truth.
        detections: one per record, in the records' order.
        class_names: the names of labels 0, 1, ...

    Raises:
        ValueError: an argument cannot be evaluated; the message names it.
    """
    check_inputs(records, detections, class_names)
    C = len(class_names)
    annotated = 0
    boxes = np.zeros(C, dtype=np.int64)
    kept_detections = []
    kept_hits = []
    for record, found in zip(records, detections, strict=True):
        counted = ~in_ignored_regions(record.boxes, record.labels, record)
        truth, truth_labels = record.boxes[counted], record.labels[counted]
        annotated += len(record.boxes)
        boxes += np.bincount(truth_labels, minlength=C)
        found = (
            found.select(~in_ignored_regions(found.boxes, found.labels, record))
            .best_first()
            .select(slice(MAX_DETS[-1]))
        )
        hits = np.zeros((len(found), len(THRESHOLDS)), dtype=bool)
        for label in np.intersect1d(truth_labels, found.labels):
            hits[found.labels == label] = match(found.boxes[found.labels == label], truth[truth_labels == label])
        kept_detections.append(found)
        kept_hits.append(hits)

    labels = np.concatenate([found.labels for found in kept_detections])
    scores = np.concatenate([found.scores for found in kept_detections])
    ranks = np.concatenate([np.arange(len(found)) for found in kept_detections])
    hits = np.concatenate(kept_hits)
    ap = np.full((C, len(THRESHOLDS)), np.nan)
    recall = np.full((len(MAX_DETS), C, len(THRESHOLDS)), np.nan)
    for label in np.flatnonzero(boxes):
        of_class = labels == label
        ap[label] = average_precision(scores[of_class], hits[of_class], int(boxes[label]))
        for index, count in enumerate(MAX_DETS):
            recall[index, label] = hits[of_class & (ranks < count)].sum(axis=0) / boxes[label]

    return VisDroneResult(
        images=len(records),
        boxes=int(boxes.sum()),
        ap=mean_defined(ap),
        ap50=mean_defined(ap[:, 0]),
        ap75=mean_defined(ap[:, 5]),
        ar={count: mean_defined(recall[index]) for index, count in enumerate(MAX_DETS)},
        classes=tuple(
            ClassScore(name, int(boxes[label]), mean_defined(ap[label]), float(ap[label, 0]))
            for label, name in enumerate(class_names)
        ),
        boxes_ignored=annotated - int(boxes.sum()),
    )


def match(detected: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Greedy matching in one image and class (rule 3).

    Args:
        detected: float[D, 4], by falling score.
        truth: float[G, 4], G >= 1.

    Returns:
        bool[D, 10]: whether the detection takes a box, at each of `THRESHOLDS`.
    """
    iou = box_iou(*(torch.from_numpy(boxes.astype(np.float64)) for boxes in (detected, truth))).numpy()
    hits = np.zeros((len(detected), len(THRESHOLDS)), dtype=bool)
    free = np.ones((len(THRESHOLDS), len(truth)), dtype=bool)
    # A detection below every threshold takes nothing from the others: most of them need no step.
    for d in np.flatnonzero(iou.max(axis=1) >= THRESHOLDS[0]):
        candidates = np.where(free, iou[d], -1.0)
        # From the end, so that the later of two equal boxes is taken.
        best = len(truth) - 1 - candidates[:, ::-1].argmax(axis=1)
        taken = np.flatnonzero(candidates.max(axis=1) >= THRESHOLDS)
        free[taken, best[taken]] = False
        hits[d, taken] = True
    return hits


def average_precision(scores: np.ndarray, hits: np.ndarray, boxes: int) -> np.ndarray:
    """The area under the precision-recall curve of one class (rule 4).

    Args:
        scores: float[N]. Equal scores are ranked in the order given.
        hits: bool[N, T], whether a detection takes a box, at each of T thresholds.
        boxes: ground-truth boxes, at least 1.

    Returns:
        float64[T], 0 to 1.
    """
    hits = hits[np.argsort(-scores, kind="stable")]
    precision = hits.cumsum(axis=0) / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # Each hit raises the recall by 1 / boxes, everything else leaves it.
    return (precision * hits).sum(axis=0) / boxes


def covered_area(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The area of each box that lies inside the union of the regions, exact.

    Args:
        boxes: float[N, 4], (x1, y1, x2, y2) px.
        regions: float[R, 4], same form; they may overlap.

    Returns:
        float64[N], px^2.
    """
    boxes, regions = boxes.astype(np.float64), regions.astype(np.float64)
    # The regions' edges cut the plane into cells that are each wholly inside or outside the union.
    x, y = np.unique(regions[:, [0, 2]]), np.unique(regions[:, [1, 3]])
    columns = (regions[:, :1] <= x[:-1]) & (x[1:] <= regions[:, 2:3])
    rows = (regions[:, 1:2] <= y[:-1]) & (y[1:] <= regions[:, 3:])
    union = (rows.T.astype(np.float64) @ columns > 0).astype(np.float64)
    widths = (np.minimum(boxes[:, 2:3], x[1:]) - np.maximum(boxes[:, :1], x[:-1])).clip(min=0)
    heights = (np.minimum(boxes[:, 3:], y[1:]) - np.maximum(boxes[:, 1:2], y[:-1])).clip(min=0)
    return ((heights @ union) * widths).sum(axis=1)


def in_ignored_regions(boxes: np.ndarray, labels: np.ndarray, record: ImageRecord) -> np.ndarray:
    """bool[N]: at least half the box lies in the record's ignored regions for its class (rule 1).

    Args:
        boxes: float[N, 4], (x1, y1, x2, y2) px.
        labels: int[N].
        record: whose regions.
    """
    ignored = np.zeros(len(boxes), dtype=bool)
    for label in np.unique(labels):
        regions = record.ignored[(record.ignored_labels == ANY_CLASS) | (record.ignored_labels == label)]
        of_class = boxes[labels == label]
        area = (of_class[:, 2:].astype(np.float64) - of_class[:, :2]).prod(axis=1)
        # A detection without area lies nowhere: it stays a false positive.
        ignored[labels == label] = (area > 0) & (2 * covered_area(of_class, regions) >= area)
    return ignored
