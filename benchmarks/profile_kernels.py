"""Calls each fast kernel once, at the shape of its target on a GPU, for a profiler to look at:

    PYTHONPATH=. ncu --profile-from-start off python3 benchmarks/profile_kernels.py

What is called before, so that nothing is compiled or loaded any more, is not profiled.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from shapes import BOX_SHAPES, FOCAL_SHAPES, LOSS_SHAPES, UPSAMPLE_SHAPES
from torch import Tensor

from zoominnet.kernels import (
    akdp_mask,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)

CALLS = 3
"""Before the one that is profiled."""


def kernels(device: str, size: str) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Each operator's name, and what calls it by a backend and gives its result: with the gradient, where there is one."""
    boxes = BOX_SHAPES[size]["1024 px, 16 images"]
    grids, images = boxes.grids(device), boxes.gt_boxes(device)
    yield "akdp_mask", lambda backend: akdp_mask(grids, images, backend=backend)
    yield "max_iou_assign", lambda backend: max_iou_assign(grids, images, backend=backend)
    loss = LOSS_SHAPES[size]["LA, P3"]
    student, teacher, mask = loss.small(device).requires_grad_(), loss.large(device), loss.mask(device)
    yield "pa_l2_loss", lambda backend: with_gradient(pa_l2_loss(student, teacher, mask, backend=backend), [student])
    up = UPSAMPLE_SHAPES[size]["P3"]
    small, large, gradient = up.small(device).requires_grad_(), up.large(device), up.large(device, seed=2)
    yield (
        "upsample_nearest2x",
        lambda backend: with_gradient(upsample_nearest2x(small, large, backend=backend), [small], gradient),
    )
    focal = FOCAL_SHAPES[size]["fa, 512 px, 4 images"]
    logits = [level.requires_grad_() for level in focal.levels(device)]
    assigned, labels = focal.assigned(device), focal.labels(device)
    yield (
        "sigmoid_focal_loss",
        lambda backend: with_gradient(sigmoid_focal_loss(logits, assigned, labels, backend=backend), logits),
    )


def with_gradient(out: Tensor, leaves: list[Tensor], gradient: Tensor | None = None) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    on_cuda = torch.device(options.device).type == "cuda"
    states = available_backends(torch.device(options.device).type)
    for name, call in kernels(options.device, "tiny" if options.tiny else "full"):
        for backend in ("native", "triton"):
            if states[name][backend] != "ok":
                print(f"{name}, {backend}: {states[name][backend]}")
                continue
            for _ in range(CALLS):
                call(backend)
            with profiled() if on_cuda else contextlib.nullcontext():
                call(backend)
            print(f"{name}, {backend}: called")


@contextlib.contextmanager
def profiled() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
