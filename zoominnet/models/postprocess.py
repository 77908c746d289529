"""From raw predictions to detections: threshold, decoding, class-wise NMS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

        def decoded(b: int, level: int, chosen: Tensor) -> Tensor:
            return decode_boxes(predictions.deltas[level][b, chosen].float(), anchors[level][chosen])

        def scores(b: int) -> list[Tensor]:
            return [level[b].float().sigmoid() for level in predictions.logits]

        return self._select(scores, decoded, sizes)

    def of_boxes(
        self, scores: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """The detections of each image, from boxes that are decoded.

        Args:
            scores: float32 [B, A, C] a level, 0..1.
            boxes: float32 [B, A, 4] a level, px.
            sizes, returns: as :meth:`__call__`.
        """
        return self._select(
            lambda b: [level[b] for level in scores], lambda b, level, chosen: boxes[level][b, chosen], sizes
        )

    def _select(
        self,
        scores_of: Callable[[int], list[Tensor]],
        boxes_of: Callable[[int, int, Tensor], Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """`scores_of` gives the scores [A, C] a level of an image, `boxes_of` the boxes of some anchors of a level."""
        results = []
        for b, size in enumerate(sizes):
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            for level, of_level in enumerate(scores_of(b)):
                classes = of_level.shape[-1]
                level_scores = of_level.flatten()
                kept = torch.nonzero(level_scores > self.score_threshold).squeeze(1)
                top_scores, order = level_scores[kept].topk(min(self.candidates, len(kept)))
                boxes = clip_boxes_to_image(boxes_of(b, level, kept[order] // classes), size)
                found.append((boxes, top_scores, kept[order] % classes))
            image_boxes, image_scores, image_labels = (torch.cat(parts) for parts in zip(*found, strict=True))
            keep = batched_nms(image_boxes, image_scores, image_labels, self.nms_threshold)[: self.max_detections]
            results.append({"boxes": image_boxes[keep], "scores": image_scores[keep], "labels": image_labels[keep]})
        return results
