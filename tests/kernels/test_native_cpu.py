"""What the C++ kernels alone could get wrong: tails and offsets, rounded coordinates, long strides, threads, arguments."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import pyramid, random_boxes
from native_digest import digest
from torch import Tensor

from zoominnet.kernels import (
    AnchorGrid,
    akdp_mask,
    akdp_stats,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)

STATE = available_backends("cpu")["akdp_mask"]["native"]
pytestmark = pytest.mark.skipif(STATE != "ok", reason=f"native backend {STATE}")

HERE = Path(__file__).parent
HALVES = [torch.float16, torch.bfloat16]
BACKENDS = ("native", "reference")


def at_offset(x: Tensor, offset: int) -> Tensor:
    """`x`, in its memory format, `offset` elements off the start of its storage, among NaN (or True)."""
    storage = torch.full((x.numel() + offset + 9,), math.nan if x.is_floating_point() else 1).to(x.dtype)
    return storage.as_strided(x.shape, x.stride(), offset).copy_(x)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("odd", [1, 3, 31, 33, 127, 129])
def test_offsets_and_odd_sizes_of_features(odd: int, dtype: torch.dtype, form: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(odd)
    c, w = (3, odd) if form == torch.contiguous_format else (odd, 3)

    def features(width: int, height: int) -> Tensor:
        return torch.randn(2, c, height, width, generator=generator).to(dtype).contiguous(memory_format=form)

    small, large = features(w, 2), features(2 * w, 4)
    for offset in range(8):
        x, add, grad = (at_offset(value, (offset * step) % 8) for value, step in ((small, 1), (large, 3), (large, 5)))
        for teacher in (add, at_offset(small + 1, offset)):
            mask = at_offset(torch.rand(2, *teacher.shape[2:], generator=generator) < 0.4, offset)
            losses, grads = [], []
            for backend in BACKENDS:
                leaf = x.detach().requires_grad_()
                losses.append(pa_l2_loss(leaf, teacher, mask, backend=backend))
                grads.append(torch.autograd.grad(losses[-1], leaf)[0])
            # The order of the sum differs; its terms are positive.
            torch.testing.assert_close(*losses, rtol=8 * torch.finfo(torch.float32).eps, atol=0)
            assert torch.equal(*grads)
        results = []
        for backend in BACKENDS:
            leaf = x.detach().requires_grad_()
            out = upsample_nearest2x(leaf, add, backend=backend)
            results.append((out, *torch.autograd.grad(out, leaf, grad), upsample_nearest2x(x, backend=backend)))
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 31, 33, 127, 129])
def test_offsets_and_odd_widths_of_levels(width: int, dtype: torch.dtype) -> None:
    grid = pyramid([(3, width)], dtype=dtype)[0]
    boxes = random_boxes(9, 4 * width + 8, seed=width, dtype=dtype)
    # One that covers the level, and one at its last column, where lanes are over.
    boxes = torch.cat([boxes, torch.tensor([[0, 0, 4 * width, 12], [4 * width - 3, 0, 4 * width, 9]], dtype=dtype)])
    for offset in range(8) if dtype == torch.float32 else (0, 5):
        shifted = at_offset(boxes, offset)
        for anchors in (
            AnchorGrid(at_offset(grid.base_anchors, offset), (4, 4), (3, width)),
            at_offset(grid.boxes(), offset),
        ):
            assert_same(anchors, shifted)


def assert_same(anchors: Any, boxes: Any) -> None:
    """Compares `native` with `reference`: equal, but for the order of the sums in lambda."""
    (stats, expected) = (akdp_stats(anchors, boxes, backend=backend) for backend in BACKENDS)
    assert torch.equal(stats.max_iou, expected.max_iou)
    # Where all IoUs are nearly equal, the deviation is known to the square root of the unit of rounding.
    assert stats.lam.item() == pytest.approx(expected.lam.item(), rel=1e-12, abs=2e-8)
    for threshold in (0.4, 0.9):
        assert torch.equal(*(akdp_mask(anchors, boxes, threshold=threshold, backend=b) for b in BACKENDS))
    for options in ({}, {"own_best": True}, {"positive": 0.3, "negative": 0.0}, {"allow_low_quality": False}):
        assert torch.equal(*(max_iou_assign(anchors, boxes, **options, backend=b) for b in BACKENDS))


strides = st.sampled_from([1e-320, 1e-40, 1e-7, 0.1, 1 / 3, 1.7, 8.0, 1e5, 1e20, 3e38, 1e300])
coordinates = st.one_of(
    st.integers(-8, 60).map(float),
    st.floats(-8, 60, width=32),
    st.sampled_from([math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-42, 16777217.0, -1e7]),
)


@given(
    st.tuples(strides, strides),
    st.tuples(st.integers(0, 5), st.integers(0, 20)),
    st.lists(st.lists(coordinates, min_size=4, max_size=4), max_size=3),
    st.lists(st.lists(coordinates, min_size=4, max_size=4), max_size=6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_grid(
    stride: tuple[float, float], shape: tuple[int, int], base: list, boxes: list, dtype: torch.dtype
) -> None:
    # Strides so small that columns share their coordinates, so large that these overflow, far from the origin.
    gt = torch.tensor(boxes, dtype=dtype).reshape(-1, 4)
    assert_same(AnchorGrid(torch.tensor(base, dtype=dtype).reshape(-1, 4), stride, shape), gt)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_precision_value(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    # Without an addend bits are copied, those of NaNs as well.
    copied = upsample_nearest2x(every, backend="native")
    assert torch.equal(copied.view(torch.int16)[:, :, ::2, ::2], every.view(torch.int16))
    # -0 makes each value itself again, after it was float32 in between.
    summed = upsample_nearest2x(every, torch.full_like(copied, -0.0), backend="native")
    torch.testing.assert_close(summed, copied, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(summed.signbit() & ~summed.isnan(), copied.signbit() & ~copied.isnan())


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_half_precision(dtype: torch.dtype) -> None:
    # Sums of four values of any magnitude: ties, subnormal results, overflow, NaN.
    bits = torch.randint(-(2**15), 2**15, (1, 1, 1024, 1024), generator=torch.Generator().manual_seed(0))
    grad = bits.to(torch.int16).view(dtype)
    grad[..., 1::2, :] = 0  # else nearly all sums are those of the greatest values
    grad[..., ::2, 1::4] = -grad[..., ::2, ::4] * 0.998
    results = [getattr(torch.ops.zoominnet, f"upsample_nearest2x_backward_{backend}")(grad) for backend in BACKENDS]
    assert (results[0].abs() < torch.finfo(dtype).smallest_normal).sum() > 1000
    assert results[0].isinf().any()
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def spread(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose third part begins beyond 2^31 elements; memory that is not touched need not be provided."""
    inner = torch.empty(shape[1:]).stride()
    return torch.empty_strided(shape, (2**30 + 5, *inner), dtype=dtype)


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is provided when it is touched")
def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    boxes, far_boxes = random_boxes(3, 20).half(), spread((3, 4), torch.float16)
    far_boxes.copy_(boxes)
    grid = pyramid([(5, 4)])[0]
    assert_same(grid, far_boxes)
    assert torch.equal(max_iou_assign(grid, far_boxes, backend="native"), max_iou_assign(grid, boxes, backend="native"))
    assert_same(far_boxes.view(3, 1, 1, 4), boxes)
    assert_same(AnchorGrid(far_boxes, (4.0, 4.0), (3, 9)), boxes)
    del far_boxes

    student, teacher = torch.randn(3, 1, 1, 2).half(), spread((3, 1, 2, 4), torch.float16)
    teacher.copy_(torch.randn(3, 1, 2, 4))
    mask = torch.rand(3, 2, 4) < 0.5
    grads = []
    for far in (teacher, teacher.contiguous()):
        leaf = student.clone().requires_grad_()
        pa_l2_loss(leaf, far, mask, backend="native").backward()
        out = upsample_nearest2x(student, far, backend="native")
        grads.append((leaf.grad, out, torch.ops.zoominnet.upsample_nearest2x_backward_native(far)))
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("c", [1, 3, 7, 8, 9, 31])
def test_offsets_and_odd_numbers_of_classes(c: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(c)
    assigned = torch.tensor([[-1, -1, 0, -1, -2, 1, -1, -1, -1, -2, -2, 0, -1]])
    logits = torch.randn(1, 13, c, generator=generator).mul_(3).to(dtype)
    labels = [torch.tensor([c - 1, c // 2])]
    for offset in range(8):
        results = []
        for backend in BACKENDS:
            leaf = at_offset(logits, offset).requires_grad_()
            loss = sigmoid_focal_loss(leaf, at_offset(assigned, offset), labels, backend=backend)
            results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        info = torch.finfo(dtype)
        rtol = 16 * torch.finfo(results[0][0].dtype).eps  # terms of 8 units on both sides
        torch.testing.assert_close(results[0][0], results[1][0], rtol=rtol, atol=0)
        rounded = info.eps if info.bits == 16 else 0
        torch.testing.assert_close(results[0][1], results[1][1], rtol=rtol + rounded, atol=info.smallest_normal)


def test_threads_and_repeats_give_the_same_bits() -> None:
    threads = torch.get_num_threads()
    try:
        digests = set()
        for count in (1, 2, 8, *[2] * 17):
            torch.set_num_threads(count)
            digests.add(digest())
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_instruction_sets_give_the_same_bits(capability: str) -> None:
    # A processor without the set takes a lesser one, which makes this no more than a repeat.
    done = subprocess.run(
        [sys.executable, HERE / "native_digest.py"],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest()


MEMORY = """
import resource, torch
from kernel_oracles import pyramid, random_boxes
from zoominnet.kernels import akdp_mask, max_iou_assign
grids = pyramid([(128 >> level, 128 >> level) for level in range(5)], anchors=9)
few, many = random_boxes(1, 600), random_boxes(2000, 600)
calls = [lambda b: akdp_mask(grids, b, backend="native"), lambda b: max_iou_assign(grids, b, backend="native")]
for call in calls:
    call(few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(many)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in KiB")
def test_memory_of_2000_boxes() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=HERE, capture_output=True, text=True, check=True)
    assert all(float(mebibytes) < 8 for mebibytes in done.stdout.split())


FOCAL_MEMORY = """
import resource, sys, torch
from zoominnet.kernels import sigmoid_focal_loss

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(anchors):
    levels = [torch.randn(2, anchors, 10, requires_grad=True) for _ in range(2)]
    before = peak()
    loss = sigmoid_focal_loss(levels, torch.full((2, 2 * anchors), -1), [torch.zeros(0).long()] * 2, backend=sys.argv[1])
    forward = peak()
    loss.backward()
    return forward - before, peak() - before

run(100)
print(*run(2**18))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in KiB")
@pytest.mark.parametrize(("backend", "more"), [("native", 6), ("reference", 80)])
def test_memory_of_the_focal_loss(backend: str, more: float) -> None:
    # 40 MiB of logits: their gradient, 8 MiB of int64 for the assignment, which is made within, and next to nothing; of the
    # reference a chunk's terms and the anchors' classes.
    command = [sys.executable, "-c", FOCAL_MEMORY, backend]
    forward, both = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert forward < 8 + more
    assert both < 40 + 8 + more


BOXES, GRID = torch.zeros(3, 4), ([torch.zeros(2, 4)], [4.0, 4.0], [5, 6])
STUDENT, TEACHER, MASK = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 8, 10), torch.zeros(2, 8, 10, dtype=torch.bool)
ONE, COUNT = torch.tensor(1.0), torch.tensor(1)
LEVELS, INDEX = [torch.zeros(2, 3, 4), torch.zeros(2, 1, 4)], torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("akdp_mask", (BOXES[0], [3], *GRID, 0, 0.0, False), "boxes must have 2 dimensions, got 1"),
        ("akdp_mask", (BOXES[:, :3], [3], *GRID, 0, 0.0, False), "boxes must have size 4 in dimension 1, got 3"),
        ("akdp_mask", (BOXES.int(), [3], *GRID, 0, 0.0, False), "boxes must be float32, float64, float16 or bfloat16"),
        ("akdp_mask", (BOXES.to_sparse(), [3], *GRID, 0, 0.0, False), "boxes must be a dense tensor|SparseCPU"),
        ("akdp_mask", (BOXES, [1, 1], *GRID, 0, 0.0, False), "counts must sum to the 3 boxes, got 2"),
        ("akdp_mask", (BOXES, [4, -1], *GRID, 0, 0.0, False), "counts must not be negative, got -1"),
        ("akdp_mask", (BOXES, [2**63 - 1, 5], *GRID, 0, 0.0, False), "counts are too large"),
        ("akdp_mask", (BOXES, [3], GRID[0], [4.0], [5, 6], 0, 0.0, False), "two values for each of the 1 levels"),
        ("akdp_mask", (BOXES, [3], GRID[0], [4.0, 0.0], [5, 6], 0, 0.0, False), "strides must be positive and finite"),
        ("akdp_mask", (BOXES, [3], GRID[0], [4.0, math.nan], [5, 6], 0, 0.0, False), "strides must be positive"),
        ("akdp_mask", (BOXES, [3], GRID[0], [4.0, 4.0], [5, -6], 0, 0.0, False), "shapes must not be negative, got -6"),
        ("akdp_mask", (BOXES, [3], GRID[0], [4.0, 4.0], [2**40, 2**40], 0, 0.0, False), "are too large together"),
        ("akdp_mask", (BOXES, [3], [BOXES.long()], [4.0, 4.0], [5, 6], 0, 0.0, False), "base_anchors must be float32"),
        ("akdp_mask", (BOXES, [3], [BOXES[0]], [4.0, 4.0], [5, 6], 0, 0.0, False), "base_anchors must have 2 dim"),
        ("akdp_mask", (BOXES, [3], *GRID, 3, 0.0, False), "mode must be 0, 1 or 2, got 3"),
        ("akdp_mask", (BOXES, [3], *GRID, 2, -0.5, False), "factor must not be negative, got -0.5"),
        ("akdp_mask_dense", (BOXES, [3], BOXES, 0, 0.0), "anchors must have 4 dimensions, got 2"),
        ("akdp_mask_dense", (BOXES, [3], BOXES.view(1, 4, 1, 3), 0, 0.0), "anchors must have size 4 in dimension 3"),
        ("akdp_mask_dense", (BOXES, [3], BOXES.view(1, 3, 1, 4).int(), 0, 0.0), "anchors must be float32"),
        ("max_iou_assign", (BOXES, [2], *GRID, 0.5, 0.4, True, False), "counts must sum to the 3 boxes, got 2"),
        (
            "max_iou_assign",
            (BOXES, [3], *GRID, 0.5, 0.6, True, True),
            "0 <= negative <= positive <= 1, got negative=0.6",
        ),
        ("max_iou_assign", (BOXES, [3], *GRID, 0.5, 0.4, False, True), "own_best needs allow_low_quality"),
        ("max_iou_assign_dense", (BOXES, [3], BOXES, 0.5, 0.4, False, True), "own_best needs allow_low_quality"),
        (
            "max_iou_assign_dense",
            (BOXES, [3], BOXES[None], 0.5, 0.4, True, False),
            "anchors must have 2 dimensions, got 3",
        ),
        (
            "max_iou_assign_dense",
            (BOXES, [3], BOXES[:, :3], 0.5, 0.4, True, False),
            "anchors must have size 4 in dimension 1",
        ),
        ("pa_l2_loss", (STUDENT[0], TEACHER, MASK, False), "student must have 4 dimensions, got 3"),
        ("pa_l2_loss", (STUDENT, TEACHER.double(), MASK, False), "teacher must have the dtype of student"),
        ("pa_l2_loss", (STUDENT, TEACHER[:, :, 1:], MASK, False), "teacher must have size 8 in dimension 2, got 7"),
        ("pa_l2_loss", (STUDENT, TEACHER, MASK.int(), False), "mask must be bool"),
        ("pa_l2_loss", (STUDENT, TEACHER, MASK[:, :4], False), "mask must have size 8 in dimension 1, got 4"),
        ("pa_l2_loss", (STUDENT.int(), TEACHER.int(), MASK, False), "student must be float32"),
        ("pa_l2_loss_backward", (COUNT, STUDENT, TEACHER, MASK, COUNT, False), "grad_out must have the dtype of"),
        ("pa_l2_loss_backward", (ONE[None], STUDENT, TEACHER, MASK, COUNT, False), "grad_out must have 0 dimensions"),
        ("pa_l2_loss_backward", (ONE, STUDENT, TEACHER, MASK, ONE, False), "count must be int64"),
        ("sigmoid_focal_loss", ([], INDEX, INDEX, 0.25, 2.0), "logits must hold at least one level"),
        ("sigmoid_focal_loss", ([ONE], INDEX, INDEX, 0.25, 2.0), "logits must have 3 dimensions, got 0"),
        ("sigmoid_focal_loss", ([*LEVELS, LEVELS[0].half()], INDEX, INDEX, 0.25, 2.0), "the dtype of logits.0."),
        ("sigmoid_focal_loss", ([*LEVELS, LEVELS[0][:1]], INDEX, INDEX, 0.25, 2.0), "size 2 in dimension 0, got 1"),
        (
            "sigmoid_focal_loss",
            ([*LEVELS, LEVELS[0][..., :1]], INDEX, INDEX, 0.25, 2.0),
            "size 4 in dimension 2, got 1",
        ),
        ("sigmoid_focal_loss", ([LEVELS[0].int()], INDEX[:, :3], INDEX, 0.25, 2.0), "logits must be float32"),
        ("sigmoid_focal_loss", (LEVELS, INDEX[0], INDEX, 0.25, 2.0), "assigned must have 2 dimensions, got 1"),
        (
            "sigmoid_focal_loss",
            (LEVELS, INDEX[:, :3], INDEX, 0.25, 2.0),
            "assigned must have size 4 in dimension 1, got 3",
        ),
        (
            "sigmoid_focal_loss",
            (LEVELS, INDEX[:1], INDEX, 0.25, 2.0),
            "assigned must have size 2 in dimension 0, got 1",
        ),
        ("sigmoid_focal_loss", (LEVELS, INDEX.int(), INDEX, 0.25, 2.0), "assigned must be int64"),
        ("sigmoid_focal_loss", (LEVELS, INDEX, INDEX[0], 0.25, 2.0), "labels must have 2 dimensions, got 1"),
        ("sigmoid_focal_loss", (LEVELS, INDEX, INDEX[:1], 0.25, 2.0), "labels must have size 2 in dimension 0, got 1"),
        ("sigmoid_focal_loss", (LEVELS, INDEX, INDEX.int(), 0.25, 2.0), "labels must be int64"),
        ("sigmoid_focal_loss", (LEVELS, INDEX, INDEX, 1.25, 2.0), "alpha must be in .0, 1., got 1.25"),
        (
            "sigmoid_focal_loss",
            (LEVELS, INDEX, INDEX, 0.25, math.nan),
            "gamma must be finite and not negative, got nan",
        ),
        ("sigmoid_focal_loss_backward", (COUNT, LEVELS, INDEX, INDEX, 0.25, 2.0), "grad_out must have the dtype of"),
        (
            "sigmoid_focal_loss_backward",
            (ONE[None], LEVELS, INDEX, INDEX, 0.25, 2.0),
            "grad_out must have 0 dimensions",
        ),
        ("upsample_nearest2x", (STUDENT[0], None), "x must have 4 dimensions, got 3"),
        ("upsample_nearest2x", (STUDENT.bool(), None), "x must be float32, float64, float16 or bfloat16"),
        ("upsample_nearest2x", (STUDENT, TEACHER.half()), "add must have the dtype of x"),
        ("upsample_nearest2x", (STUDENT, STUDENT), "add must have size 8 in dimension 2, got 4"),
        ("upsample_nearest2x_backward", (STUDENT,), "grad_out must have an even height and width, got 4 and 5"),
    ],
)
def test_entries_check_their_arguments(operation: str, arguments: tuple[Any, ...], message: str) -> None:
    # The public functions refuse these as well; the operators can be called by themselves.
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        getattr(torch.ops.zoominnet, f"{operation}_native")(*arguments)
