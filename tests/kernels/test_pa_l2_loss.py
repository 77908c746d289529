"""The PA-L2 loss and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import LAYOUTS, naive_pa_l2
from torch import Tensor

from zoominnet.kernels import pa_l2_loss

OPERATION = "pa_l2_loss"
HALVES = [torch.float16, torch.bfloat16]
FACTORS = [1, 2]


def sample(
    factor: int, *, b: int = 2, c: int = 5, h: int = 3, w: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Student [b, c, h, w], teacher of `factor` times its height and width, and a mask of a third of the cells."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(b, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    teacher = torch.randn(b, c, factor * h, factor * w, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(b, factor * h, factor * w, generator=generator) < 0.33
    return student, teacher, mask


def run(student: Tensor, teacher: Tensor, mask: Tensor, **options: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient in the student."""
    student = student.detach().requires_grad_()
    loss = pa_l2_loss(student, teacher, mask, **options)
    (grad,) = torch.autograd.grad(loss, student)
    return loss.detach(), grad


def test_hand_worked_same_size(backend: str, device: str) -> None:
    # Masked: position 0 with differences 1 and -2, position 2 with 3 and 0: (1 + 4 + 9 + 0) / 2 = 7.
    student = torch.tensor([[1.0, 5.0, 3.0], [0.0, 5.0, 7.0]], device=device).view(1, 2, 1, 3)
    teacher = torch.tensor([[0.0, 9.0, 0.0], [2.0, 9.0, 7.0]], device=device).view(1, 2, 1, 3)
    mask = torch.tensor([True, False, True], device=device).view(1, 1, 3)
    loss, grad = run(student, teacher, mask, backend=backend)
    assert loss.item() == 7
    assert grad.view(2, 3).tolist() == [[1, 0, 3], [-2, 0, 0]]  # 2 * difference / 2
    loss, grad = run(student, teacher, mask, channel_reduction="mean", backend=backend)
    assert loss.item() == 3.5
    assert grad.view(2, 3).tolist() == [[0.5, 0, 1.5], [-1, 0, 0]]


def test_hand_worked_double_size(backend: str, device: str) -> None:
    # Two images, one cell each; the first compares 1 with 0, 2 and 5: (1 + 1 + 16 + 0) / 3 = 6, nothing in the second.
    student = torch.tensor([1.0, 8.0], device=device).view(2, 1, 1, 1)
    teacher = torch.tensor([[0.0, 2.0, 9.0, 5.0], [0.0, 0.0, 0.0, 0.0]], device=device).view(2, 1, 2, 2)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]], device=device).bool().view(2, 2, 2)
    loss, grad = run(student, teacher, mask, backend=backend)
    assert loss.item() == 6
    assert grad.flatten().tolist() == pytest.approx([2 / 3 * (1 - 1 - 4), 0])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_naive_computation(dtype: torch.dtype, factor: int, reduction: str, backend: str, device: str) -> None:
    inputs = [x.to(device) for x in sample(factor, dtype=dtype, c=37, h=9, w=7)]
    loss, grad = run(*inputs, channel_reduction=reduction, backend=backend)
    naive_loss, naive_grad = naive_pa_l2(*inputs, reduction)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == exact
    # Sums of nonnegative terms, each of three roundings; taken in rows, so errors grow little with their number.
    assert loss.item() == pytest.approx(naive_loss, rel=8 * torch.finfo(exact).eps, abs=0)
    assert grad.dtype == dtype
    # Up to four terms are summed and may cancel, in the accumulation dtype; then the result is rounded to dtype, whose
    # numbers keep a distance of smallest_normal * eps near zero.
    absolute = 4 * torch.finfo(exact).eps * naive_grad.abs().max().item()
    absolute += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(grad.double(), naive_grad, rtol=torch.finfo(dtype).eps, atol=absolute)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("factor", FACTORS)
def test_half_precision_differs_from_float32_by_the_gradient_rounding_alone(
    dtype: torch.dtype, factor: int, backend: str, device: str
) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor, dtype=dtype))
    loss, grad = run(student * 100, teacher, mask, backend=backend)  # squares beyond float16's 65504
    float_loss, float_grad = run((student * 100).float(), teacher.float(), mask, backend=backend)
    # More half than single numbers fit in a vector, so that their squares may be added in another order.
    assert loss.item() == pytest.approx(float_loss.item(), rel=8 * torch.finfo(torch.float32).eps, abs=0)
    assert torch.equal(grad, float_grad.to(dtype))


