"""upsample_nearest2x, with and without an addend, against F.interpolate and a sum."""

from __future__ import annotations

import pytest
import torch
from conftest import Race
from rivals import compiled, in_direction, upsample_eager
from shapes import UPSAMPLE_SHAPES, MapShape
from torch import Tensor

from zoominnet.kernels import upsample_nearest2x

SHAPES = UPSAMPLE_SHAPES
CASES = [
    ("P3", "forward", True),
    ("P3", "backward", True),
    *((name, "both", True) for name in SHAPES["full"]),
    ("P3", "forward", False),
    ("P3", "both", False),
]


class CheckUpsample:
    """Output and gradient must be those in float64, but for the rounding of a sum of two, and of four."""

    def __init__(self, x: Tensor, add: Tensor | None, grad: Tensor) -> None:
        self.eps = torch.finfo(x.dtype).eps
        leaf = x.detach().double().requires_grad_()
        out = upsample_eager(leaf, None if add is None else add.double())
        (self.grad,) = torch.autograd.grad(out, leaf, grad.double())
        self.out = out.detach()

    def __call__(self, name: str, result: tuple[Tensor | None, Tensor | None]) -> None:
        for what, got, expected in zip(("output", "gradient"), result, (self.out, self.grad), strict=True):
            if got is not None:
                # Sums that cancel are not close to themselves in float64, but to the size of what was added.
                atol = 4 * self.eps * float(expected.abs().max())
                torch.testing.assert_close(
                    got.detach().double(), expected, rtol=0, atol=atol, msg=lambda m, w=what: f"{name}: {w}: {m}"
                )


def bytes_moved(x: Tensor, with_add: bool, direction: str) -> int:
    """Forward reads the map and the addend and writes the result; backward reads one gradient and writes the other."""
    size = x.numel() * x.element_size()
    forward, backward = size * (9 if with_add else 5), size * 5
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape_name", "direction", "add"), CASES)
def test_upsample(
    shape_name: str, direction: str, add: bool, shape: MapShape, device: torch.device, backends: list[str], race: Race
) -> None:
    x, addend, grad = shape.small(device).requires_grad_(), shape.large(device) if add else None, shape.large(device, 2)
    functions = {
        backend: lambda backend=backend: upsample_nearest2x(x, addend, backend=backend) for backend in backends
    }
    functions["eager"] = lambda: upsample_eager(x, addend)
    compiled_upsample = compiled(upsample_eager)
    functions["compiled"] = lambda: compiled_upsample(x, addend)
    rivals = [in_direction(name, direction, function, x, grad) for name, function in functions.items()]
    op = "upsample_nearest2x with add" if add else "upsample_nearest2x"
    race(op, shape_name, shape, direction, rivals, CheckUpsample(x, addend, grad), bytes_moved(x, add, direction))
