"""From raw predictions to detections: threshold, decoding, class-wise NMS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from zoominnet.models.boxes import decode_boxes
from zoominnet.models.interfaces import Predictions


@dataclass(frozen=True)
class PostProcess:
    """Threshold, best candidates a level, decoding, clipping, class-wise NMS, best of the image.

    Attributes:
        score_threshold: a score is over it, 0..1.
        nms_threshold: IoU over which the lower score of a class goes, 0..1.
        candidates: of each level enter the NMS at most.
        max_detections: of the image leave it at most.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 1000
    max_detections: int = 100

    @torch.no_grad()
    def __call__(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The detections of each image.

        Args:
            predictions: of B images.
            sizes: (height, width) px of each image before padding, to clip to.

        Returns:
            B dicts of "boxes" float32 [N, 4] px, "scores" float32 [N] (descending) and "labels" int64 [N].
        """
        anchors = [grid.boxes().reshape(-1, 4) for grid in predictions.grids]
        results = []
        for b, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            for level_logits, level_deltas, level_anchors in zip(
                predictions.logits, predictions.deltas, anchors, strict=True
            ):
                classes = level_logits.shape[-1]
                level_scores = level_logits[b].float().sigmoid().flatten()
                kept = torch.nonzero(level_scores > self.score_threshold).squeeze(1)
                top_scores, order = level_scores[kept].topk(min(self.candidates, len(kept)))
                anchor, label = kept[order] // classes, kept[order] % classes
                decoded = decode_boxes(level_deltas[b, anchor].float(), level_anchors[anchor])
                boxes.append(clip_boxes_to_image(decoded, size))
                scores.append(top_scores)
                labels.append(label)
            image_boxes, image_scores, image_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
            keep = batched_nms(image_boxes, image_scores, image_labels, self.nms_threshold)[: self.max_detections]
            results.append({"boxes": image_boxes[keep], "scores": image_scores[keep], "labels": image_labels[keep]})
        return results
