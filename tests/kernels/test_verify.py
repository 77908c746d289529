"""KernelVerifier: what it compares, what it lets pass, and that each operator's faults are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_oracles import pyramid, random_boxes
from torch import Tensor

from zoominnet.kernels import (
    akdp_mask,
    akdp_stats,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)
from zoominnet.kernels.verify import KernelVerifier

pytestmark = pytest.mark.skipif(
    any(states["native"] != "ok" for states in available_backends("cpu").values()), reason="needs the C++ library"
)
Replace = Callable[[str, Callable[[tuple[Tensor, ...]], None]], None]
INF, NAN = math.inf, math.nan


def step(backend: str, dtype: torch.dtype = torch.float32, poison: float = 0.0) -> list[Tensor]:
    """Every operator, forward and backward, on odd sizes; all results. `poison` is added to a value of each map."""
    generator = torch.Generator().manual_seed(0)
    grids, boxes = pyramid([(7, 5), (4, 3)]), [random_boxes(9, 28), random_boxes(0, 28), random_boxes(4, 28, seed=1)]
    masks = akdp_mask(grids, boxes, backend=backend)
    dense = akdp_mask(grids[0].boxes(), boxes, threshold=0.5, backend=backend)
    stats = akdp_stats(grids, boxes, scope="all", backend=backend)
    assigned = [
        row
        for anchors in (grids, grids[1].boxes())
        for own in (False, True)
        for row in max_iou_assign(anchors, boxes, own_best=own, backend=backend)
    ]
    student = torch.randn(3, 6, 7, 5, generator=generator).to(dtype)
    student[0, 0, 0, 0] += poison
    student = student.to(memory_format=torch.channels_last).requires_grad_()
    teacher, large = torch.randn(3, 6, 14, 10, generator=generator).to(dtype), masks[0].repeat_interleave(2, 1)
    losses = [
        pa_l2_loss(student, teacher[..., ::2, ::2], masks[0], backend=backend),
        pa_l2_loss(student, teacher, large.repeat_interleave(2, 2), channel_reduction="mean", backend=backend),
    ]
    up = upsample_nearest2x(student, teacher, backend=backend)
    levels = [student.flatten(2), teacher[:, :3].flatten(2)[..., :35]]  # [3, 6, 35] and [3, 3, 35]
    classes = torch.tensor([[0, -1, -2, 1, -1, 0, 2, -1, -2]] * 3), [torch.tensor([4, 9, 34])] * 3
    losses.append(sigmoid_focal_loss(levels, *classes, backend=backend))
    losses.append(sigmoid_focal_loss(levels[1], classes[0][:, 6:], classes[1], gamma=1.5, backend=backend))
    (sum(losses) + up.float().square().sum()).backward()
    return [
        *masks, dense, *(s.lam for s in stats), *(m for s in stats for m in s.max_iou), *assigned,
        *losses, up, student.grad,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("poison", [0.0, NAN, INF])
def test_true_kernels_pass_and_results_stay(dtype: torch.dtype, poison: float) -> None:
    plain = step("native", dtype, poison)
    with KernelVerifier() as verifier:
        watched = step("native", dtype, poison)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(plain, watched, strict=True))
    assert not verifier.mismatches
    assert verifier.calls == {
        "akdp_mask_native": 2,
        "akdp_mask_dense_native": 1,
        "max_iou_assign_native": 2,
        "max_iou_assign_dense_native": 2,
        "pa_l2_loss_native": 2,
        "pa_l2_loss_backward_native": 2,
        "sigmoid_focal_loss_native": 2,
        "sigmoid_focal_loss_backward_native": 1,  # the other needs no gradient
        "upsample_nearest2x_native": 1,
        "upsample_nearest2x_backward_native": 1,
    }
    assert all(not difference.excessive for difference in verifier.greatest.values())


def test_the_reference_and_other_operators_are_not_compared() -> None:
    with KernelVerifier() as verifier:
        step("reference")
    assert not verifier.calls


def off_by_one_bit(x: Tensor) -> None:
    """The first value that is not 0 becomes its neighbour."""
    flat = x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)
    at = int(flat.nonzero()[0])
    flat[at] = torch.nextafter(flat[at], flat.new_tensor(INF))


def scaled(x: Tensor, factor: float) -> None:
    x.mul_(factor)


def flipped(x: Tensor) -> None:
    x[0] = ~x[0]


FAULTS: list[tuple[str, str, Callable[[tuple[Tensor, ...]], Any], str]] = [
    ("akdp_mask", "one cell", lambda out: flipped(out[0]), "mask (number of cells, beyond those at the threshold)"),
    ("akdp_mask", "all cells", lambda out: out[0].logical_not_(), "mask"),
    ("akdp_mask", "lambda", lambda out: scaled(out[1], 1 + 3e-8), "lambda (relative)"),
    ("akdp_mask", "lambda NaN", lambda out: out[1].fill_(NAN), "lambda (relative)"),
    ("akdp_mask", "maximum", lambda out: off_by_one_bit(out[2]), "greatest IoU of a box"),
    ("akdp_mask_dense", "one cell", lambda out: flipped(out[0]), "mask"),
    ("max_iou_assign", "one anchor", lambda out: out[0][0, 0].add_(1), "assignment (number of anchors)"),
    ("max_iou_assign_dense", "one anchor", lambda out: out[0][2, 3].sub_(1), "assignment (number of anchors)"),
    ("pa_l2_loss", "loss", lambda out: scaled(out[0], 1 + 5e-6), "loss (relative)"),
    ("pa_l2_loss", "loss NaN", lambda out: out[0].fill_(NAN), "loss (relative)"),
    ("pa_l2_loss", "count", lambda out: out[1].add_(1), "number of masked positions"),
    ("pa_l2_loss_backward", "one value", lambda out: off_by_one_bit(out[0]), "gradient"),
    ("pa_l2_loss_backward", "NaN", lambda out: out[0][0].fill_(NAN), "gradient"),
    ("sigmoid_focal_loss", "loss", lambda out: scaled(out[0], 1 + 5e-6), "loss (relative)"),
    ("sigmoid_focal_loss", "loss NaN", lambda out: out[0].fill_(NAN), "loss (relative)"),
    ("sigmoid_focal_loss_backward", "one value", lambda out: scaled(out[1][0, 0, :1], 1 + 5e-6), "gradient of level 1"),
    ("sigmoid_focal_loss_backward", "NaN", lambda out: out[0][2, 0].fill_(NAN), "gradient of level 0"),
    ("upsample_nearest2x", "one value", lambda out: off_by_one_bit(out[0]), "map"),
    ("upsample_nearest2x_backward", "one value", lambda out: off_by_one_bit(out[0]), "gradient"),
]


@pytest.mark.parametrize(("operation", "name", "spoil", "output"), FAULTS, ids=[f"{f[0]}-{f[1]}" for f in FAULTS])
def test_a_wrong_kernel_is_found(
    spoil_operator: Replace, operation: str, name: str, spoil: Callable[..., Any], output: str
) -> None:
    spoil_operator(operation, spoil)
    with KernelVerifier() as verifier:
        step("native")
    assert verifier.mismatches
    assert {difference.operator for difference in verifier.mismatches} == {f"{operation}_native"}
    first = verifier.mismatches[0]
    assert first.output.startswith(output)
    assert first.value > first.tolerance
    assert f"{operation}_native on [" in str(first)
    assert f"differs by {first.value:.3g}, tolerance {first.tolerance:.3g}" in str(first)


def test_cells_at_the_threshold_may_flip_and_are_counted(spoil_operator: Replace) -> None:
    # IoU with the box: 1, exactly the threshold of 1/2, a little more than rounding could explain, and 0.
    anchors = torch.tensor(
        [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 4.0, 8.00003], [9.0, 9.0, 13.0, 13.0]]
    )
    anchors, box = anchors.view(1, 4, 1, 4), torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    for wrong, flips, mismatches in ((1, 1, 0), (2, 0, 1), (3, 0, 1), (0, 0, 1)):

        def spoil(out: tuple[Tensor, ...], wrong: int = wrong) -> None:
            out[0][wrong].logical_not_()

        spoil_operator("akdp_mask_dense", spoil)
        with KernelVerifier() as verifier:
            akdp_mask(anchors, [box, box[:0]], threshold=0.5, backend="native")
        assert (verifier.flips, len(verifier.mismatches)) == (flips, mismatches)


def test_wrong_shapes_and_dtypes_are_found() -> None:
    verifier = KernelVerifier()
    expected = (torch.zeros(2, 3),)
    for got in (torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.float64)):
        verifier._compare("upsample_nearest2x", "upsample_nearest2x_native", (), (got,), expected)
    assert [difference.value for difference in verifier.mismatches] == [INF, INF]
