"""What anchors, NMS and the limit of detections leave of the ground truth: the AP of a model that makes no mistake.

    python benchmarks/anchor_bound.py ../shared/data/visdrone-mini --splits train val --inputs snet:512 fa:512 --json FILE

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
from zoominnet.models.architectures import SIZE_DIVISOR
from zoominnet.models.assign import assign_by_max_iou
from zoominnet.models.boxes import encode_boxes
from zoominnet.models.interfaces import Predictions
from zoominnet.models.postprocess import PostProcess

COUNTS = (
    "boxes",
    "with an anchor of IoU 0.5",
    "no anchor is trained on",
    "no anchor by mmdetection's rule",
    "over 100 an image",
)
BOXES_AT_A_TIME = 32
"""Boxes that are compared with the anchors each by itself: bounds memory."""
LIMITS = (100, 500)
"""Detections of an image that are kept: COCO's limit, and VisDrone's."""
SCORES = ("AP", "AP_S", "AP_M", "AP_L")
"""AP50 and AP75 are AP: what is found at all is found exactly."""


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
    """How many of the boxes [G, 4] px have an IoU of 0.5 or more with an anchor."""
    taken = max_iou_assign(grids, boxes, allow_low_quality=False).unique()
    others = torch.ones(len(boxes), dtype=torch.bool)
    others[taken[taken >= 0]] = False  # those that no anchor prefers to another box are looked at by themselves
    return len(boxes) - sum(
        not (alone >= 0).any()
        for some in boxes[others].split(BOXES_AT_A_TIME)
        for alone in max_iou_assign(grids, [box[None] for box in some], allow_low_quality=False)
    )


def trained(grids: Sequence[AnchorGrid], boxes: Tensor) -> tuple[int, int]:
    """How many of the boxes [G, 4] px some anchor is trained on: by the default assigner, and by mmdetection's.

    Both are RetinaNet's rule but for a box's best anchors. By default, as in torchvision, they are trained on the box that
    they overlap most themselves, so that a box among larger ones may get none. In mmdetection's MaxIoUAssigner
    (`--assigner max-iou-own`) they are trained on that box, of several on the last.
    """
    own, theirs = (max_iou_assign(grids, boxes, own_best=best).unique() for best in (False, True))
    return int((own >= 0).sum()), int((theirs >= 0).sum())


def bound(split: Split, name: str, size: int, records: Sequence[ImageRecord] | None = None) -> dict[str, Any]:
    """Counts and scores of a model of `ARCHITECTURES` with an input of `size` px; of some of the split's records, or of all."""
    records = split.records if records is None else records
    grids = Anchors(ARCHITECTURES[name])(size, size)
    counts = dict.fromkeys(COUNTS, 0)
    found: dict[int, list[Detections]] = {limit: [] for limit in LIMITS}
    for record in records:
        geometry = ResizeGeometry.fit(record.width, record.height, size, "squash")
        boxes, labels = geometry.to_output(torch.from_numpy(record.boxes)), torch.from_numpy(record.labels)
        predictions = perfect_predictions(grids, boxes, labels, len(split.class_names))
        own, theirs = trained(grids, boxes)
        missing = (len(boxes) - own, len(boxes) - theirs, max(0, len(boxes) - LIMITS[0]))
        for name_of_count, count in zip(COUNTS, (len(boxes), overlapped(grids, boxes), *missing), strict=True):
            counts[name_of_count] += count
        for limit, detections in found.items():
            [output] = PostProcess(max_detections=limit)(predictions, [(size, size)])
            original = geometry.to_original(output["boxes"]).double().numpy()
            detections.append(Detections(original, output["scores"].double().numpy(), output["labels"].numpy()))
    scores = {}
    for limit, detections in found.items():
        values = evaluate_coco(records, detections, split.class_names, max_dets=limit).as_dict()
        scores[f"{limit} detections"] = {name: values[name] for name in (*SCORES, f"AR_{limit}")}
    return {"model": name, "input px": size, **counts, **scores}


def own_command(file: Path | None) -> str:
    """The command line of this process, without the folder of the file that it writes."""
    words = [file.name if file is not None and word == str(file) else word for word in sys.argv]
    return f"python {shlex.join(words)}"


def model_and_size(text: str) -> tuple[str, int]:
    """Of "MODEL:PX"."""
    model, _, size = text.partition(":")
    if model not in ARCHITECTURES or not size.isdecimal() or int(size) < SIZE_DIVISOR or int(size) % SIZE_DIVISOR:
        known = ", ".join(ARCHITECTURES)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {known}, a colon and a multiple of {SIZE_DIVISOR}")
    return model, int(size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder or json of a data set")
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument(
        "--inputs",
        nargs="+",
        type=model_and_size,
        default=[("snet", 512), ("fa", 512)],
        metavar="MODEL:PX",
        help="models, and the side of their input, px; `la` has the anchors of `fa`, and so has the teacher at twice the size",
    )
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command, commit, rows = own_command(arguments.json), read_commit(), []
    for name in arguments.splits:
        split = open_split(arguments.data, name)
        for model, size in arguments.inputs:
            rows.append({"split": name, **bound(split, model, size)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json is not None:
        result = {
            "what": "boxes that anchors reach, and the scores of a model that predicts the ground truth on each anchor "
            "that is trained on a box",
            "command": command,
            "hardware": f"one core of an {processor_name()}, no GPU used",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "commit": commit,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
