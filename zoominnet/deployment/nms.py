"""Class-wise NMS as a mask of fixed shape: as an operator for ONNX, and in PyTorch for torch.export.

A mask, for a list of unknown length cannot stand in the middle of a graph whose batch is dynamic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from zoominnet.prediction.extras import extra

KeepBest = Callable[[Tensor, Tensor, Tensor, int, float, float, int], Tensor]
"""(boxes float32 [B, N, 4] px, scores float32 [B, N], labels int64 [B, N], number of classes, IoU over which the lower score
of a class goes, threshold, limit) -> bool [B, N]: what is over the threshold and stays, of each class at least the best
`limit` of it."""


def keep_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou: float, threshold: float, limit: int
) -> Tensor:
    """`KeepBest` by torchvision's NMS, on all images at once. The classes of each image are moved apart, in float64, in
    which the overlaps stay what they are."""
    b, n = scores.shape
    passed = torch.nonzero(scores.flatten() > threshold).squeeze(1)
    group = (labels + num_classes * torch.arange(b, device=labels.device)[:, None]).flatten()[passed]
    apart = boxes.reshape(-1, 4)[passed].double() + (group * (boxes.max().double() + 1))[:, None]
    kept = passed[nms(apart, scores.flatten()[passed].double(), iou)]
    return torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill(0, kept, True).view(b, n)


@torch.library.custom_op("zoominnet::keep_best", mutates_args=())
def keep_best_operator(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou: float, threshold: float, limit: int
) -> Tensor:
    """:func:`keep_best` as one node of a graph, which the exporter to ONNX translates."""
    return keep_best(boxes, scores, labels, num_classes, iou, threshold, limit)


@keep_best_operator.register_fake
def _(
    boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou: float, threshold: float, limit: int
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translation() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=)``: :func:`keep_best_operator` by ONNX's NonMaxSuppression.

    Raises:
        MissingExtraError: onnxscript is not installed.
    """
    op = extra("onnxscript", "the export to ONNX").opset18

    def whole(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def translate(
        boxes: Any, scores: Any, labels: Any, num_classes: int, iou: float, threshold: float, limit: int
    ) -> Any:
        classes = whole(*range(num_classes))
        own = op.Equal(op.Unsqueeze(labels, whole(1)), op.Reshape(classes, whole(1, -1, 1)))
        by_class = op.Where(own, op.Unsqueeze(scores, whole(1)), op.Constant(value_float=0.0))  # [B, C, N]
        chosen = op.NonMaxSuppression(
            boxes, by_class, whole(limit), op.Constant(value_floats=[iou]), op.Constant(value_floats=[threshold])
        )  # [M, 3]: image, class, box
        place = op.Gather(chosen, whole(0, 2), axis=1)
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(chosen, start=0, end=1))
        return op.Greater(op.ScatterND(op.Sub(scores, scores), place, ones), op.Constant(value_float=0.5))

    return {torch.ops.zoominnet.keep_best.default: translate}
