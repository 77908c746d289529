"""A digest of what the `native` backend gives for fixed inputs; run as a script to take it in another environment."""

from __future__ import annotations

import hashlib

import torch
from kernel_oracles import pyramid, random_boxes
from torch import Tensor
from torch.utils import _pytree as pytree

from zoominnet.kernels import akdp_mask, akdp_stats, max_iou_assign, pa_l2_loss, sigmoid_focal_loss, upsample_nearest2x


def results() -> list[Tensor]:
    """Outputs and gradients of every operation, large enough to be shared out among threads."""
    generator = torch.Generator().manual_seed(0)

    def features(height: int, width: int) -> Tensor:
        # PyTorch's normal random numbers differ from one instruction set to another; these do not.
        return torch.randint(-3000, 3000, (2, 24, height, width), generator=generator) / 1000

    found: list[object] = []
    for dtype in (torch.float32, torch.float64):
        grids = [grid.to(dtype=dtype) for grid in pyramid([(40, 37), (20, 19), (10, 5)], anchors=4)]
        images = [random_boxes(count, 160, seed=count, dtype=dtype) for count in (50, 0, 3)]
        for anchors in (grids, grids[0].boxes()):
            for boxes in (images, images[0]):
                found += [akdp_mask(anchors, boxes, threshold=t, backend="native") for t in ("adaptive", 0.3)]
                found.append(akdp_stats(anchors, boxes, threshold="adaptive-nonzero", backend="native"))
                found += [max_iou_assign(anchors, boxes, own_best=own, backend="native") for own in (False, True)]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for form in (torch.contiguous_format, torch.channels_last):
            small = features(18, 21).to(dtype).contiguous(memory_format=form)
            large = features(36, 42).to(dtype).contiguous(memory_format=form)
            small.requires_grad_()
            for teacher in (large, small.detach() * 2):
                mask = torch.rand(2, *teacher.shape[2:], generator=generator) < 0.3
                loss = pa_l2_loss(small, teacher, mask, backend="native")
                found += [loss, torch.autograd.grad(loss, small)]
            for add in (large, None):
                out = upsample_nearest2x(small, add, backend="native")
                found += [out, torch.autograd.grad(out, small, large)]
        logits = (features(40, 21).flatten(1, 2) * 4).to(dtype).requires_grad_()  # [2, 960, 21]
        assigned = torch.randint(-2, 3, (2, 960), generator=generator)
        for gamma in (2.0, 1.5):
            for view in (logits, logits.transpose(0, 1).contiguous().transpose(0, 1)):
                labels = [torch.tensor([0, 20, 3])] * 2
                loss = sigmoid_focal_loss(view, assigned, labels, gamma=gamma, backend="native")
                found += [loss, torch.autograd.grad(loss, logits)]
    return [leaf.detach() for leaf in pytree.tree_leaves(found)]


def digest() -> str:
    """SHA-256 of all bytes of :func:`results`."""
    sha = hashlib.sha256()
    for tensor in results():
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    print(digest())
