"""The focal loss over anchors and classes, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import LAYOUTS, naive_focal
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from zoominnet.kernels import sigmoid_focal_loss

OPERATION = "sigmoid_focal_loss"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
GAMMAS = [0.0, 0.5, 2.0, 3.7]


def sample(
    *, b: int = 2, a: int = 7, c: int = 5, boxes: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits [b, a, c], an assignment of every kind, and the labels of `boxes` boxes in the first image, fewer after."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(b, a, c, generator=generator, dtype=torch.float64)
    counts = [max(boxes - i, 0) for i in range(b)] if c else [0] * b
    labels = [torch.randint(max(c, 1), (count,), generator=generator) for count in counts]
    assigned = torch.stack(
        [torch.randint(-2, count, (a,), generator=generator) for count in counts] or [torch.zeros(0, a).long()]
    )
    return logits.to(dtype), assigned if b else assigned[0], labels


def to(device: str, logits: Tensor, assigned: Tensor, labels: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    return logits.to(device), assigned.to(device), [of_image.to(device) for of_image in labels]


def run(logits: Tensor, assigned: Tensor, labels: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient in the logits."""
    leaf = logits.detach().requires_grad_()
    loss = sigmoid_focal_loss(leaf, assigned, labels, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def term_eps(dtype: torch.dtype, gamma: float, largest: float) -> float:
    """Relative error of a term, by reference.py: a few roundings, and those that a power other than 2 multiplies."""
    ulps = 8 if gamma in (0, 2) else 8 + gamma * (2 + largest)
    return ulps * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def assert_gradient(got: Tensor, expected: Tensor, gamma: float = 2.0, largest: float = 20.0) -> None:
    """`got` is the float64 `expected` but for the error of a term, and the rounding to its dtype."""
    info = torch.finfo(got.dtype)
    rtol = term_eps(got.dtype, gamma, largest) + (info.eps if info.bits == 16 else 0)
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=info.smallest_normal * info.eps)


def test_hand_worked(backend: str, device: str) -> None:
    # At logit 0 each term is w / 4 * log(2) and its derivative w * (log(2) / 4 + 1 / 8), with the sign of the side.
    logits = torch.zeros(1, 4, 3, device=device, dtype=torch.float64)
    assigned, labels = torch.tensor([[1, -1, -2, 0]], device=device), [torch.tensor([2, 0], device=device)]
    loss, grad = run(logits, assigned, labels, backend=backend)
    assert loss.item() == pytest.approx((2 * (0.25 + 2 * 0.75) + 3 * 0.75) / 4 * math.log(2), rel=1e-15)
    slope = math.log(2) / 4 + 1 / 8
    expected = [[-0.25, 0.75, 0.75], [0.75] * 3, [0] * 3, [0.75, 0.75, -0.25]]
    torch.testing.assert_close(grad[0].cpu(), slope * torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)
    # gamma 0 and alpha 1/2 are half of the cross-entropy: log(2) / 2 each.
    loss, grad = run(logits, assigned, labels, alpha=0.5, gamma=0, backend=backend)
    assert loss.item() == pytest.approx(9 * math.log(2) / 2, rel=1e-15)
    assert grad[0].tolist() == [[-0.25, 0.25, 0.25], [0.25] * 3, [0] * 3, [0.25, 0.25, -0.25]]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_naive_computation(dtype: torch.dtype, gamma: float, backend: str, device: str) -> None:
    logits, assigned, labels = sample(dtype=dtype)
    logits[0, :, 0] = torch.tensor([-60, -30, -17, 1e-3, 17, 30, 60])  # the tails, in which p or 1 - p is nearly 0
    loss, grad = run(*to(device, logits, assigned, labels), alpha=0.3, gamma=gamma, backend=backend)
    naive_loss, naive_grad = naive_focal(logits, assigned, labels, 0.3, gamma)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(naive_loss, rel=term_eps(dtype, gamma, 60), abs=0)
    assert grad.dtype == dtype
    assert_gradient(grad.cpu(), naive_grad, gamma, 60)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("mine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_logit_of_a_wide_range(dtype: torch.dtype, mine: bool, gamma: float, backend: str, device: str) -> None:
    """As an image each, so that each has a loss of its own; the gradient is known from the test above."""
    values = torch.cat([torch.linspace(-43, 43, 27), torch.tensor([-1e-9, 0.0, 1e-30])]).to(dtype)
    index = 0 if mine else -1
    for value in values:
        logits, assigned, labels = value.view(1, 1, 1), torch.tensor([[index]]), [torch.tensor([0])]
        loss = sigmoid_focal_loss(*to(device, logits, assigned, labels), gamma=gamma, backend=backend)
        expected, _ = naive_focal(logits, assigned, labels, 0.25, gamma)
        assert loss.item() == pytest.approx(expected, rel=term_eps(dtype, gamma, 43), abs=1e-36)


def torchvision_loss(logits: Tensor, assigned: Tensor, labels: list[Tensor], alpha: float, gamma: float) -> Tensor:
    """As its users write it, with a one-hot tensor."""
    target = torch.zeros_like(logits)
    for b, a in (assigned >= 0).nonzero().tolist():
        target[b, a, labels[b][assigned[b, a]]] = 1
    return torchvision_focal_loss(logits, target, alpha, gamma)[assigned != -2].sum()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.0, 1.0), (1.0, 1.5), (0.6, 0.0)])
