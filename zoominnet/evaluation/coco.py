"""The COCO protocol by pycocotools, on arrays in memory (the scores of the paper's tables)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zoominnet.data.records import ANY_CLASS, ImageRecord
from zoominnet.evaluation.detections import Detections, check_inputs
from zoominnet.evaluation.result import ClassScore, Result, mean_defined

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
"""The order of COCOeval's area ranges: all, below 32^2, between, above 96^2 px of the original image."""


@dataclass(frozen=True)
class CocoResult(Result):
    """Scores of the COCO protocol.

    Attributes:
        ap_small, ap_medium, ap_large: AP of boxes whose area (width x height) is at most 32^2 px, between, and at
            least 96^2 px of the original image.
        ar_small, ar_medium, ar_large: recall of the same, with `max_dets` detections per image.
        max_dets: the most detections counted per image, over all classes.
        regions: what regions ignored for every class were taken for.
    """

    protocol: ClassVar[str] = "COCO"

    ap_small: float
    ap_medium: float
    ap_large: float
    ar_small: float
    ar_medium: float
    ar_large: float
    max_dets: int
    regions: str

    def rows(self) -> list[tuple[str, float]]:
        rows = super().rows()
        sizes = [("AP_S", self.ap_small), ("AP_M", self.ap_medium), ("AP_L", self.ap_large)]
        recalls = [("AR_S", self.ar_small), ("AR_M", self.ar_medium), ("AR_L", self.ar_large)]
        return [*rows[:3], *sizes, *rows[3:], *recalls]

    def as_dict(self) -> dict[str, object]:
        return {**super().as_dict(), "max_dets": self.max_dets, "regions": self.regions}


@dataclass(frozen=True, eq=False)
class CocoCurves:
    """What COCOeval computes before any mean is taken. NaN where a class has no boxes of a size.

    Sizes: C classes; S the sizes of boxes, all, small, medium and large; M the numbers of detections counted.

    Attributes:
        class_names: of the labels 0, 1, ...
        images: evaluated.
        boxes: int64[C], ground-truth boxes evaluated.
        precision: float64[10, 101, C, S], the highest precision at recalls of at least 0, 0.01, ..., 1, at each IoU threshold.
        recall: float64[10, C, S, M], at each IoU threshold.
        counts: of detections, of the last axis of `recall`.
        regions: what regions ignored for every class were taken for.
    """

    class_names: tuple[str, ...]
    images: int
    boxes: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    counts: tuple[int, ...]
    regions: str

    def ap(self, size: int = _ALL, label: int | slice = slice(None), threshold: int | slice = slice(None)) -> float:
        """The mean precision over IoU thresholds, recalls and classes, those without boxes left out."""
        return mean_defined(self.precision[threshold, :, label, size])

    def ar(self, size: int = _ALL, count: int = -1) -> float:
        """The mean recall over IoU thresholds and classes, those without boxes left out."""
        return mean_defined(self.recall[:, :, size, count])

    def result(self) -> CocoResult:
        """The scores under their names."""
        return CocoResult(
            images=self.images,
            boxes=int(self.boxes.sum()),
            ap=self.ap(),
            ap50=self.ap(threshold=0),
            ap75=self.ap(threshold=5),
            ar={count: self.ar(count=index) for index, count in enumerate(self.counts)},
            classes=tuple(
                ClassScore(name, int(self.boxes[label]), self.ap(label=label), self.ap(label=label, threshold=0))
                for label, name in enumerate(self.class_names)
            ),
            ap_small=self.ap(_SMALL),
            ap_medium=self.ap(_MEDIUM),
            ap_large=self.ap(_LARGE),
            ar_small=self.ar(_SMALL),
            ar_medium=self.ar(_MEDIUM),
            ar_large=self.ar(_LARGE),
            max_dets=self.counts[-1],
            regions=self.regions,
        )


