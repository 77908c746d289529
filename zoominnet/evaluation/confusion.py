"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from zoominnet.data.records import ImageRecord
from zoominnet.evaluation.detections import Detections, check_inputs
from zoominnet.evaluation.errors import FOREGROUND_IOU
from zoominnet.evaluation.visdrone import in_ignored_regions


def confusion_matrix(
    records: Sequence[ImageRecord], detections: Sequence[Detections], class_names: Sequence[str]
) -> np.ndarray:
    """Counts of boxes by their class and that of the detection that lies on them.

    In each image the pairs of a box and a detection, of whatever classes, with an IoU of at least 0.5 are taken by falling
    IoU, each box and each detection once. What lies with at least half its area in ignored regions is left out first, as
    :func:`zoominnet.evaluation.evaluate_visdrone` has it.

    Args:
        records: ground truth.
        detections: one per record, those of interest: low scores are to be left out before.
        class_names: the names of labels 0, 1, ..., C of them.

    Returns:
        int64[C + 1, C + 1], by the box's class (rows) and the detection's (columns). The last column counts the boxes without
        a detection, the last row the detections without a box. A row sums to the class's boxes, a column to its detections.

    Raises:
        ValueError: an argument cannot be evaluated; the message names it.
    """
    check_inputs(records, detections, class_names)
    C = len(class_names)
    matrix = np.zeros((C + 1, C + 1), dtype=np.int64)
    for record, found in zip(records, detections, strict=True):
        kept = ~in_ignored_regions(record.boxes, record.labels, record)
        boxes, labels = record.boxes[kept], record.labels[kept]
        found = found.select(~in_ignored_regions(found.boxes, found.labels, record))
        iou = box_iou(*(torch.from_numpy(x.astype(np.float64)) for x in (boxes, found.boxes))).numpy()
        rows, columns = np.nonzero(iou >= FOREGROUND_IOU)
        free_boxes, free_detections = np.ones(len(boxes), dtype=bool), np.ones(len(found), dtype=bool)
        for i in np.argsort(-iou[rows, columns], kind="stable"):
            if free_boxes[rows[i]] and free_detections[columns[i]]:
                free_boxes[rows[i]] = free_detections[columns[i]] = False
                matrix[labels[rows[i]], found.labels[columns[i]]] += 1
        matrix[:C, C] += np.bincount(labels[free_boxes], minlength=C)
        matrix[C, :C] += np.bincount(found.labels[free_detections], minlength=C)
    return matrix
