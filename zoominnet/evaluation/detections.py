"""What a detector found in an image, and the checks both evaluation protocols make before they count anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoominnet.data.records import ANY_CLASS, ImageRecord


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, in any order.

    Attributes:
        boxes: floating[N, 4], (x1, y1, x2, y2) in px of the original image, x1 <= x2 and y1 <= y2.
        scores: floating[N], finite; higher is more certain.
        labels: integer[N], 0 to number of classes - 1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray | slice) -> Detections:
        """Those detections that `index` (indices, a mask or a slice) picks, in its order."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    def best_first(self) -> Detections:
        """The same detections by falling score; equal scores keep their order."""
        return self.select(np.argsort(-self.scores, kind="stable"))


def check_inputs(records: Sequence[ImageRecord], detections: Sequence[Detections], class_names: Sequence[str]) -> None:
    """Raises ValueError, naming the argument and the place, unless the three belong together and can be evaluated."""
    if not records:
        raise ValueError("records is empty: there is no image to evaluate")
    if len(detections) != len(records):
        raise ValueError(
            f"{len(detections)} detections for {len(records)} records: give one Detections per record, in their order"
        )
    if not class_names or len(set(class_names)) != len(class_names):
        raise ValueError(f"class_names must be one or more different names, got {list(class_names)}")
    C = len(class_names)
    for i, (record, found) in enumerate(zip(records, detections, strict=True)):
        _check_labels(f"records[{i}].labels", record.labels, 0, C)
        _check_labels(f"records[{i}].ignored_labels", record.ignored_labels, ANY_CLASS, C)
        _check_detections(f"detections[{i}]", found, C)


def _check_labels(name: str, labels: np.ndarray, lowest: int, C: int) -> None:
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {labels.dtype}")
    outside = labels[(labels < lowest) | (labels >= C)]
    if len(outside):
        raise ValueError(f"{name} has {outside[0]}, outside {lowest}..{C - 1}: class_names gives {C} classes")


def _check_detections(name: str, found: Detections, C: int) -> None:
    N = len(found.scores)
    for part, array, shape in (
        ("boxes", found.boxes, (N, 4)),
        ("scores", found.scores, (N,)),
        ("labels", found.labels, (N,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name}.{part} has shape {array.shape}, expected {shape} for {N} scores")
        if part != "labels" and array.dtype.kind != "f":
            raise ValueError(f"{name}.{part} must be floating point, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}.{part} has values that are not finite; drop them before the evaluation")
    _check_labels(f"{name}.labels", found.labels, 0, C)
    inverted = np.flatnonzero((found.boxes[:, 2:] < found.boxes[:, :2]).any(axis=1))
    if len(inverted):
        box = found.boxes[inverted[0]].tolist()
        raise ValueError(f"{name}.boxes[{inverted[0]}] is {box}: boxes must be (x1, y1, x2, y2), x1 <= x2, y1 <= y2")
