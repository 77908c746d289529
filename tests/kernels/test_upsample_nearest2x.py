"""Nearest 2x upsampling with addition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_oracles import LAYOUTS
from torch import Tensor

from zoominnet.kernels import upsample_nearest2x

OPERATION = "upsample_nearest2x"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(2, 3, 4, 5), (1, 1, 1, 1), (1, 4, 1, 7), (3, 2, 31, 33)]


def sample(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """x of `shape`, and add and a gradient of twice its height and width."""
    generator = torch.Generator().manual_seed(0)
    b, c, h, w = shape
    shapes = [shape, (b, c, 2 * h, 2 * w), (b, c, 2 * h, 2 * w)]
    x, add, grad = (torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes)
    return x, add, grad


def test_hand_worked(backend: str, device: str) -> None:
    x = torch.tensor([[[[1.0, 2.0]]]], device=device, requires_grad=True)
    add = torch.tensor([[[[0.0, 10.0, 20.0, 30.0], [40.0, 50.0, 60.0, 70.0]]]], device=device, requires_grad=True)
    out = upsample_nearest2x(x, add, backend=backend)
    assert out.tolist() == [[[[1, 11, 22, 32], [41, 51, 62, 72]]]]
    grad = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 9.0]]]], device=device)
    out.backward(grad)
    assert x.grad.tolist() == [[[[14, 23]]]]  # 1 + 2 + 5 + 6 and 3 + 4 + 7 + 9
    assert torch.equal(add.grad, grad)


@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_interpolate(
    shape: tuple[int, int, int, int], dtype: torch.dtype, with_add: bool, backend: str, device: str
) -> None:
    x, add, grad = sample(shape, dtype, device)
    leaves = [x, add] if with_add else [x]
    for leaf in leaves:
        leaf.requires_grad_()
    out = upsample_nearest2x(*leaves, backend=backend)
    expected = F.interpolate(x, scale_factor=2, mode="nearest")
    if with_add:
        expected = expected + add
    assert torch.equal(out, expected)
    assert torch.equal(out, x.repeat_interleave(2, 2).repeat_interleave(2, 3) + (add if with_add else 0))
    grads = torch.autograd.grad(out, leaves, grad)
    # Four terms summed in the accumulation dtype, then rounded once.
    exact = F.avg_pool2d(grad.double(), 2, divisor_override=1)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    torch.testing.assert_close(
        grads[0].double(), exact, rtol=torch.finfo(dtype).eps, atol=4 * eps * grad.abs().max().item()
    )
    if with_add:
        assert torch.equal(grads[1], grad)


def test_documented_order_of_the_gradient(backend: str, device: str) -> None:
    # (1 + u) + (u + u) with u half a unit of rounding: 1 + 2u in this order, 1 in the order of the row.
    u = 2.0**-24
    x = torch.zeros(1, 1, 1, 1, device=device, requires_grad=True)
    upsample_nearest2x(x, backend=backend).backward(torch.tensor([[[[1.0, u], [u, u]]]], device=device))
    assert x.grad.item() == 1 + 2 * u


@pytest.mark.parametrize("with_add", [False, True])
def test_gradcheck_twice(with_add: bool, backend: str, device: str) -> None:
    x, add, _ = sample((2, 2, 3, 2), torch.float64, device)
    arguments = (x.requires_grad_(), add.requires_grad_()) if with_add else (x.requires_grad_(),)

    def squared(*leaves: Tensor) -> Tensor:  # not linear, so that the second gradient is not zero
        return upsample_nearest2x(*leaves, backend=backend).square()

    assert torch.autograd.gradcheck(squared, arguments)
    assert torch.autograd.gradgradcheck(squared, arguments)


def test_gradient_in_add_alone(backend: str, device: str) -> None:
    x, add, grad = sample((1, 2, 3, 2), device=device)
    upsample_nearest2x(x, add.requires_grad_(), backend=backend).backward(grad)
    assert torch.equal(add.grad, grad)
    assert x.grad is None


@pytest.mark.parametrize("argument", ["x", "add", "grad"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, argument: str, backend: str, device: str) -> None:
    inputs = dict(zip(("x", "add", "grad"), sample((2, 3, 4, 5), device=device), strict=True))
    inputs[argument] = LAYOUTS[layout](inputs[argument])
    results = []
    for x, add, grad in (inputs.values(), [value.contiguous() for value in inputs.values()]):
        x, add = x.detach().requires_grad_(), add.detach().requires_grad_()
        out = upsample_nearest2x(x, add, backend=backend)
        results.append((out, *torch.autograd.grad(out, (x, add), grad)))
    assert all(map(torch.equal, *results))


def test_channels_last_stays(backend: str, device: str) -> None:
    x, add, grad = (value.to(memory_format=torch.channels_last) for value in sample((2, 3, 4, 5), device=device))
    out = upsample_nearest2x(x.requires_grad_(), add, backend=backend)
    (grad_x,) = torch.autograd.grad(out, x, grad)
    for result in (out, grad_x):
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert not result.is_contiguous()
    # One channel is both; the plain order is kept.
    assert upsample_nearest2x(x[:, :1].contiguous(), backend=backend).is_contiguous()


@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 0, 0, 0)])
def test_empty_dimensions(shape: tuple[int, int, int, int], with_add: bool, backend: str, device: str) -> None:
    x, add, grad = sample(shape, device=device)
    out = upsample_nearest2x(x.requires_grad_(), add if with_add else None, backend=backend)
    assert out.shape == add.shape
    out.backward(grad)
    assert x.grad.shape == shape


def test_nan_and_infinity_stay_in_their_cells(backend: str, device: str) -> None:
    x = torch.tensor([[[[float("nan"), 1.0, float("-inf")]]]], device=device, requires_grad=True)
    out = upsample_nearest2x(x, backend=backend)
    assert out.isnan().tolist() == [[[[True, True, False, False, False, False]] * 2]]
    assert out.isinf().tolist() == [[[[False, False, False, False, True, True]] * 2]]
    grad = torch.ones_like(out).detach()
    grad[..., 0, 2] = float("nan")
    out.backward(grad)
    assert x.grad.isnan().tolist() == [[[[False, True, False]]]]


def test_inputs_are_not_changed(backend: str, device: str) -> None:
    x, add, _ = sample((2, 3, 4, 5), device=device)
    before = x.clone(), add.clone()
    out = upsample_nearest2x(x, add, backend=backend)
    out.fill_(0)
    assert torch.equal(x, before[0])
    assert torch.equal(add, before[1])


X, ADD = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 8, 10)


@pytest.mark.parametrize(
    ("x", "add", "error", "message"),
    [
        (None, None, TypeError, "x must be a tensor, got NoneType"),
        (X.long(), None, TypeError, r"x must be float32, .* got torch\.int64"),
        (X[0], None, ValueError, r"x must have shape \[B, C, H, W\], got \[3, 4, 5\]"),
        (X, 1.0, TypeError, "add must be a tensor, got float"),
        (X, ADD.half(), TypeError, r"add must have the dtype of x, torch\.float32, got torch\.float16"),
        (X, ADD.to("meta"), ValueError, "add must be on the device of x, cpu, got meta"),
        (X, ADD[:, :1], ValueError, r"add must have shape \[2, 3, 8, 10\] .*got \[2, 1, 8, 10\]"),
        (X, X, ValueError, r"got \[2, 3, 4, 5\]"),
        (X, ADD[0], ValueError, r"got \[3, 8, 10\]"),
    ],
)
def test_arguments_are_checked(x: object, add: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        upsample_nearest2x(x, add)