def test_torchvision(alpha: float, gamma: float, backend: str, device: str) -> None:
    logits, assigned, labels = sample(b=3, a=40, dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    expected = torchvision_loss(leaf, assigned, labels, alpha, gamma)
    loss, grad = run(*to(device, logits, assigned, labels), alpha=alpha, gamma=gamma, backend=backend)
    # torchvision takes 1 - p, which cancels where p is near 1: its own error is absolute.
    torch.testing.assert_close(loss.cpu(), expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad.cpu(), torch.autograd.grad(expected, leaf)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 1.3, 2.0])
@pytest.mark.parametrize(("dtype", "large"), [(d, 1e4) for d in DTYPES] + [(torch.float32, 3e38)])
def test_large_logits(dtype: torch.dtype, large: float, gamma: float, backend: str, device: str) -> None:
    # Of one class, judged rightly and wrongly with certainty: nothing, or w * |x| with a slope of w.
    logits = torch.tensor([large, -large, large, -large]).to(device, dtype).view(1, 4, 1)
    assigned, labels = torch.tensor([[0, 0, -1, -1]], device=device), [torch.tensor([0], device=device)]
    for b, slope in ((0, 0.0), (1, -0.25), (2, 0.75), (3, 0.0)):
        loss, grad = run(logits[:, b : b + 1], assigned[:, b : b + 1], labels, gamma=gamma, backend=backend)
        assert loss.item() == pytest.approx(abs(slope) * abs(logits[0, b].item()), rel=1e-6)
        assert grad.item() == slope


def test_half_precision_differs_from_float32_by_the_gradient_rounding_alone(backend: str, device: str) -> None:
    for dtype, gamma in ((torch.float16, 2.0), (torch.bfloat16, 2.0), (torch.float16, 1.5)):
        logits, assigned, labels = to(device, *sample(dtype=dtype, a=50))
        loss, grad = run(logits, assigned, labels, gamma=gamma, backend=backend)
        float_loss, float_grad = run(logits.float(), assigned, labels, gamma=gamma, backend=backend)
        # More half than single numbers fit in a vector, so that the terms may be added in another order.
        assert loss.item() == pytest.approx(float_loss.item(), rel=8 * torch.finfo(torch.float32).eps, abs=0)
        assert torch.equal(grad, float_grad.to(dtype))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradcheck(gamma: float, backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(dtype=torch.float64))
    levels = [level.clone().requires_grad_() for level in logits.split((4, 3), 1)]

    def function(*levels: Tensor) -> Tensor:
        return sigmoid_focal_loss(levels, assigned, labels, gamma=gamma, backend=backend)

    assert torch.autograd.gradcheck(function, levels)


def test_gradient_from_above(backend: str, device: str) -> None:
    arguments = to(device, *sample())
    _, grad = run(*arguments, backend=backend)
    leaf = arguments[0].requires_grad_()
    (-3 * sigmoid_focal_loss(leaf, *arguments[1:], backend=backend)).backward()
    torch.testing.assert_close(leaf.grad, -3 * grad, rtol=4 * torch.finfo(torch.float32).eps, atol=0)