def evaluate_coco(
    records: Sequence[ImageRecord],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    max_dets: int = 100,
    regions: Literal["background", "ignore"] = "background",
) -> CocoResult:
    """Average precision (101 recall points) and recall as COCO defines them: :func:`coco_curves` as means."""
    return coco_curves(records, detections, class_names, max_dets=max_dets, regions=regions).result()


def coco_curves(
    records: Sequence[ImageRecord],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    max_dets: int = 100,
    regions: Literal["background", "ignore"] = "background",
) -> CocoCurves:
    """Precision over recall (101 recall points) and recall as COCO defines them.

    Each image's `max_dets` best detections over all its classes are evaluated, as mmdetection's `max_per_img` keeps
    them. COCOeval then counts the best 1, 10 and `max_dets` of them *per class* for the recalls. Areas are
    width x height of the boxes, in px of the original image; detections are not clipped to the image.

    Args:
        records: ground truth. An ignored region with a class is a COCO crowd of that class.
        detections: one per record, in the records' order.
        class_names: the names of labels 0, 1, ...
        max_dets: at least 1.
        regions: what a region ignored for every class is. "background": nothing, so a detection in it is a false
            positive, as in published COCO scores on VisDrone. "ignore": a crowd of every class.

    Raises:
        ValueError: an argument cannot be evaluated; the message names it.
    """
    check_inputs(records, detections, class_names)
    if max_dets < 1:
        raise ValueError(f"max_dets must be at least 1, got {max_dets}")
    if regions not in ("background", "ignore"):
        raise ValueError(f'regions must be "background" or "ignore", got {regions!r}')

    C = len(class_names)
    boxes = np.zeros(C, dtype=np.int64)
    truth: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for image_id, (record, image_detections) in enumerate(zip(records, detections, strict=True)):
        boxes += np.bincount(record.labels, minlength=C)
        truth += _annotations(image_id, record.boxes, record.labels, iscrowd=0)
        for region, label in zip(record.ignored, record.ignored_labels.tolist(), strict=True):
            if label != ANY_CLASS:
                truth += _annotations(image_id, region[None], np.array([label]), iscrowd=1)
            elif regions == "ignore":
                truth += _annotations(image_id, np.repeat(region[None], C, axis=0), np.arange(C), iscrowd=1)
        best = image_detections.best_first().select(slice(max_dets))
        annotations = _annotations(image_id, best.boxes, best.labels, iscrowd=0)
        found += [
            {**annotation, "score": score} for annotation, score in zip(annotations, best.scores.tolist(), strict=True)
        ]

    # pycocotools reports its progress on stdout and has no switch for it.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(truth, len(records), C), _index(found, len(records), C), "bbox")
        evaluation.params.maxDets = [*(count for count in (1, 10) if count < max_dets), max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    # COCOeval marks what has no ground truth by -1. The last axis of its precisions is the number of detections.
    precision, recall = (np.where(x < 0, np.nan, x) for x in (evaluation.eval["precision"], evaluation.eval["recall"]))
    counts = tuple(evaluation.params.maxDets)
    return CocoCurves(tuple(class_names), len(records), boxes, precision[..., -1], recall, counts, regions)


def _annotations(image_id: int, boxes: np.ndarray, labels: np.ndarray, iscrowd: int) -> list[dict[str, object]]:
    """COCO annotations, without ids, of boxes float[N, 4] (x1, y1, x2, y2) and labels int[N]."""
    boxes = boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": label, "bbox": bbox, "area": area, "iscrowd": iscrowd}
        for label, bbox, area in zip(
            labels.tolist(), np.hstack([boxes[:, :2], sides]).tolist(), sides.prod(axis=1).tolist(), strict=True
        )
    ]


def _index(annotations: list[dict[str, object]], images: int, C: int) -> COCO:
    """A COCO object as if `annotations` had been read from a file."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(images)],
        "categories": [{"id": label} for label in range(C)],
        # From 1: COCOeval takes a match with annotation 0 for no match.
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