@pytest.mark.parametrize("factor", FACTORS)
def test_plain_pytorch(factor: int, backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor, dtype=torch.float64))
    student.requires_grad_()
    loss, grad = run(student, teacher, mask, backend=backend)
    upsampled = F.interpolate(student, scale_factor=factor, mode="nearest")
    expected = F.mse_loss(upsampled, teacher, reduction="none").movedim(1, -1)[mask].sum(-1).mean()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0])


def test_documented_order_of_the_gradient(backend: str, device: str) -> None:
    # Terms 1, u, u and u (differences of twice that, over 4 positions) with u half a unit of rounding:
    # (1 + u) + (u + u) is 1 + 2u, in the order of the row it were 1.
    u = 2.0**-24
    student = torch.zeros(1, 1, 1, 1, device=device)
    teacher = torch.tensor([[[[-2.0, -2 * u], [-2 * u, -2 * u]]]], device=device)
    _, grad = run(student, teacher, torch.ones(1, 2, 2, dtype=torch.bool, device=device), backend=backend)
    assert grad.item() == 1 + 2 * u


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", FACTORS)
def test_gradcheck(factor: int, reduction: str, backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda s: pa_l2_loss(s, teacher, mask, channel_reduction=reduction, backend=backend), student.requires_grad_()
    )


@pytest.mark.parametrize("factor", FACTORS)
def test_gradient_from_above(factor: int, backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor))
    _, grad = run(student, teacher, mask, backend=backend)
    student.requires_grad_()
    (-3 * pa_l2_loss(student, teacher, mask, backend=backend)).backward()
    torch.testing.assert_close(student.grad, -3 * grad)


@pytest.mark.parametrize("factor", FACTORS)
def test_gradient_of_gradient_is_refused(factor: int, backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor))
    student.requires_grad_()
    (grad,) = torch.autograd.grad(pa_l2_loss(student, teacher, mask, backend=backend), student, create_graph=True)
    with pytest.raises(RuntimeError, match="pa_l2_loss can be differentiated only once"):
        grad.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", FACTORS)
def test_unmasked_positions_have_no_influence(value: float, factor: int, backend: str, device: str) -> None:
    student, teacher, mask = sample(factor)
    mask[:, :factor, :factor] = False
    mask[1] = False
    loss, grad = run(student.to(device), teacher.to(device), mask.to(device), backend=backend)
    student[:, :, 0, 0], student[1] = value, value
    teacher.masked_fill_(~mask[:, None], value)
    polluted = run(student.to(device), teacher.to(device), mask.to(device), backend=backend)
    assert torch.equal(polluted[0], loss)
    assert torch.equal(polluted[1], grad)
    # At a masked position it shows.
    mask[0, 0, 0] = True
    assert not torch.isfinite(run(student.to(device), teacher.to(device), mask.to(device), backend=backend)[0])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", FACTORS)