def test_gradient_of_gradient_is_refused(backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample())
    loss = sigmoid_focal_loss(logits.requires_grad_(), assigned, labels, backend=backend)
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss can be differentiated only once"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_levels_are_their_concatenation(dtype: torch.dtype, backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(a=30, dtype=dtype))
    expected_loss, expected_grad = run(logits, assigned, labels, backend=backend)
    levels = [level.clone().requires_grad_() for level in logits.split((16, 0, 13, 1), 1)]
    loss = sigmoid_focal_loss(levels, assigned, labels, backend=backend)
    grads = torch.autograd.grad(loss, levels)
    assert torch.equal(torch.cat(grads, 1), expected_grad)
    torch.testing.assert_close(loss.detach(), expected_loss, rtol=8 * torch.finfo(loss.dtype).eps, atol=0)


def test_gradient_in_some_levels_alone(backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample())
    _, grad = run(logits, assigned, labels, backend=backend)
    levels = [logits[:, :4].clone(), logits[:, 4:].clone().requires_grad_()]
    sigmoid_focal_loss(levels, assigned, labels, backend=backend).backward()
    assert levels[0].grad is None
    assert torch.equal(levels[1].grad, grad[:, 4:])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_ignored_anchors_have_no_influence(value: float, backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(a=30))
    ignored = assigned == -2
    assert ignored.any()
    loss, grad = run(logits, assigned, labels, backend=backend)
    assert (grad[ignored] == 0).all()
    assert (grad[~ignored] != 0).all()
    polluted = logits.clone()
    polluted[ignored] = value
    assert all(map(torch.equal, run(polluted, assigned, labels, backend=backend), (loss, grad)))
    # An infinite gradient from above does not reach them either.
    leaf = polluted.requires_grad_()
    (sigmoid_focal_loss(leaf, assigned, labels, backend=backend) * math.inf).backward()
    assert (leaf.grad[ignored] == 0).all()
    assert not torch.isfinite(leaf.grad[~ignored]).any()


def test_nan_of_a_trained_anchor_shows(backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(a=30))
    _, expected = run(logits, assigned, labels, backend=backend)
    for b, a in ((assigned == -1).nonzero()[0], (assigned >= 0).nonzero()[0]):
        spoilt = logits.clone()
        spoilt[b, a, 2] = math.nan
        loss, grad = run(spoilt, assigned, labels, backend=backend)
        assert loss.isnan()
        assert grad.isnan().nonzero().tolist() == [[int(b), int(a), 2]]
        assert torch.equal(grad.nan_to_num(), expected.where(~spoilt.isnan(), 0))


@pytest.mark.parametrize("index", [2, 3, 4, 2**40, -3, -(2**40)])
def test_an_index_of_no_box_makes_the_loss_nan(index: int, backend: str, device: str) -> None:
    # The second image has two boxes, the first three.
    logits, assigned, labels = to(device, *sample())
    _, expected = run(logits, assigned, labels, backend=backend)
    assigned[1, 3] = index
    loss, grad = run(logits, assigned, labels, backend=backend)
    assert loss.isnan()
    assert grad[1, 3].isnan().all()
    grad[1, 3] = expected[1, 3]
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("label", [-1, -2, 5, 2**40, -(2**40)])
def test_a_label_of_no_class_makes_the_loss_nan_where_it_is_used(label: int, backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(a=20))
    labels[0][1] = label
    used = assigned == 1
    used[1] = False
    assert used.any()
    loss, grad = run(logits, assigned, labels, backend=backend)
    assert loss.isnan()
    assert torch.equal(grad.isnan().all(-1), used)
    assert torch.equal(grad.isnan().any(-1), used)
    assert torch.isfinite(run(logits, assigned.where(~used, -1), labels, backend=backend)[0])


@pytest.mark.parametrize(("alpha", "expected"), [(0, [0, 1, 1]), (1, [1, 0, 0])])
def test_weights_at_their_limits(alpha: int, expected: list[int], backend: str, device: str) -> None:
    logits, labels = torch.ones(1, 1, 3, device=device), [torch.tensor([0], device=device)]
    _, grad = run(logits, torch.zeros(1, 1, dtype=torch.int64, device=device), labels, alpha=alpha, backend=backend)
    assert (grad != 0).flatten().tolist() == [bool(weight) for weight in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["logits", "assigned"])
