"""A detector as it is deployed: from a batch of images in the camera's numbers to boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoominnet.deployment.contract import Contract
from zoominnet.deployment.nms import KeepBest, keep_best
from zoominnet.models import RetinaNet
from zoominnet.models.boxes import decode_boxes
from zoominnet.models.interfaces import Predictions
from zoominnet.models.postprocess import PostProcess


class DeployedModel(nn.Module):
    """A model whose graph has fixed shapes but for the batch, and the sides where these are dynamic.

    ``deployed(images)`` takes uint8 [B, 3, H, W] in 0..255 or float32 in 0..1 (RGB) and gives, with the post-processing
    inside, D = `max_det`:

    - boxes float32 [B, D, 4], (x1, y1, x2, y2) px of the input, of the highest score first, 0 where there are fewer;
    - scores float32 [B, D], 0 where there are fewer;
    - labels int64 [B, D], -1 where there are fewer;
    - count int64 [B], how many there are;

    with it outside, for all A anchors (level, row, column, anchor order) and C classes, boxes float32 [B, A, 4] px and
    scores float32 [B, A, C].

    Args:
        model: in evaluation mode; its `postprocess` is not used.
        contract: what goes in and comes out.
        keep: how the NMS is done.
    """

    def __init__(self, model: RetinaNet, contract: Contract, keep: KeepBest = keep_best) -> None:
        super().__init__()
        self.model, self.contract, self.keep = model, contract, keep

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.float() / 255 if self.contract.input == "uint8" else images
        predictions = self.model.outputs(pixels).predictions
        assert predictions is not None
        if self.contract.postprocess == "outside":
            anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in predictions.grids])
            scores = torch.cat([level.float().sigmoid() for level in predictions.logits], dim=1)
            return decode_boxes(torch.cat(predictions.deltas, dim=1).float(), anchors), scores
        return self._best(*self._candidates(predictions, (images.shape[-2], images.shape[-1])))

    def _candidates(self, predictions: Predictions, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best of each level before the NMS: boxes [B, N, 4], scores [B, N], labels [B, N]."""
        classes, limit = self.model.num_classes, PostProcess.candidates
        found = []
        for logits, deltas, grid in zip(predictions.logits, predictions.deltas, predictions.grids, strict=True):
            scores = logits.float().sigmoid().flatten(1)
            if self.contract.dynamic_size or scores.shape[1] < limit:
                scores = F.pad(scores, (0, limit))  # a level may have fewer: then zeros are the rest
            best, index = scores.topk(limit, dim=1)
            anchor = (index // classes).clamp(max=deltas.shape[1] - 1)
            own = deltas.gather(1, anchor[..., None].expand(-1, -1, 4)).float()
            found.append((decode_boxes(own, grid.boxes().reshape(-1, 4)[anchor]), best, index % classes))
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
        return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1), scores, labels

    def _best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        conf, iou, limit = self.contract.conf, self.contract.iou, self.contract.max_det
        assert conf is not None
        assert iou is not None
        assert limit is not None
        kept = self.keep(boxes, scores, labels, self.model.num_classes, iou, conf, limit)
        best, index = (scores * kept).topk(limit, dim=1)
        none = best == 0
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)).masked_fill(none[..., None], 0)
        return boxes, best, labels.gather(1, index).masked_fill(none, -1), (~none).sum(dim=1)
