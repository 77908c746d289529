"""pa_l2_loss, in the form of LA (the student at half the teacher's size) and of FA (at the same size)."""

from __future__ import annotations

import pytest
import torch
from conftest import Race
from rivals import compiled, in_direction, pa_l2_eager
from shapes import LOSS_SHAPES, MapShape
from torch import Tensor

from zoominnet.kernels import pa_l2_loss

SHAPES = LOSS_SHAPES
CASES = [("LA, P3", "forward"), ("LA, P3", "backward"), *((name, "both") for name in SHAPES["full"])]


class CheckLoss:
    """Loss and gradient must be those of the dense formula in float64, but for the roundings of their dtype."""

    def __init__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
        self.eps = torch.finfo(student.dtype).eps
        leaf = student.detach().double().requires_grad_()
        loss = pa_l2_eager(leaf, teacher.double(), mask)
        (self.grad,) = torch.autograd.grad(loss, leaf)
        self.loss = loss.detach()
        self.scale = float(self.grad.abs().max())

    def __call__(self, name: str, result: tuple[Tensor | None, Tensor | None]) -> None:
        loss, grad = result
        # The eager formula rounds each difference and square to the dtype, ours does not; an element of the gradient
        # is a sum of four, which may cancel.
        ours = name in ("native", "triton", "reference")
        if loss is not None:
            rtol = 1e-5 if ours else max(8 * self.eps, 1e-5)
            torch.testing.assert_close(
                loss.detach().double(), self.loss, rtol=rtol, atol=0, msg=lambda m: f"{name}: loss: {m}"
            )
        if grad is not None:
            atol = (1 if ours else 4) * self.eps * self.scale
            torch.testing.assert_close(
                grad.double(), self.grad, rtol=2 * self.eps, atol=atol, msg=lambda m: f"{name}: gradient: {m}"
            )


def bytes_moved(student: Tensor, mask: Tensor, step: int, direction: str) -> int:
    """Each pass reads the masked positions of the teacher, the student's cells with one, and the mask; the backward
    pass also writes the whole gradient."""
    B, C, h, w = student.shape
    cells = mask.view(B, h, step, w, step).any(4).any(2)
    read = (int(mask.sum()) + int(cells.sum())) * C * student.element_size() + mask.numel()
    written = student.numel() * student.element_size()
    return {"forward": read, "backward": read + written, "both": 2 * read + written}[direction]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape_name", "direction"), CASES)
def test_loss(
    shape_name: str, direction: str, shape: MapShape, device: torch.device, backends: list[str], race: Race
) -> None:
    student, teacher, mask = shape.small(device).requires_grad_(), shape.large(device), shape.mask(device)
    functions = {
        backend: lambda backend=backend: pa_l2_loss(student, teacher, mask, backend=backend) for backend in backends
    }
    functions["eager"] = lambda: pa_l2_eager(student, teacher, mask)
    compiled_loss = compiled(pa_l2_eager)
    functions["compiled"] = lambda: compiled_loss(student, teacher, mask)
    rivals = [in_direction(name, direction, function, student) for name, function in functions.items()]
    moved = bytes_moved(student, mask, shape.step, direction)
    race("pa_l2_loss", shape_name, shape, direction, rivals, CheckLoss(student, teacher, mask), moved)