def test_nothing_masked(factor: int, reduction: str, backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(factor))
    student = torch.full_like(student, math.nan).requires_grad_()
    options = {"channel_reduction": reduction, "backend": backend}
    loss = pa_l2_loss(student, torch.full_like(teacher, math.inf), torch.zeros_like(mask), **options)
    assert loss.item() == 0
    assert loss.requires_grad
    loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_infinite_gradient_from_above_stays_at_masked_positions(backend: str, device: str) -> None:
    student, teacher, mask = (x.to(device) for x in sample(1))
    student.requires_grad_()
    (pa_l2_loss(student, teacher, mask, backend=backend) * math.inf).backward()
    assert torch.equal(student.grad == 0, ~mask[:, None].expand_as(student))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("b", "c", "h", "w"), [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (2, 5, 0, 0), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("factor", FACTORS)
def test_empty_dimensions(
    b: int, c: int, h: int, w: int, factor: int, reduction: str, backend: str, device: str
) -> None:
    inputs = [x.to(device) for x in sample(factor, b=b, c=c, h=h, w=w)]
    loss, grad = run(*inputs, channel_reduction=reduction, backend=backend)
    assert loss.item() == 0
    assert tuple(grad.shape) == (b, c, h, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("argument", ["student", "teacher", "mask"])
def test_layouts(argument: str, factor: int, layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    # Of a size that can be read in packs of 16 bytes, along rows and along channels.
    tensors = [x.to(device) for x in sample(factor, c=8, w=8, dtype=dtype)]
    inputs = dict(zip(("student", "teacher", "mask"), tensors, strict=True))
    inputs[argument] = LAYOUTS[layout](inputs[argument])
    loss, grad = run(*inputs.values(), backend=backend)
    expected_loss, expected_grad = run(*(x.contiguous() for x in inputs.values()), backend=backend)
    assert grad.stride() == torch.empty_like(inputs["student"]).stride()
    assert torch.equal(grad, expected_grad)
    # The loss may be summed in the order of memory.
    torch.testing.assert_close(loss, expected_loss, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_gradient_laid_out_otherwise_than_student(factor: int, backend: str, device: str) -> None:
    # Student and teacher can be read in packs of channels; the gradient, whose rows are not expanded, cannot be written so.
    student, teacher, mask = (x.to(device) for x in sample(factor, c=8))
    student = LAYOUTS["channels-last, expanded"](student)
    loss, grad = run(student, LAYOUTS["channels-last"](teacher), mask, backend=backend)
    expected_loss, expected_grad = run(student.contiguous(), teacher, mask, backend=backend)
    assert student.stride(1) == 1 != grad.stride(1)
    assert torch.equal(grad, expected_grad)
    torch.testing.assert_close(loss, expected_loss, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def test_any_sizes(backend: str, device: str) -> None:
    size = st.integers(0, 6)

    @given(st.sampled_from(FACTORS), size, size, size, size, st.integers(0, 99), st.sampled_from(["sum", "mean"]))
    def check(factor: int, b: int, c: int, h: int, w: int, seed: int, reduction: str) -> None:
        inputs = [x.to(device) for x in sample(factor, b=b, c=c, h=h, w=w, seed=seed, dtype=torch.float64)]
        loss, grad = run(*inputs, channel_reduction=reduction, backend=backend)
        naive_loss, naive_grad = naive_pa_l2(*inputs, reduction)
        assert loss.item() == pytest.approx(naive_loss, rel=1e-14, abs=0)
        torch.testing.assert_close(grad, naive_grad, rtol=1e-14, atol=1e-14)

    check()


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    # Three cells a gigabyte apart; the memory between them is never touched, so the system need not provide it.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    mask = torch.empty_strided((3, 1, 1), (2**30 + 5, 1, 1), dtype=torch.bool)
    mask.copy_(torch.tensor([True, False, True]).view(3, 1, 1))
    student, teacher = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    assert run(student, teacher, mask, backend=backend)[0].item() == 5  # (1 + 9) / 2


def test_repeats_and_threads_give_the_same_bits(backend: str, device: str) -> None:
    inputs = [x.to(device) for x in sample(2, c=64, h=32, w=32)]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 8, 1, 1):
            torch.set_num_threads(count)
            results.append(run(*inputs, backend=backend))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


STUDENT, TEACHER, MASK = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.bool)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"student": [1.0]}, TypeError, "student must be a tensor, got list"),
        ({"student": STUDENT.int()}, TypeError, r"student must be float32, .* got torch\.int32"),
        ({"student": STUDENT[0]}, ValueError, r"student must have shape \[B, C, h, w\], got \[3, 4, 5\]"),
        ({"teacher": TEACHER[0]}, ValueError, r"teacher must have shape \[B, C, H, W\], got \[3, 8, 10\]"),
        ({"teacher": TEACHER.double()}, TypeError, r"teacher must have the dtype of student, torch\.float32, got"),
        ({"teacher": TEACHER.to("meta")}, ValueError, "teacher must be on the device of student, cpu, got meta"),
        ({"teacher": TEACHER.clone().requires_grad_()}, ValueError, r"pass teacher\.detach\(\)"),
        (
            {"teacher": TEACHER[:, :, 1:]},
            ValueError,
            r"shape \[2, 3, 4, 5\] or \[2, 3, 8, 10\] .*, got \[2, 3, 7, 10\]",
        ),
        ({"teacher": TEACHER[:, :, :4]}, ValueError, r"got \[2, 3, 4, 10\]"),
        ({"teacher": TEACHER[:, :2]}, ValueError, r"got \[2, 2, 8, 10\]"),
        ({"teacher": TEACHER[:1]}, ValueError, r"got \[1, 3, 8, 10\]"),
        ({"mask": MASK.float()}, TypeError, r"mask must be a bool tensor, got torch\.float32"),
        ({"mask": None}, TypeError, "mask must be a bool tensor, got NoneType"),
        ({"mask": MASK[:, None]}, ValueError, r"mask must .*\[2, 8, 10\], got \[2, 1, 8, 10\]"),
        ({"mask": MASK[:, :4, :5]}, ValueError, r"mask must .*\[2, 8, 10\], got \[2, 4, 5\]"),
        ({"mask": MASK.to("meta")}, ValueError, "mask must be on the device of student, cpu, got meta"),
        ({"channel_reduction": "max"}, ValueError, "channel_reduction must be 'sum' or 'mean', got 'max'"),
    ],
)
def test_arguments_are_checked(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"student": STUDENT, "teacher": TEACHER, "mask": MASK, **changed}
    with pytest.raises(error, match=message):
        pa_l2_loss(**arguments)
