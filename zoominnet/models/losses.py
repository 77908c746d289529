"""The detection losses, as sums over the anchors of a batch. A new one is a function here and an entry below.

Sums and counts of the parts of a batch add up to those of the whole; losses do not.

Sizes in shapes: B images, A anchors, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from zoominnet.models.assign import IGNORED
from zoominnet.models.boxes import encode_boxes


def focal_loss(logits: Tensor, labels: Tensor, matched: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017; alpha 0.25, gamma 2), summed over anchors and classes.

    Args:
        logits: float32 [B, A, C].
        labels: int64 [B, A], the class of the box of each positive anchor; of the others any class.
        matched: int64 [B, A], from an assigner.
    """
    positive = matched >= 0
    one_hot = F.one_hot(labels, logits.shape[-1]).to(logits.dtype) * positive[..., None]
    loss = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="none")
    return (loss * (matched != IGNORED)[..., None]).sum()


def l1_loss(deltas: Tensor, boxes: Tensor, anchors: Tensor, positive: Tensor) -> Tensor:
    """L1 loss of the box deltas, summed over the positive anchors.

    Args:
        deltas: float32 [B, A, 4], as predicted.
        boxes: float32 [B, A, 4] px, the box of each positive anchor; of the others any box with positive sides.
        anchors: float32 [A, 4] px.
        positive: bool [B, A].
    """
    loss = (deltas - encode_boxes(boxes, anchors)).abs()
    return (loss * positive[..., None]).sum()


CLASSIFICATION_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"focal": focal_loss}
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {"l1": l1_loss}
