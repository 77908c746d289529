"""Inputs on which the fast kernels take other ways than on small ones: packs of values, long batches, wide pyramids."""

from __future__ import annotations

import pytest
import torch
from kernel_oracles import pyramid, random_boxes
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

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FAST = {
    operation: [
        (backend, device)
        for device in DEVICES
        for backend, state in available_backends(device)[operation].items()
        if state == "ok" and backend != "reference"
    ]
    for operation in ("akdp_mask", "max_iou_assign", "pa_l2_loss", "sigmoid_focal_loss", "upsample_nearest2x")
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# (C, h, w): packs of 4 and 8 values along rows and channels; along one of them; along neither; packs of channels that are
# no multiple of how many a thread takes.
SIZES = [(16, 3, 8), (16, 2, 5), (3, 3, 16), (5, 3, 7), (8, 1, 1), (24, 2, 3)]


def random_map(*shape: int, dtype: torch.dtype, layout: str, device: str, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(device, dtype).contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize(("backend", "place"), FAST["pa_l2_loss"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [1, 2])
def test_loss(
    factor: int, size: tuple[int, int, int], layout: str, dtype: torch.dtype, backend: str, place: str
) -> None:
    c, h, w = size
    options = {"dtype": dtype, "layout": layout, "device": place}
    student = random_map(2, c, h, w, seed=0, **options)
    teacher = random_map(2, c, factor * h, factor * w, seed=1, **options)
    mask = (torch.rand(2, factor * h, factor * w, generator=torch.Generator().manual_seed(2)) < 0.4).to(place)
    # Values that must not be touched.
    teacher.masked_fill_(~mask[:, None], float("nan"))
    results = []
    for name in ("reference", backend):
        leaf = student.clone(memory_format=torch.preserve_format).requires_grad_()
        loss = pa_l2_loss(leaf, teacher, mask, backend=name)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (expected, expected_grad), (loss, grad) = results
    # The order of the sum is free; its terms are positive and few.
    torch.testing.assert_close(loss, expected, rtol=8 * torch.finfo(expected.dtype).eps, atol=0)
    assert torch.equal(grad, expected_grad)
    assert grad.stride() == expected_grad.stride()


@pytest.mark.parametrize(("backend", "place"), FAST["pa_l2_loss"])
@pytest.mark.parametrize(("size", "layout"), [((1, 1032, 1024), "contiguous"), ((4, 520, 512), "channels_last")])
def test_loss_of_more_cells_than_threads(size: tuple[int, int, int], layout: str, backend: str, place: str) -> None:
    # On CUDA the sum is made by at most 2^18 threads, of which each takes four cells or, here, four channels at a time.
    c, h, w = size
    student, teacher = (
        random_map(1, c, h, w, dtype=torch.float32, layout=layout, device=place, seed=seed) for seed in (0, 1)
    )
    mask = torch.zeros(1, h, w, dtype=torch.bool, device=place)
    mask[:, [0, h // 2, h - 2, h - 1]] = True
    exact = ((student - teacher).double() ** 2 * mask[:, None]).sum() / mask.sum()
    loss = pa_l2_loss(student, teacher, mask, backend=backend)
    # The terms are positive; most are added in float64.
    assert loss.item() == pytest.approx(exact.item(), rel=8 * torch.finfo(torch.float32).eps, abs=0)


# Classes that a pack or a group of eight holds whole, that lie across them, more than one; more anchors than one step or
# piece takes, and less than one.
@pytest.mark.parametrize(("backend", "place"), FAST["sigmoid_focal_loss"])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("c", "anchors"), [(1, (9000, 8)), (8, (1100, 3)), (10, (1000, 16, 4)), (3, (8,)), (80, (120,))]
)
def test_focal_loss(
    c: int, anchors: tuple[int, ...], dtype: torch.dtype, gamma: float, backend: str, place: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, a, c, generator=generator, dtype=torch.float64).mul_(3).to(place, dtype) for a in anchors]
    assigned = torch.randint(-60, 3, (2, sum(anchors)), generator=generator)  # runs of background, and all kinds
    assigned = assigned.where(assigned >= -2, -1).to(place)
    labels = [torch.randint(c, (3,), generator=generator).to(place) for _ in range(2)]
    results = []
    for name in ("reference", backend):
        leaves = [level.clone().requires_grad_() for level in levels]
        loss = sigmoid_focal_loss(leaves, assigned, labels, gamma=gamma, backend=name)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    eps = torch.finfo(results[0][0].dtype).eps
    # Each side has terms of 8 units, and with a power some more (reference.py); logits are within 15 here.
    rtol = 16 * eps if gamma == 2 else (16 + 2 * gamma * 17) * eps
    torch.testing.assert_close(results[1][0], results[0][0], rtol=rtol, atol=0)
    info = torch.finfo(dtype)
    for got, expected in zip(results[1][1:], results[0][1:], strict=True):
        rounded = info.eps if info.bits == 16 else 0
        torch.testing.assert_close(got, expected, rtol=rtol + rounded, atol=info.smallest_normal * info.eps)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize(("backend", "place"), FAST["upsample_nearest2x"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("add_layout", [None, *FORMATS])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_upsample(
    size: tuple[int, int, int], layout: str, add_layout: str | None, dtype: torch.dtype, backend: str, place: str
) -> None:
    c, h, w = size
    x = random_map(2, c, h, w, dtype=dtype, layout=layout, device=place, seed=0)
    grad = random_map(2, c, 2 * h, 2 * w, dtype=dtype, layout=add_layout or layout, device=place, seed=1)
    add = None if add_layout is None else grad * 3
    results = []
    for name in ("reference", backend):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = upsample_nearest2x(leaf, add, backend=name)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    for got, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize(("backend", "place"), FAST["akdp_mask"])
@pytest.mark.parametrize("scope", ["level", "all"])
def test_mask_of_many_images(scope: str, backend: str, place: str) -> None:
    grids = [grid.to(place) for grid in pyramid([(6, 5), (3, 2)])]
    images = [random_boxes(b % 4, 24, seed=b).to(place) for b in range(260)]
    stats, expected = (akdp_stats(grids, images, scope=scope, backend=name) for name in (backend, "reference"))
    for level, expected_level in zip(stats, expected, strict=True):
        torch.testing.assert_close(level.lam, expected_level.lam, rtol=1e-12, atol=0)  # the order of the sums is free
        assert all(map(torch.equal, level.max_iou, expected_level.max_iou))
    # A fixed factor leaves nothing to the order of sums.
    masks, expected_masks = (akdp_mask(grids, images, threshold=0.5, backend=n) for n in (backend, "reference"))
    assert all(map(torch.equal, masks, expected_masks))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("backend", "place"), FAST["max_iou_assign"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignment_of_many_images(own: bool, dtype: torch.dtype, backend: str, place: str) -> None:
    grids = [grid.to(place, dtype) for grid in pyramid([(6, 5), (3, 2)])]
    images = [random_boxes(b % 4, 24, seed=b, dtype=dtype).to(place) for b in range(260)]
    got, expected = (max_iou_assign(grids, images, own_best=own, backend=n) for n in (backend, "reference"))
    assert all(map(torch.equal, got, expected))


def awkward_grids(device: str) -> list[AnchorGrid]:
    """A level with more anchors a cell than fit in one step, one far from the origin, and one of one row."""
    generator = torch.Generator().manual_seed(0)
    centre, half = torch.rand(2, 70, 2, generator=generator) * 12 + 0.5
    many = torch.cat([centre - half, centre + half], 1)
    many[3], many[40] = float("nan"), torch.tensor([5.0, 5.0, 4.0, 4.0])
    far = torch.tensor([[-3e6, -9.0, -3e6 + 20, 9.0]])
    grids = [
        AnchorGrid(many, (4.3, 3.7), (11, 13)),
        AnchorGrid(far, (3.1, 1e6), (20, 9)),
        AnchorGrid(far * 0, (1, 1), (1, 99)),
    ]
    return [grid.to(device) for grid in grids]


@pytest.mark.parametrize(("backend", "place"), FAST["akdp_mask"])
def test_mask_on_awkward_grids(backend: str, place: str) -> None:
    grids, images = awkward_grids(place), [random_boxes(count, 60, seed=count).to(place) for count in (17, 1)]
    for threshold in (0.2, 0.7):
        masks, expected = (akdp_mask(grids, images, threshold=threshold, backend=n) for n in (backend, "reference"))
        assert all(map(torch.equal, masks, expected))
        assert masks[0].any()
        assert masks[1].any()
    for got, wanted in zip(*(akdp_stats(grids, images, backend=name) for name in (backend, "reference")), strict=True):
        torch.testing.assert_close(got.lam, wanted.lam, rtol=1e-12, atol=0)  # the order of the sums is free


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("backend", "place"), FAST["max_iou_assign"])
def test_assignment_on_awkward_grids(own: bool, backend: str, place: str) -> None:
    grids, images = awkward_grids(place), [random_boxes(count, 60, seed=count).to(place) for count in (17, 1)]
    got, expected = (max_iou_assign(grids, images, own_best=own, backend=n) for n in (backend, "reference"))
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(("backend", "place"), FAST["akdp_mask"])
@pytest.mark.parametrize(
    ("count", "side"), [(2, 100), (140, 100), (140, 30)], ids=["whole_2", "whole_140", "small_140"]
)
def test_box_over_a_whole_level(count: int, side: int, backend: str, place: str) -> None:
    # A box that touches all 20,000 anchors (or 1,800), and more boxes than a block has threads.
    grid, extent = pyramid([(side, side)], anchors=2)[0].to(place), 4.0 * side
    boxes = torch.cat([torch.tensor([[0.0, 0.0, extent, extent]]), random_boxes(count - 1, extent)]).to(place)
    for anchors in (grid, grid.boxes()):
        stats, expected = (akdp_stats(anchors, boxes, backend=name) for name in (backend, "reference"))
        torch.testing.assert_close(stats.lam, expected.lam, rtol=1e-12, atol=0)
        assert torch.equal(stats.max_iou, expected.max_iou)
        masks = [akdp_mask(anchors, boxes, threshold=0.6, backend=name) for name in (backend, "reference")]
        assert torch.equal(*masks)
        for own in (False, True):
            assigned = [max_iou_assign(anchors, boxes, own_best=own, backend=name) for name in (backend, "reference")]
            assert torch.equal(*assigned)
