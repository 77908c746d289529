"""What anchors, NMS and the limit of detections leave of the ground truth: the AP of a model that makes no mistake.

    python benchmarks/anchor_bound.py ../shared/data/visdrone-mini --splits train val --json FILE

Each anchor that the assigner gives a box predicts just that box and its class, every other anchor nothing; what the
post-processing makes of it is scored as detections are. Also counted: the boxes with an IoU of 0.5 or more with some
anchor, which are positive without the rule of low-quality matches, and those that no anchor is trained on at all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import processor_name, read_commit
from torch import Tensor

from zoominnet.data import ImageRecord, ResizeGeometry, Split, open_split
from zoominnet.evaluation import Detections, evaluate_coco
from zoominnet.kernels import AnchorGrid, max_iou_assign
from zoominnet.models import ARCHITECTURES
from zoominnet.models.anchors import Anchors
from zoominnet.models.assign import assign_by_max_iou
from zoominnet.models.boxes import encode_boxes
from zoominnet.models.interfaces import Predictions
from zoominnet.models.postprocess import PostProcess

INPUTS = (("snet", 512), ("la", 512), ("fa", 512), ("teacher", 1024))
"""Models, and the side of their input, px."""
BOXES_AT_A_TIME = 32
"""Boxes that are compared with the anchors each by itself: bounds memory."""
SCORES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_100")


def best_ious(anchors: Tensor, matched: Tensor, boxes: Tensor) -> Tensor:
    """IoU of each anchor [N, 4] with its box, `boxes` [G, 4] at `matched` [N]: float32 [N]."""
    own = boxes[matched]
    sides = (torch.minimum(anchors, own)[:, 2:] - torch.maximum(anchors, own)[:, :2]).clamp(min=0)
    both = sides.prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (anchors, own)]
    return both / (areas[0] + areas[1] - both)


def perfect_predictions(grids: Sequence[AnchorGrid], boxes: Tensor, labels: Tensor, classes: int) -> Predictions:
    """Those of one image with boxes float32 [G, 4] px and labels int64 [G]; the better its anchor fits, the higher a
    box's score, so that the candidates of a level are those that fit best."""
    matched = assign_by_max_iou(grids, [{"boxes": boxes}])[0]
    logits, deltas = [], []
    for grid, of_level in zip(grids, matched.split([len(grid.boxes().view(-1, 4)) for grid in grids]), strict=True):
        anchors = grid.boxes().view(-1, 4)
        positive = (of_level >= 0).nonzero().squeeze(1)
        own, index = anchors[positive], of_level[positive]
        level_logits = anchors.new_full((len(anchors), classes), -20.0)
        level_logits[positive, labels[index]] = 1 + best_ious(own, index, boxes)
        level_deltas = torch.zeros_like(anchors)
        level_deltas[positive] = encode_boxes(boxes[index], own)
        logits.append(level_logits[None])
        deltas.append(level_deltas[None])
    return Predictions(logits, deltas, list(grids))


def overlapped(grids: Sequence[AnchorGrid], boxes: Tensor) -> int:
    """How many of the boxes [G, 4] have an IoU of 0.5 or more with an anchor."""
    return sum(
        bool((alone >= 0).any())
        for some in boxes.split(BOXES_AT_A_TIME)
        for alone in max_iou_assign(grids, [box[None] for box in some], allow_low_quality=False)
    )


def bound(split: Split, name: str, size: int, records: Sequence[ImageRecord] | None = None) -> dict[str, Any]:
    """Counts and scores of a model of `ARCHITECTURES` with an input of `size` px; of some of the split's records, or of all."""
    records = split.records if records is None else records
    grids = Anchors(ARCHITECTURES[name])(size, size)
    process = PostProcess()
    counts = dict.fromkeys(("boxes", "with an anchor of IoU 0.5", "no anchor is trained on", "over 100 an image"), 0)
    found = []
    for record in records:
        geometry = ResizeGeometry.fit(record.width, record.height, size, "squash")
        boxes, labels = geometry.to_output(torch.from_numpy(record.boxes)), torch.from_numpy(record.labels)
        predictions = perfect_predictions(grids, boxes, labels, len(split.class_names))
        trained = assign_by_max_iou(grids, [{"boxes": boxes}])[0].unique()
        counts["boxes"] += len(boxes)
        counts["with an anchor of IoU 0.5"] += overlapped(grids, boxes)
        counts["no anchor is trained on"] += len(boxes) - int((trained >= 0).sum())
        counts["over 100 an image"] += max(0, len(boxes) - process.max_detections)
        [output] = process(predictions, [(size, size)])
        original = geometry.to_original(output["boxes"]).double().numpy()
        found.append(Detections(original, output["scores"].double().numpy(), output["labels"].numpy()))
    scores = evaluate_coco(records, found, split.class_names).as_dict()
    return {"model": name, "input px": size, **counts, **{score: scores[score] for score in SCORES}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder or json of a data set")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.splits:
        split = open_split(arguments.data, name)
        for model, size in INPUTS:
            rows.append({"split": name, **bound(split, model, size)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json is not None:
        result = {
            "what": "boxes that anchors reach, and the scores of a model that predicts the ground truth on each anchor "
            "that is trained on a box",
            "command": f"python {shlex.join(sys.argv)}",
            "hardware": f"one core of an {processor_name()}, no GPU used",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "commit": read_commit(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