def test_layouts(argument: str, layout: str, dtype: torch.dtype, backend: str, device: str) -> None:
    # Of a size that can be read in packs of 16 bytes.
    logits, assigned, labels = to(device, *sample(a=16, c=4, dtype=dtype))
    if argument == "logits":
        logits = LAYOUTS[layout](logits)
    else:
        assigned = LAYOUTS[layout](assigned.clamp(max=1))
    loss, grad = run(logits, assigned, labels, backend=backend)
    expected_loss, expected_grad = run(logits.contiguous(), assigned.contiguous(), labels, backend=backend)
    assert grad.stride() == torch.empty_like(logits).stride()
    assert torch.equal(grad, expected_grad)
    # The loss may be summed in the order of memory.
    torch.testing.assert_close(loss, expected_loss, rtol=8 * torch.finfo(torch.float32).eps, atol=0)


def test_views_of_a_head(backend: str, device: str) -> None:
    """Predictions [B, K * C, H, W] in both memory formats, seen as [B, H * W * K, C], and labels that are not contiguous."""
    b, k, c, h, w = 2, 3, 5, 4, 6
    logits, assigned, labels = to(device, *sample(b=b, a=h * w * k, c=c))
    expected_loss, expected_grad = run(logits, assigned, labels, backend=backend)
    spread = [torch.stack([of_image, of_image + 100], 1)[:, 0] for of_image in labels]
    for layout in (torch.channels_last, torch.contiguous_format):
        head = logits.view(b, h, w, k * c).permute(0, 3, 1, 2).contiguous(memory_format=layout).requires_grad_()
        view = head.view(b, k, c, h, w).permute(0, 3, 4, 1, 2)  # [B, H, W, K, C]
        rows = [view[:, i].reshape(b, w * k, c) for i in range(h)]
        loss = sigmoid_focal_loss(rows, assigned, spread, backend=backend)
        (grad,) = torch.autograd.grad(loss, head)
        torch.testing.assert_close(loss.detach(), expected_loss, rtol=8 * torch.finfo(torch.float32).eps, atol=0)
        assert torch.equal(grad, expected_grad.view(b, h, w, k * c).permute(0, 3, 1, 2))


@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize(
    ("b", "a", "c", "boxes"), [(0, 7, 5, 3), (2, 0, 5, 3), (2, 7, 0, 0), (2, 7, 5, 0), (0, 0, 0, 0)]
)
def test_empty_dimensions(b: int, a: int, c: int, boxes: int, gamma: float, backend: str, device: str) -> None:
    logits, assigned, labels = to(device, *sample(b=b, a=a, c=c, boxes=boxes))
    loss, grad = run(logits, assigned, labels, gamma=gamma, backend=backend)
    assert (loss.item() == 0) == (b * a * c == 0)
    assert tuple(grad.shape) == (b, a, c)


def test_any_sizes(backend: str, device: str) -> None:
    size = st.integers(0, 20)

    @given(st.integers(0, 3), size, size, st.integers(0, 4), st.integers(0, 99), st.sampled_from([2.0, 1.0]))
    def check(b: int, a: int, c: int, boxes: int, seed: int, gamma: float) -> None:
        logits, assigned, labels = sample(b=b, a=a, c=c, boxes=boxes, seed=seed, dtype=torch.float64)
        leaf = logits.clone().requires_grad_()
        expected = torchvision_loss(leaf, assigned, labels, 0.25, gamma)
        loss, grad = run(*to(device, logits, assigned, labels), gamma=gamma, backend=backend)
        torch.testing.assert_close(loss.cpu(), expected.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(grad.cpu(), torch.autograd.grad(expected, leaf)[0], rtol=1e-10, atol=1e-13)

    check()


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    # Three anchors a gigabyte apart; the memory between them is never touched, so the system need not provide it.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    far = 2**30 + 5
    logits, assigned, labels = torch.randn(3, 3, 2).half(), torch.tensor([[0, -1, -2]] * 3), [torch.tensor([1])] * 3
    expected = run(logits, assigned, labels, backend=backend)
    for strides in ((far, 2, 1), (2, far, 1)):
        spread = torch.empty_strided((3, 3, 2), strides, dtype=torch.float16)
        for image in range(3):
            same = logits.clone()
            part = spread[:1] if strides[1] == far else spread[image : image + 1]
            part.copy_(same[image : image + 1])
            got = run(part, assigned[:1], labels[:1], backend=backend)
            wanted = run(same[image : image + 1], assigned[:1], labels[:1], backend=backend)
            assert all(map(torch.equal, got, wanted))
        if strides[0] == far:
            loss, grad = run(spread, assigned, labels, backend=backend)
            torch.testing.assert_close(loss, expected[0], rtol=8 * torch.finfo(torch.float32).eps, atol=0)
            assert torch.equal(grad, expected[1])
        del spread


def test_repeats_and_threads_give_the_same_bits(backend: str, device: str) -> None:
    arguments = to(device, *sample(b=3, a=9000, c=7))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 8, 1, 1):
            torch.set_num_threads(count)
            results.append(run(*arguments, backend=backend))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


