"""What the kernels are compared with: the same computations in plain PyTorch, as people write them.

Each is dense: the matrix of all anchors and boxes, the upsampled and the difference map are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from measure import Rival
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss


def akdp_mask_eager(levels: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
    """The masks, bool[H, W], of one image. `levels`: the anchors, [H, W, K, 4] each; `boxes`: [G, 4]."""
    masks = []
    for anchors in levels:
        iou = box_iou(anchors.view(-1, 4), boxes)
        threshold = (iou.mean() + iou.std()) * iou.amax(0)
        masks.append((iou > threshold).any(1).view(anchors.shape[:3]).any(2))
    return masks


def assign_torchvision(anchors: Tensor, boxes: Tensor) -> Tensor:
    """torchvision's assignment, int64[A]."""
    return Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, anchors))


def assign_compilable(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The same without shapes that depend on values, which would break the graph of torch.compile."""
    iou = box_iou(boxes, anchors)
    best, index = iou.max(0)
    forced = (iou == iou.amax(1, keepdim=True)).any(0)
    result = torch.where(best >= 0.5, index, torch.where(best < 0.4, -1, -2))
    return torch.where(forced, index, result)


def pa_l2_eager(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The loss, a scalar."""
    if student.shape != teacher.shape:
        student = F.interpolate(student, scale_factor=2, mode="nearest")
    return ((student - teacher) ** 2 * mask[:, None]).sum() / mask.sum().clamp(min=1)


def focal_eager(levels: Sequence[Tensor], assigned: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """torchvision's focal loss, which takes float32 or better, of all levels' logits [B, A_l, C] and one-hot targets."""
    logits = torch.cat(list(levels), 1)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    classes = torch.stack([of_image[index.clamp(min=0)] for of_image, index in zip(labels, assigned, strict=True)])
    target = F.one_hot(classes, logits.shape[2]).to(logits.dtype) * (assigned >= 0)[..., None]
    loss = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0, reduction="none")
    return (loss * (assigned != -2)[..., None]).sum()


def upsample_eager(x: Tensor, add: Tensor | None) -> Tensor:
    """F.interpolate, and the sum."""
    out = F.interpolate(x, scale_factor=2, mode="nearest")
    return out if add is None else out + add


def compiled(function: Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """`torch.compile` of `function`, for fixed shapes unless `dynamic`."""
    return torch.compile(function, fullgraph=True, dynamic=dynamic)


def in_direction(
    name: str,
    direction: str,
    forward: Callable[[], Tensor],
    leaf: Tensor | Sequence[Tensor],
    grad: Tensor | None = None,
) -> Rival:
    """A rival that takes the "forward" pass of a graph, its "backward" pass, or "both".

    Args:
        name: of the rival.
        direction: which.
        forward: gives the output.
        leaf: requires grad; its gradient is taken. Or a list of such.
        grad: of the output; None for a scalar.

    Returns:
        A rival whose result is (output or None, gradient of `leaf` or None), or a tuple of gradients.
    """

    def backward(out: Tensor) -> tuple[None, Any]:
        grads = torch.autograd.grad(out, leaf, grad)
        return None, grads[0] if isinstance(leaf, Tensor) else grads

    def both() -> tuple[Tensor, Any]:
        out = forward()
        return out.detach(), backward(out)[1]

    if direction == "forward":
        return Rival(name, lambda: (forward(), None))
    if direction == "backward":
        return Rival(name, backward, lambda: (forward(),))
    return Rival(name, both)
