"""What the interpreter cannot show of the Triton kernels: the arithmetic of the hardware, and compiled programs around them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from kernel_oracles import pyramid, random_boxes
from torch import Tensor
from torch.utils import _pytree as pytree

from zoominnet.kernels import (
    AnchorGrid,
    akdp_mask,
    akdp_stats,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

INF, NAN = math.inf, math.nan


def boxes_of(values: list[float], dtype: torch.dtype) -> Tensor:
    """Every box whose four coordinates are among `values`."""
    return torch.tensor(list(itertools.product(values, repeat=4)), dtype=dtype)


# The hardware's minimum and maximum leave NaN out where the interpreter's, NumPy's, pass it on.
@pytest.mark.parametrize(
    "values", [[0.0, 3.0, 7.0, INF, -INF, NAN], [0.0, 1.0, -3e38, 3e38], [0.0, 1e-45, 1e-20, 3e-19]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values(values: list[float], dtype: torch.dtype) -> None:
    # In float32, areas of the last list are denormal numbers.
    boxes = boxes_of(values, dtype)
    anchors = boxes.view(-1, 4, 1, 4)
    grid = AnchorGrid(boxes, (2.0, 3.0), (3, 4))
    for form, on_gpu in ((anchors, anchors.cuda()), (grid, grid.to("cuda"))):
        for threshold in ("adaptive", 0.3):
            options = {"threshold": threshold}
            stats = akdp_stats(on_gpu, boxes.cuda(), backend="triton", **options)
            expected = akdp_stats(form, boxes, backend="reference", **options)
            assert torch.equal(stats.max_iou.cpu(), expected.max_iou)
            torch.testing.assert_close(stats.lam.cpu(), expected.lam, rtol=1e-12, atol=0)
        mask = akdp_mask(on_gpu, boxes.cuda(), threshold=0.3, backend="triton")
        assert torch.equal(mask.cpu(), akdp_mask(form, boxes, threshold=0.3, backend="reference"))
        for own in (False, True):
            assigned = max_iou_assign(on_gpu, boxes.cuda(), own_best=own, backend="triton")
            assert torch.equal(assigned.cpu(), max_iou_assign(form, boxes, own_best=own, backend="reference"))


def test_real_sizes_have_the_bits_of_the_reference() -> None:
    sizes = [(128, 128), (64, 64), (32, 32), (16, 16), (8, 8)]
    grids = pyramid(sizes, anchors=9)
    images = [random_boxes(count, 512, seed=count) for count in (54, 0, 3, 130)]
    on_gpu, images_on_gpu = [grid.to("cuda") for grid in grids], [boxes.cuda() for boxes in images]
    masks = akdp_mask(on_gpu, images_on_gpu, threshold=0.5, backend="triton")
    for mask, expected in zip(masks, akdp_mask(grids, images, threshold=0.5, backend="reference"), strict=True):
        assert torch.equal(mask.cpu(), expected)
    for own in (False, True):
        assigned = max_iou_assign(on_gpu, images_on_gpu, own_best=own, backend="triton")
        reference = max_iou_assign(grids, images, own_best=own, backend="reference")
        for got, expected in zip(assigned, reference, strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_unmasked_positions_have_no_influence(value: float, scale: int, layout: torch.memory_format) -> None:
    student = torch.randn(2, 40, 24, 20, device="cuda").contiguous(memory_format=layout)
    teacher = torch.randn(2, 40, 24 * scale, 20 * scale, device="cuda").contiguous(memory_format=layout)
    mask = torch.rand(2, 24 * scale, 20 * scale, device="cuda") < 0.2
    results = []
    for unmasked in (0.0, value):
        leaf = student.clone().requires_grad_()
        spoilt = torch.where(mask[:, None], teacher, unmasked)
        loss = pa_l2_loss(leaf, spoilt, mask, backend="triton")
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    assert torch.isfinite(results[1][0])
    assert all(map(torch.equal, *results))


def test_inside_a_compiled_program() -> None:
    grids = [grid.to("cuda") for grid in pyramid([(16, 20), (8, 10)])]

    def step(student: Tensor, teacher: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        masks = akdp_mask(grids, [boxes, boxes], backend="triton")
        assigned = max_iou_assign(grids, boxes * 1.0, backend="triton")
        loss = pa_l2_loss(torch.relu(student), teacher, masks[0], backend="triton") * 2
        up = upsample_nearest2x(student + 1, teacher, backend="triton")
        focal = sigmoid_focal_loss(
            student.flatten(2), assigned[:16].view(2, 8), [boxes[:, 0].long()] * 2, backend="triton"
        )
        return loss + up.square().sum() + focal, assigned

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    for count in (5, 9, 12):
        boxes = random_boxes(count, 60, seed=count).cuda()
        student = torch.randn(2, 8, 8, 10, device="cuda", requires_grad=True)
        teacher = torch.randn(2, 8, 16, 20, device="cuda")
        results = []
        for function in (step, compiled):
            out, assigned = function(student, teacher, boxes)
            results.append([out.detach(), assigned, *torch.autograd.grad(out, student)])
        # What surrounds the operators may be rounded otherwise when it is compiled.
        pytree.tree_map(lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5), *results)