LOGITS, ASSIGNED, LABELS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), [torch.tensor([1])] * 2


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"logits": 1.0}, TypeError, "logits must be a tensor or a list of tensors, got float"),
        ({"logits": []}, ValueError, "logits must hold at least one level, got an empty list"),
        ({"logits": [LOGITS, 2]}, TypeError, r"logits\[1\] must be a tensor, got int"),
        ({"logits": LOGITS.int()}, TypeError, r"logits must be float32, .* got torch\.int32"),
        ({"logits": LOGITS[0]}, ValueError, r"logits must have shape \[B, A, C\], got \[3, 4\]"),
        ({"logits": [LOGITS, LOGITS.half()]}, TypeError, r"logits\[1\] must have the dtype of logits\[0\]"),
        ({"logits": [LOGITS, LOGITS.to("meta")]}, ValueError, r"logits\[1\] must be on the device of logits\[0\], cpu"),
        ({"logits": [LOGITS, LOGITS[:, :, :2]]}, ValueError, r"B and C of logits\[0\], \[2, 3, 4\], got \[2, 3, 2\]"),
        ({"logits": [LOGITS, LOGITS[:1]]}, ValueError, r"B and C of logits\[0\], \[2, 3, 4\], got \[1, 3, 4\]"),
        ({"logits": [LOGITS, LOGITS]}, ValueError, r"assigned must have shape \[B, A\], \[2, 6\], got \[2, 3\]"),
        ({"assigned": ASSIGNED[0]}, ValueError, r"assigned must have shape \[B, A\], \[2, 3\], got \[3\]"),
        ({"assigned": ASSIGNED.int()}, TypeError, r"assigned must be an int64 tensor, got torch\.int32"),
        ({"assigned": None}, TypeError, "assigned must be an int64 tensor, got NoneType"),
        ({"assigned": ASSIGNED.to("meta")}, ValueError, "assigned must be on the device of logits, cpu, got meta"),
        ({"labels": torch.zeros(2, 1).long()}, TypeError, "labels must be a list of tensors, one an image, got Tensor"),
        ({"labels": LABELS[:1]}, ValueError, "labels must hold one tensor for each of the 2 images, got 1"),
        ({"labels": [*LABELS[:1], torch.ones(1)]}, TypeError, r"labels\[1\] must be an int64 tensor, got torch\.float"),
        ({"labels": [*LABELS[:1], LABELS[0][None]]}, ValueError, r"labels\[1\] must have shape \[G\], got \[1, 1\]"),
        ({"labels": [LABELS[0].to("meta")] * 2}, ValueError, r"labels\[0\] must be on the device of logits, cpu"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got str"),
        ({"alpha": 1.5}, ValueError, r"alpha must be in 0\.\.1, got 1\.5"),
        ({"alpha": math.nan}, ValueError, r"alpha must be in 0\.\.1, got nan"),
        ({"gamma": -0.5}, ValueError, r"gamma must be finite and not negative, got -0\.5"),
        ({"gamma": math.inf}, ValueError, "gamma must be finite and not negative, got inf"),
        ({"gamma": None}, TypeError, "gamma must be a number, got NoneType"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": LOGITS, "assigned": ASSIGNED, "labels": LABELS, **changed}
    with pytest.raises(error, match=message):
        sigmoid_focal_loss(**arguments)
