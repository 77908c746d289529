"""sigmoid_focal_loss of all anchors of a batch, against torchvision's on one-hot targets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from conftest import Race
from rivals import compiled, focal_eager, in_direction
from shapes import FOCAL_SHAPES, LogitShape
from torch import Tensor

from zoominnet.kernels import sigmoid_focal_loss

SHAPES = FOCAL_SHAPES
LARGE = "fa, 512 px, 4 images"
CASES = [(LARGE, "forward"), (LARGE, "backward"), *((name, "both") for name in SHAPES["full"])]


class CheckFocal:
    """Loss and gradient must be those of the dense formula in float64, but for the roundings of their dtype."""

    def __init__(self, levels: Sequence[Tensor], assigned: Tensor, labels: Sequence[Tensor]) -> None:
        self.eps = torch.finfo(levels[0].dtype).eps
        leaves = [level.detach().double().requires_grad_() for level in levels]
        loss = focal_eager(leaves, assigned, labels)
        self.grads = torch.autograd.grad(loss, leaves)
        self.loss = loss.detach()

    def __call__(self, name: str, result: tuple[Tensor | None, Sequence[Tensor] | None]) -> None:
        loss, grads = result
        if loss is not None:
            # Compiled code adds up millions of float32 in few long chains.
            rtol = 1e-4 if name == "compiled" else 1e-5
            torch.testing.assert_close(
                loss.detach().double(), self.loss, rtol=rtol, atol=0, msg=lambda m: f"{name}: loss: {m}"
            )
        for got, expected in zip(grads or self.grads, self.grads, strict=True):
            # torchvision's 1 - p is not exact to more than a unit of 1.
            torch.testing.assert_close(
                got.double(), expected, rtol=max(self.eps, 1e-5), atol=1e-6, msg=lambda m: f"{name}: gradient: {m}"
            )


def bytes_moved(levels: Sequence[Tensor], assigned: Tensor, direction: str) -> int:
    """Each pass reads the logits and the assignment; the backward pass also writes the gradient."""
    logits = sum(level.numel() * level.element_size() for level in levels)
    read = logits + assigned.numel() * assigned.element_size()
    return {"forward": read, "backward": read + logits, "both": 2 * read + logits}[direction]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape_name", "direction"), CASES)
def test_focal_loss(
    shape_name: str, direction: str, shape: LogitShape, device: torch.device, backends: list[str], race: Race
) -> None:
    levels = [level.requires_grad_() for level in shape.levels(device)]
    assigned, labels = shape.assigned(device), shape.labels(device)
    functions = {
        backend: lambda backend=backend: sigmoid_focal_loss(levels, assigned, labels, backend=backend)
        for backend in backends
    }
    functions["eager"] = lambda: focal_eager(levels, assigned, labels)
    compiled_focal = compiled(focal_eager)
    functions["compiled"] = lambda: compiled_focal(levels, assigned, labels)
    rivals = [in_direction(name, direction, function, levels) for name, function in functions.items()]
    moved = bytes_moved(levels, assigned, direction)
    race("sigmoid_focal_loss", shape_name, shape, direction, rivals, CheckFocal(levels, assigned, labels), moved)
