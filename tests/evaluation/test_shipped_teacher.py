"""`zoominnet.evaluate` on a shipped model against both protocols done by hand, from files that hold what the model finds.

The files are written, and read, without `zoominnet.evaluation`, `zoominnet.data.write` and `zoominnet.engine`: so what
stands between a model and its scores is seen as well: order of the images, classes, geometry, limits of detections.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

import zoominnet
from zoominnet.data import SyntheticScenes

pytestmark = pytest.mark.slow

SCENES = 50
TWELVE = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L")
ROUNDING = 1e-12
"""Means are taken over other groupings."""

Box = tuple[float, float, float, float]
"""(x1, y1, x2, y2) px."""


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, Any]]:
    """What `evaluate` says, by protocol."""
    options = zoominnet.EvaluateConfig(
        Path("demo-teacher"), split="test", synthetic_images=SCENES, workers=0, latency_repeats=0
    )
    return zoominnet.evaluate(options, console=Console(quiet=True))["scores"]["direct"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A json of the truth and one of the detections, 500 an image, in COCO's forms; ignored regions under "ignored"."""
    detector = zoominnet.load("demo-teacher", max_detections=500)
    side = detector.info.image_size
    scenes = SyntheticScenes(SCENES, size=side, seed=0, split="test", zoom=4.0, classes="grouped")
    images, annotations, ignored, found = [], [], [], []
    for record in scenes:
        image_id = 1000 - record.image_id
        images.append({"id": image_id, "width": side, "height": side})
        for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            sides = (box[2] - box[0], box[3] - box[1])
            place = {"bbox": [*box[:2], *sides], "area": sides[0] * sides[1], "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 3 * label + 2, **place}
            )
        ignored += [{"image_id": image_id, "corners": region} for region in record.ignored.tolist()]
        with torch.no_grad():
            [output] = detector([scenes.render(record).float() / 255])
        for box, score, label in zip(*(output[name].tolist() for name in ("boxes", "scores", "labels")), strict=True):
            place = {"bbox": [*box[:2], box[2] - box[0], box[3] - box[1]], "score": score}
            found.append({"image_id": image_id, "category_id": 3 * label + 2, **place})
    categories = [{"id": 3 * label + 2, "name": name} for label, name in enumerate(scenes.class_names)]
    folder = tmp_path_factory.mktemp("files")
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories, "ignored": ignored}
    for name, content in (("truth", truth), ("found", found)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "truth.json", folder / "found.json"


def best(found: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Of the detections of one image those of highest score, over all classes."""
    return sorted(found, key=lambda detection: -detection["score"])[:count]


def of_images(things: list[dict[str, Any]], truth: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """By image."""
    return {image["id"]: [each for each in things if each["image_id"] == image["id"]] for image in truth["images"]}


def test_coco_is_that_of_pycocotools(
    scores: dict[str, dict[str, Any]], files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    hundred = [each for of_image in of_images(found, truth).values() for each in best(of_image, 100)]
    (tmp_path / "hundred.json").write_text(json.dumps(hundred), encoding="utf-8")
    coco = COCO(files[0])
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "hundred.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = dict(zip(TWELVE, evaluation.stats.tolist(), strict=True))
    assert 0.2 < expected["AP"] < 0.8  # scores that could be wrong
    assert len(hundred) > 1000
    for name in TWELVE:
        own = -1 if scores["COCO"][name] is None else scores["COCO"][name]  # COCOeval's mark of no such boxes
        assert own == pytest.approx(expected[name], abs=ROUNDING), name


def corners(annotation: dict[str, Any]) -> Box:
    x, y, width, height = annotation["bbox"]
    return x, y, x + width, y + height


def shared(boxes: list[Box]) -> float:
    """The area that all of the boxes have in common, px^2."""
    width = min(box[2] for box in boxes) - max(box[0] for box in boxes)
    height = min(box[3] for box in boxes) - max(box[1] for box in boxes)
    return max(0.0, width) * max(0.0, height)


def half_ignored(box: Box, regions: list[Box]) -> bool:
    """Whether half of the box or more lies in the union of the regions, whose area is that of each less that of each two
    plus that of each three ..."""
    touching = [region for region in regions if shared([box, region]) > 0]
    union = sum(
        (-1) ** (count + 1) * shared([box, *some])
        for count in range(1, len(touching) + 1)
        for some in combinations(touching, count)
    )
    return bool(touching) and union >= 0.5 * shared([box])


def iou(a: Box, b: Box) -> float:
    return shared([a, b]) / (shared([a]) + shared([b]) - shared([a, b]))


def outcomes(boxes: list[Box], found: list[tuple[float, int, Box]], threshold: float) -> list[tuple[float, int, bool]]:
    """Of one image and class: of each detection (score, rank in the image, box), by falling score, whether it takes a box."""
    free, outcome = list(boxes), []
    for score, rank, box in found:
        overlap, index = max(((iou(box, each), index) for index, each in enumerate(free)), default=(0.0, 0))
        if hit := overlap >= threshold:
            del free[index]
        outcome.append((score, rank, hit))
    return outcome


def area_under(hits: list[bool], boxes: int) -> float:
    """Under precision over recall; the precision at a recall is the highest at that recall or a higher one."""
    precision = [sum(hits[:n]) / n for n in range(1, len(hits) + 1)]
    area, highest = 0.0, 0.0
    for value, hit in zip(reversed(precision), reversed(hits), strict=True):
        highest = max(highest, value)
        area += highest / boxes if hit else 0.0
    return area


def test_visdrone_is_that_of_the_rules(scores: dict[str, dict[str, Any]], files: tuple[Path, Path]) -> None:
    """The toolkit's rules: what lies half or more in ignored regions counts for nothing, truth and detection; then the 500
    best of an image over all classes; at each IoU threshold each takes the free box that it overlaps most; the area
    under the whole curve; the mean over thresholds and the classes with boxes."""
    truth, found = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    regions = of_images(truth["ignored"], truth)
    of_truth, of_found = of_images(truth["annotations"], truth), of_images(found, truth)

    def counted(things: list[dict[str, Any]], image_id: int) -> list[dict[str, Any]]:
        ignored = [tuple(region["corners"]) for region in regions[image_id]]
        return [thing for thing in things if not half_ignored(corners(thing), ignored)]

    kept = {image_id: counted(things, image_id) for image_id, things in of_truth.items()}
    ranked = {image_id: best(counted(things, image_id), 500) for image_id, things in of_found.items()}
    assert sum(map(len, ranked.values())) < len(found)  # the regions take some; no scene has annotations in them

    ap: dict[int, list[float]] = {}
    recall: dict[int, list[float]] = {count: [] for count in (1, 10, 100, 500)}
    for category in (category["id"] for category in truth["categories"]):
        total = sum(thing["category_id"] == category for things in kept.values() for thing in things)
        if not total:
            continue
        for twentieths in range(10, 20):
            outcome = []
            for image_id, things in ranked.items():
                boxes = [corners(thing) for thing in kept[image_id] if thing["category_id"] == category]
                of_class = [
                    (thing["score"], rank, corners(thing))
                    for rank, thing in enumerate(things)
                    if thing["category_id"] == category
                ]
                outcome += outcomes(boxes, of_class, twentieths / 20)
            outcome.sort(key=lambda each: -each[0])
            ap.setdefault(twentieths, []).append(area_under([hit for _, _, hit in outcome], total))
            for count, values in recall.items():
                values.append(sum(hit for _, rank, hit in outcome if rank < count) / total)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    expected = {
        "AP": mean([value for values in ap.values() for value in values]),
        "AP50": mean(ap[10]),
        "AP75": mean(ap[15]),
        **{f"AR_{count}": mean(values) for count, values in recall.items()},
    }
    assert {name: scores["VisDrone"][name] for name in expected} == pytest.approx(expected, abs=ROUNDING)
    assert scores["VisDrone"]["boxes"] == sum(map(len, kept.values()))
