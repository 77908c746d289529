"""The detection losses, as sums over the anchors of a batch. A new one is a function here and an entry below.

Sums and counts of the parts of a batch add up to those of the whole; losses do not.

Sizes in shapes: B images, A anchors, A_l of level l, C classes, G boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoominnet.kernels import AnchorGrid, sigmoid_focal_loss
from zoominnet.models.boxes import encode_boxes


def focal_loss(logits: Sequence[Tensor], matched: Tensor, labels: Sequence[Tensor], backend: str = "auto") -> Tensor:
    """Focal loss (Lin et al. 2017; alpha 0.25, gamma 2), summed over anchors and classes.

    Args:
        logits: of each level, float [B, A_l, C].
        matched: int64 [B, A], from an assigner.
        labels: B tensors int64 [G], the classes of the boxes.
        backend: of :func:`zoominnet.kernels.sigmoid_focal_loss`.
    """
    return sigmoid_focal_loss(logits, matched, labels, alpha=0.25, gamma=2.0, backend=backend)


def l1_loss(deltas: Tensor, boxes: Tensor, anchors: Tensor, positive: Tensor) -> Tensor:
    """L1 loss of the box deltas, summed over the positive anchors; float32, or float64 where the deltas are.

    Args:
        deltas: float [..., 4], as predicted.
        boxes: float32 [..., 4] px, the box of each positive anchor; of the others any.
        anchors: float32 [..., 4] px, broadcast against `boxes`.
        positive: bool [...].
    """
    # What is not positive is its own target, so that its gradient is 0 and nothing else needs to be kept for it.
    target = torch.where(positive[..., None], encode_boxes(boxes, anchors), deltas.detach())
    return (deltas - target).abs().sum()


def knows_sizes(x: Tensor) -> bool:
    """Whether a size that depends on values of `x` is known without waiting for a device or breaking a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def box_loss_arguments(
    deltas: Sequence[Tensor], matched: Tensor, boxes: Sequence[Tensor], grids: Sequence[AnchorGrid]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The arguments of a box loss, a level after the other; the losses of the levels add up.

    They hold the positive anchors alone, [P, 4] and all True, where it is known how many these are (:func:`knows_sizes`:
    on the CPU), else all anchors, [B, A_l, 4].

    Args:
        deltas: of each level, float [B, A_l, 4].
        matched: int64 [B, A], from an assigner.
        boxes: B tensors float32 [G, 4] px.
        grids: the levels.
    """
    # One more image, of one box, so that there is a box to read for those that are not positive.
    padded = pad_sequence([*boxes, matched.new_zeros((1, 4), dtype=torch.float32)], batch_first=True)[:-1]
    levels = matched.split([level.shape[1] for level in deltas], 1)
    for of_level, index, grid in zip(deltas, levels, grids, strict=True):
        anchors, positive = grid.boxes().view(-1, 4), index >= 0
        if knows_sizes(matched):
            image, anchor = positive.nonzero(as_tuple=True)
            index = index[image, anchor]
            yield (
                of_level[image, anchor],
                padded[image, index],
                anchors[anchor],
                torch.ones_like(index, dtype=torch.bool),
            )
        else:
            index = index.clamp(min=0)[..., None].expand(-1, -1, 4)
            yield of_level, padded.gather(1, index), anchors, positive


CLASSIFICATION_LOSSES: dict[str, Callable[[Sequence[Tensor], Tensor, Sequence[Tensor], str], Tensor]] = {
    "focal": focal_loss
}
BOX_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {"l1": l1_loss}
