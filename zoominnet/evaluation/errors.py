"""What kind of mistake each wrong detection is, and what each kind costs: TIDE (Bolya et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from zoominnet.data.records import ImageRecord
from zoominnet.evaluation.detections import Detections, check_inputs
from zoominnet.evaluation.result import mean_defined
from zoominnet.evaluation.visdrone import in_ignored_regions

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
KINDS = ("class", "location", "both", "duplicate", "background", "missed")
"""TIDE's kinds of errors; the last is of boxes, the others are of detections."""
CORRECT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(7)
DETECTION_OUTCOMES = ("correct", *KINDS[:-1], "ignored")
FOUND, MISTAKEN, MISSED, LEFT_OUT = range(4)
BOX_OUTCOMES = ("found", "mistaken", "missed", "ignored")
NO_BOX = -1
RECALL_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The outcome of each detection and each ground-truth box of an image.

    Attributes:
        detections: int64[D], what each detection is, in `DETECTION_OUTCOMES`.
        about: int64[D], the box that a detection finds ("correct"), or would find were it not for its class or its
            location; `NO_BOX` for the others.
        boxes: int64[G], what each box is, in `BOX_OUTCOMES`: "mistaken" is not found, but some detection is wrong about
            its class or its location alone.
    """

    detections: np.ndarray
    about: np.ndarray
    boxes: np.ndarray

    @property
    def f1(self) -> float:
        """2 x correct / (detections + boxes), those that are ignored left out: 0 to 1, NaN where there are none."""
        counted = (self.detections != IGNORED).sum() + (self.boxes != LEFT_OUT).sum()
        return 2 * float((self.detections == CORRECT).sum()) / float(counted) if counted else float("nan")


def image_errors(record: ImageRecord, found: Detections) -> ImageErrors:
    """Sorts the detections of an image into right ones and the kinds of wrong ones, each into exactly one.

    A detection or box with at least half its area in ignored regions for its class is "ignored" (as
    :func:`zoominnet.evaluation.evaluate_visdrone` has it). Of the rest each detection, by falling score, takes the free
    box of its class with the highest IoU of at least 0.5 and is "correct". The others are, in this order, which is that of
    the authors' code:

    - "location": the highest IoU with a box of its class is 0.1 to 0.5;
    - "class": the highest IoU with a box of another class is at least 0.5;
    - "duplicate": that with a box of its class is at least 0.5, but a better one has taken the box;
    - "background": no box has an IoU over 0.1;
    - "both": what is left, 0.1 to 0.5 with a box of another class.

    Args:
        record: the ground truth.
        found: of any score: what is below a threshold of interest is to be left out before.
    """
    outcomes = np.full(len(found), IGNORED)
    about = np.full(len(found), NO_BOX)
    boxes = np.where(in_ignored_regions(record.boxes, record.labels, record), LEFT_OUT, MISSED)
    counted = np.flatnonzero(~in_ignored_regions(found.boxes, found.labels, record))
    truth = np.flatnonzero(boxes != LEFT_OUT)
    iou = box_iou(*(torch.from_numpy(x.astype(np.float64)) for x in (found.boxes, record.boxes))).numpy()
    alike = found.labels[:, None] == record.labels[None, :]
    same, other = np.where(alike, iou, 0.0), np.where(alike, 0.0, iou)
    counted = counted[np.argsort(-found.scores[counted], kind="stable")]
    if not len(truth):
        outcomes[counted] = BACKGROUND
        return ImageErrors(outcomes, about, boxes)

    def nearest(row: np.ndarray, among: np.ndarray) -> tuple[int, float]:
        box = among[row[among].argmax()]
        return int(box), float(row[box])

    for d in counted:
        free = truth[boxes[truth] != FOUND]
        if len(free) and (best := nearest(same[d], free))[1] >= FOREGROUND_IOU:
            outcomes[d], about[d], boxes[best[0]] = CORRECT, best[0], FOUND
    for d in counted[outcomes[counted] == IGNORED]:
        own, own_iou = nearest(same[d], truth)
        foreign, foreign_iou = nearest(other[d], truth)
        if BACKGROUND_IOU <= own_iou <= FOREGROUND_IOU:
            outcomes[d], about[d] = LOCATION, own
        elif foreign_iou >= FOREGROUND_IOU:
            outcomes[d], about[d] = CLASS, foreign
        elif own_iou > FOREGROUND_IOU:
            outcomes[d] = DUPLICATE
        else:
            outcomes[d] = BACKGROUND if max(own_iou, foreign_iou) <= BACKGROUND_IOU else BOTH
        if about[d] != NO_BOX and boxes[about[d]] == MISSED:
            boxes[about[d]] = MISTAKEN
    return ImageErrors(outcomes, about, boxes)


def count_errors(errors: Iterable[ImageErrors]) -> tuple[dict[str, int], dict[str, int]]:
    """How many detections and how many boxes have each outcome, by name; each sums to the number of them all."""
    detections, boxes = np.zeros(len(DETECTION_OUTCOMES), dtype=int), np.zeros(len(BOX_OUTCOMES), dtype=int)
    for image in errors:
        detections += np.bincount(image.detections, minlength=len(detections))
        boxes += np.bincount(image.boxes, minlength=len(boxes))
    return (
        dict(zip(DETECTION_OUTCOMES, detections.tolist(), strict=True)),
        dict(zip(BOX_OUTCOMES, boxes.tolist(), strict=True)),
    )


def error_costs(
    records: Sequence[ImageRecord], detections: Sequence[Detections], class_names: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """AP50, and how much higher it would be if all errors of a kind were mended (TIDE's dAP).

    To mend: "class" and "location" errors become correct, of several about one box the one with the highest score, those
    about a box that is found go; "both", "duplicate" and "background" go; a "missed" box is no longer asked for. AP50 is the
    mean over the classes with boxes, each with 101 recall points; one all of whose boxes are missed keeps the AP 0.

    Args:
        records: ground truth.
        detections: one per record, of all scores.
        class_names: the names of labels 0, 1, ...

    Returns:
        The AP50, 0 to 1, what is ignored left out; and the differences by the names in `KINDS`. They do not add up to 1:
        errors hide one another.

    Raises:
        ValueError: an argument cannot be evaluated; the message names it.
    """
    check_inputs(records, detections, class_names)
    parts: list[tuple[np.ndarray, ...]] = []
    boxes, missed = np.zeros(len(class_names), dtype=int), np.zeros(len(class_names), dtype=int)
    for record, found in zip(records, detections, strict=True):
        errors = image_errors(record, found)
        boxes += np.bincount(record.labels[errors.boxes != LEFT_OUT], minlength=len(boxes))
        missed += np.bincount(record.labels[errors.boxes == MISSED], minlength=len(boxes))
        counted = np.flatnonzero(errors.detections != IGNORED)
        counted = counted[np.argsort(-found.scores[counted], kind="stable")]
        about, outcomes = errors.about[counted], errors.detections[counted]
        mended = np.zeros(len(counted), dtype=bool)
        taken = set(about[outcomes == CORRECT].tolist())
        for i in np.flatnonzero((about != NO_BOX) & (outcomes != CORRECT)):
            mended[i] = about[i] not in taken
            taken.add(int(about[i]))
        true_labels = np.where(about == NO_BOX, found.labels[counted], np.append(record.labels, NO_BOX)[about])
        parts.append((found.scores[counted], found.labels[counted], outcomes, mended, true_labels))
    scores, labels, outcomes, mended, true_labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    correct = outcomes == CORRECT
    present = np.flatnonzero(boxes)

    def ap50(kept: np.ndarray, right: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> float:
        return mean_defined(
            np.array(
                [interpolated_ap(scores[own], right[own], boxes[c]) for c in present for own in [kept & (labels == c)]]
            )
        )

    everything = np.ones(len(scores), dtype=bool)
    before = ap50(everything, correct, labels, boxes)
    costs = {"missed": ap50(everything, correct, labels, boxes - missed) - before}
    for number, kind in enumerate(KINDS[:-1], start=CLASS):
        of_kind = outcomes == number
        into = of_kind & mended
        costs[kind] = ap50(~of_kind | into, correct | into, np.where(into, true_labels, labels), boxes) - before
    return before, {kind: costs[kind] for kind in KINDS}


def interpolated_ap(scores: np.ndarray, correct: np.ndarray, boxes: int) -> float:
    """The mean over the recalls 0, 0.01, ..., 1 of the highest precision at no lower recall, of one class.

    Args:
        scores: float[N]. Equal scores are ranked in the order given.
        correct: bool[N].
        boxes: to be found; 0 gives 0.
    """
    if not boxes:
        return 0.0
    hits = correct[np.argsort(-scores, kind="stable")].cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    reached = np.searchsorted(hits / boxes, RECALL_POINTS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())
