"""What an imagined detector sees of known boxes in each view of an image, and SAHI's merge of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from zoominnet.prediction.slices import View

Found = list[tuple[View, Tensor, Tensor, Tensor]]


def seen(
    boxes: np.ndarray,
    labels: np.ndarray,
    views: list[View],
    *,
    size: int,
    rng: np.random.Generator | None = None,
    least_seen: float = 0.2,
) -> Found:
    """Each view's detections, [N, 4] px of the image: what lies in the view of each box.

    Args:
        size: side of the model's input, px; what is under 8 px there is not seen.
        rng: scores, and errors of about 1 px of the input and 2 % of the side, are drawn from it. None: there is no error,
            and a score is the share of the box that is seen.
        least_seen: share of a box from which it is detected.
    """
    found = []
    for view in views:
        x1, y1, x2, y2 = view.box
        low, high = np.maximum(boxes[:, :2], (x1, y1)), np.minimum(boxes[:, 2:], (x2, y2))
        sides = np.clip(high - low, 0, None)
        share = sides.prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        scale = max(view.width, view.height) / size
        kept = (share >= least_seen) & (sides.min(axis=1) >= 8 * scale * (1 if view.whole else 0))
        cut = np.concatenate((low, high), axis=1)[kept]
        scores = share[kept]
        if rng is not None:
            error = rng.normal(size=cut.shape) * np.tile(0.02 * sides[kept] + 0.7 * scale, 2)
            cut = np.clip(cut + error, (x1, y1, x1, y1), (x2, y2, x2, y2))
            cut[:, 2:] = np.maximum(cut[:, 2:], cut[:, :2] + 0.5)
            scores = scores * rng.uniform(0.5, 1, len(scores))
        parts = torch.tensor(cut), torch.tensor(scores), torch.tensor(labels[kept])
        keep = batched_nms(*parts, 0.5)
        found.append((view, *(part[keep] for part in parts)))
    return found


def merged_by_sahi(found: Found, width: int, height: int) -> np.ndarray:
    """[N, 6] x1, y1, x2, y2, score, label, by SAHI's default: greedy merging from an IoS of 0.5, class by class."""
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction

    given = [
        ObjectPrediction(bbox=box, category_id=label, category_name=str(label), score=score, full_shape=[height, width])
        for _, boxes, scores, labels in found
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    ]
    merge = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    rows = [(*each.bbox.to_xyxy(), each.score.value, each.category.id) for each in merge(given)]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)
