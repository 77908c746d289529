"""What only a GPU can show of the kernels: launches, waiting for the device, streams, devices, large tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from kernel_oracles import pyramid, random_boxes
from test_kernel_operators import operator_samples
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from zoominnet.kernels import (
    AnchorGrid,
    akdp_mask,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Without a GPU the tests are collected, as they would run on one with everything built, and skipped.
FAST = [
    (operation, backend)
    for operation, states in available_backends("cuda").items()
    for backend, state in states.items()
    if backend != "reference" and (state == "ok" or not torch.cuda.is_available())
]
each_backend = pytest.mark.parametrize(("operation", "backend"), FAST)
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _as_in_training(_unwritten_memory_shows: None) -> None:
    """Without the filling of fresh memory, which launches kernels of its own."""
    torch.use_deterministic_algorithms(False)


class Call(NamedTuple):
    """An operation on a GPU, with its gradient if it has one."""

    inputs: list[Tensor]
    function: Callable[[list[Tensor]], list[Tensor]]

    def __call__(self) -> list[Tensor]:
        return self.function(self.inputs)


def detector_grids(device: str = "cuda") -> list[AnchorGrid]:
    return [grid.to(device) for grid in pyramid([(128, 128), (64, 64), (32, 32), (16, 16), (8, 8)], anchors=9)]


def prepare(operation: str, backend: str, device: str = "cuda") -> Call:
    if operation in ("akdp_mask", "max_iou_assign"):
        grids = detector_grids(device)
        images = [random_boxes(54 - b, 512, seed=b).to(device) for b in range(16)]
        if operation == "akdp_mask":
            return Call(images, lambda images: list(akdp_mask(grids, images, backend=backend)))
        # Both rules: with `own_best` the last of several boxes, whatever the order of the threads.
        return Call(
            images,
            lambda images: [
                *(row for own in (False, True) for row in max_iou_assign(grids, images, own_best=own, backend=backend))
            ],
        )
    generator = torch.Generator().manual_seed(0)
    if operation == "sigmoid_focal_loss":
        levels = [torch.randn(3, a, 10, generator=generator).to(device) for a in (9000, 100)]
        assigned = torch.randint(-2, 5, (3, 9100), generator=generator).to(device)
        labels = [torch.randint(10, (5 + b,), generator=generator).to(device) for b in range(3)]

        def classify(inputs: list[Tensor]) -> list[Tensor]:
            leaves = [level.detach().requires_grad_() for level in inputs[:2]]
            loss = sigmoid_focal_loss(leaves, inputs[2], inputs[3:], backend=backend)
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]

        return Call([*levels, assigned, *labels], classify)
    student, teacher = (torch.randn(2, 16, 24 * n, 32 * n, generator=generator).to(device) for n in (1, 2))
    mask = (torch.rand(2, 48, 64, generator=generator) < 0.3).to(device)

    def distill(inputs: list[Tensor]) -> list[Tensor]:
        leaf = inputs[0].detach().requires_grad_()
        loss = pa_l2_loss(leaf, *inputs[1:], backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, leaf)]

    def upsample(inputs: list[Tensor]) -> list[Tensor]:
        leaf = inputs[0].detach().requires_grad_()
        out = upsample_nearest2x(leaf, inputs[1], backend=backend)
        return [out.detach(), *torch.autograd.grad(out, leaf, inputs[1])]

    return Call([student, teacher, mask], distill) if operation == "pa_l2_loss" else Call([student, teacher], upsample)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@each_backend
def test_never_waits_for_the_device(operation: str, backend: str) -> None:
    run = prepare(operation, backend)
    expected = run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(got, expected)


@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "akdp_mask"])
def test_mask_takes_four_launches(backend: str) -> None:
    grids = detector_grids()
    boxes, counts = random_boxes(864, 512).cuda(), [54] * 16
    arguments = ([grid.base_anchors for grid in grids], [s for grid in grids for s in grid.stride])
    shapes = [size for grid in grids for size in grid.shape]
    operator = getattr(torch.ops.zoominnet, f"akdp_mask_{backend}").default
    operator(boxes, counts, *arguments, shapes, 0, 0.0, False)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        operator(boxes, counts, *arguments, shapes, 0, 0.0, False)
        torch.cuda.synchronize()
    work = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 1 <= len(work) <= 4, work


@each_backend
def test_repeats_give_the_same_bits(operation: str, backend: str) -> None:
    run = prepare(operation, backend)
    expected = run()
    for _ in range(20):
        assert same(run(), expected)


@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "akdp_mask"])
def test_memory_of_2000_boxes_an_image(backend: str) -> None:
    grids = detector_grids()
    images = [random_boxes(2000, 512, seed=b).cuda() for b in range(16)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    akdp_mask(grids, images, backend=backend)
    assert torch.cuda.max_memory_allocated() - before <= 32 << 20


@each_backend
def test_waits_for_what_its_stream_waits_for(operation: str, backend: str) -> None:
    run = prepare(operation, backend)
    expected = run()
    late = [torch.zeros_like(x) for x in run.inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles, so some 50 ms; the calls below return long before
        for to, x in zip(late, run.inputs, strict=True):
            to.copy_(x)
        got = run.function(late)
    stream.synchronize()
    assert same(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@each_backend
def test_second_device(operation: str, backend: str) -> None:
    expected = prepare(operation, backend, "cuda:0")()
    got = prepare(operation, backend, "cuda:1")()
    assert torch.cuda.current_device() == 0
    assert {x.device for x in got} == {torch.device("cuda:1")}
    assert same([x.to("cuda:0") for x in got], expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("name", ["akdp_mask", "pa_l2_loss", "sigmoid_focal_loss"])
def test_native_operators_refuse_tensors_of_two_devices(name: str) -> None:
    sample = pytree.tree_map(lambda x: x.cuda() if isinstance(x, Tensor) else x, operator_samples()[name][0])
    at = 1 if name == "pa_l2_loss" else 2  # the teacher; the base anchors, or the labels
    elsewhere = pytree.tree_map(lambda x: x.to("cuda:1"), sample[at])
    sample = (*sample[:at], elsewhere, *sample[at + 1 :])
    with pytest.raises(RuntimeError, match="must be on the device of"):
        getattr(torch.ops.zoominnet, f"{name}_native").default(*sample)


@each_backend
def test_opcheck(operation: str, backend: str) -> None:
    for name, samples in operator_samples().items():
        if name.removesuffix("_dense").removesuffix("_backward") == operation:
            for sample in samples:
                on_device = pytree.tree_map(lambda x: x.detach().cuda() if isinstance(x, Tensor) else x, sample)
                torch.library.opcheck(getattr(torch.ops.zoominnet, f"{name}_{backend}").default, on_device)


def too_small() -> bool:
    return not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40 * GIB


large = pytest.mark.skipif(too_small(), reason="needs a CUDA device with 40 GiB")


@large
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "upsample_nearest2x"])
def test_upsample_beyond_32_bits(backend: str, layout: torch.memory_format) -> None:
    # 2^31 + 2^23 elements in the large map.
    x = torch.empty((257, 32, 256, 256), dtype=torch.float16, device="cuda", memory_format=layout)
    x.copy_((torch.arange(256, device="cuda") % 251).to(torch.float16))
    x += torch.arange(257, device="cuda").view(-1, 1, 1, 1).to(torch.float16)
    x.requires_grad_()
    out = upsample_nearest2x(x, backend=backend)
    assert out.numel() > 1 << 31
    for b in (0, 128, 255, 256):
        assert torch.equal(out[b], x[b].repeat_interleave(2, 1).repeat_interleave(2, 2))
    (grad,) = torch.autograd.grad(out, x, out.detach())
    for b in (0, 255, 256):
        assert torch.equal(grad[b], (4 * x[b].detach().float()).half())


@large
@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "pa_l2_loss"])
def test_loss_beyond_32_bits(backend: str) -> None:
    student = torch.zeros((257, 32, 256, 256), dtype=torch.float16, device="cuda").requires_grad_()
    teacher = torch.zeros((257, 32, 512, 512), dtype=torch.float16, device="cuda")
    mask = torch.zeros((257, 512, 512), dtype=torch.bool, device="cuda")
    for b, i, j in [(0, 3, 4), (255, 511, 511), (256, 510, 509), (256, 511, 511)]:
        mask[b, i, j] = True
        teacher[b, :, i, j] = 2
    loss = pa_l2_loss(student, teacher, mask, backend=backend)
    assert loss.item() == 4 * 32
    loss.backward()
    assert student.grad.count_nonzero().item() == 4 * 32
    assert (student.grad[256, :, 255, 255] == -1).all()  # 2 * (0 - 2) / 4


@large
@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "sigmoid_focal_loss"])
def test_focal_loss_beyond_32_bits(backend: str) -> None:
    # 2^31 + 2^24 logits, each nearly certain that there is nothing but in the first and the last anchor, with log(2) / 4.
    logits = torch.full((257, 1 << 20, 8), -1e4, dtype=torch.float16, device="cuda")
    assigned = torch.full((257, 1 << 20), -1, device="cuda")
    for b, a in ((0, 0), (256, -1)):
        logits[b, a], assigned[b, a] = 0, 0
    labels = [torch.tensor([7], device="cuda")] * 257
    loss = sigmoid_focal_loss(logits.requires_grad_(), assigned, labels, backend=backend)
    assert loss.item() == pytest.approx(2 * (7 * 0.75 + 0.25) * math.log(2) / 4, rel=1e-6)
    loss.backward()
    assert sum(int(grad.count_nonzero()) for grad in logits.grad) == 16
    for b, a in ((0, 0), (256, -1)):
        assert logits.grad[b, a].sign().tolist() == [1] * 7 + [-1]


@large
@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "max_iou_assign"])
def test_assignment_beyond_32_bits(backend: str) -> None:
    # 2^31 + 2^25 anchors of the whole batch; the first and the last image have a box on one of their last anchors.
    (grid,) = pyramid([(4096, 1024)], anchors=1)
    grid = grid.to("cuda")
    on_anchor = grid.base_anchors + torch.tensor([1023.0, 4095.0, 1023.0, 4095.0], device="cuda") * 4
    images = [on_anchor if b in (0, 519) else on_anchor[:0] for b in range(520)]
    for own in (False, True):
        assigned = max_iou_assign(grid, images, own_best=own, backend=backend)
        for b in (0, 1, 519):
            matched = (assigned[b] >= 0).nonzero().flatten().tolist()
            assert matched == ([4096 * 1024 - 1] if b != 1 else [])
        del assigned  # 17 GB


@large
@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "akdp_mask"])
def test_mask_beyond_32_bits(backend: str) -> None:
    (grid,) = pyramid([(4096, 1024)], anchors=1)
    grid = grid.to("cuda")
    on_anchor = grid.base_anchors + torch.tensor([1023.0, 4095.0, 1023.0, 4095.0], device="cuda") * 4
    images = [on_anchor if b in (0, 519) else on_anchor[:0] for b in range(520)]
    mask = akdp_mask(grid, images, threshold=0.9, backend=backend)
    assert mask.numel() > 1 << 31
    for b in (0, 1, 519):
        assert mask[b].nonzero().tolist() == ([[4095, 1023]] if b != 1 else [])


@pytest.mark.parametrize("backend", [backend for operation, backend in FAST if operation == "pa_l2_loss"])
def test_offsets_beyond_32_bits(backend: str) -> None:
    # Three cells 2^30 elements apart, in 2 GiB.
    mask = torch.empty(2**31 + 11, dtype=torch.bool, device="cuda").as_strided((3, 1, 1), (2**30 + 5, 1, 1))
    mask.copy_(torch.tensor([True, False, True]).view(3, 1, 1))
    student = torch.tensor([1.0, 2.0, 3.0], device="cuda").view(3, 1, 1, 1)
    assert pa_l2_loss(student, torch.zeros_like(student), mask, backend=backend).item() == 5  # (1 + 9) / 2
