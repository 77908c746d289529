"""The registered operators: opcheck, torch.compile, autocast, meta tensors, the choice of backends."""

from __future__ import annotations

import doctest
import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_autocast import cuda_autocast_on_cpu
from kernel_oracles import pyramid, random_boxes
from torch import Tensor
from torch.utils import _pytree as pytree

from zoominnet.kernels import (
    AnchorGrid,
    BackendUnavailableError,
    _dispatch,
    akdp_mask,
    akdp_stats,
    available_backends,
    max_iou_assign,
    pa_l2_loss,
    sigmoid_focal_loss,
    upsample_nearest2x,
)

FUNCTIONS = {
    "akdp_mask": akdp_mask,
    "max_iou_assign": max_iou_assign,
    "pa_l2_loss": pa_l2_loss,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "upsample_nearest2x": upsample_nearest2x,
}
FEATURES = (
    *("pa_l2_loss", "pa_l2_loss_backward", "sigmoid_focal_loss", "sigmoid_focal_loss_backward"),
    *("upsample_nearest2x", "upsample_nearest2x_backward"),
)
"""Operators that take what a convolution gives under autocast."""
BUILT = [
    (op, name) for op, states in available_backends("cpu").items() for name, state in states.items() if state == "ok"
]


def operator_samples() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of each operator, without the backend's suffix."""
    boxes, counts = random_boxes(7, 24), [4, 0, 3]
    grids = ([grid.base_anchors for grid in pyramid([(5, 4), (3, 2)])], [4.0, 4.0, 8.0, 8.0], [5, 4, 3, 2])
    cells = pyramid([(5, 4)])[0].boxes()
    student, teacher, mask = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 8, 10), torch.rand(2, 8, 10) < 0.4
    channels_last = student.to(memory_format=torch.channels_last)
    tracked, tracked_teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    one, count = torch.tensor(1.0), mask.sum()
    levels = [torch.randn(2, a, 3, requires_grad=True) for a in (5, 4)]
    assigned, labels = torch.tensor([[0, 1, -1, -2, -1, 1, 0, -2, -1]] * 2), torch.tensor([[0, 2, 1], [1, 1, -1]])
    return {
        "akdp_mask": [
            (boxes, counts, *grids, 0, 0.0, False),
            (boxes.double().requires_grad_(), counts, *grids, 1, 0.0, True),
            (boxes[:0], [], *grids, 2, 0.5, False),
        ],
        "akdp_mask_dense": [(boxes, counts, cells, 0, 0.0), (boxes, counts, cells.clone().requires_grad_(), 1, 0.0)],
        "max_iou_assign": [
            (boxes, counts, *grids, 0.5, 0.4, True, False),
            (boxes, counts, *grids, 0.5, 0.4, True, True),
            (boxes[:0], [], *grids, 0.5, 0.4, False, False),
        ],
        "max_iou_assign_dense": [
            (boxes.clone().requires_grad_(), counts, cells.view(-1, 4), 0.5, 0.4, True, own) for own in (False, True)
        ],
        "pa_l2_loss": [
            (tracked, teacher, mask, False),
            (tracked, student, mask[:, ::2, ::2], True),
            (channels_last.clone().requires_grad_(), teacher.to(memory_format=torch.channels_last), mask, False),
            (student.half(), teacher.half(), torch.zeros_like(mask), False),
            (student[:0], teacher[:0], mask[:0], False),
        ],
        "pa_l2_loss_backward": [
            (one, student, teacher, mask, count, False),
            (one, channels_last, teacher, mask, count, True),
            (one, student.bfloat16(), student.bfloat16(), mask[:, ::2, ::2], count, False),
        ],
        "sigmoid_focal_loss": [
            (levels, assigned, labels, 0.25, 2.0),
            ([levels[0].detach().bfloat16(), levels[1].detach().bfloat16()], assigned, labels, 0.5, 1.5),
            ([levels[0].detach().double().requires_grad_()], assigned[:, :5], labels, 1.0, 0.0),
            ([levels[0][:0].detach()], assigned[:0, :5], labels[:0], 0.25, 2.0),
        ],
        "sigmoid_focal_loss_backward": [
            (one, [level.detach() for level in levels], assigned, labels, 0.25, 2.0),
            (
                one,
                [levels[0].detach().half().transpose(0, 1).contiguous().transpose(0, 1)],
                assigned[:, :5],
                labels,
                0.25,
                3.0,
            ),
            (one, [levels[0][:, :0].detach()], assigned[:, :0], labels[:, :0], 0.25, 2.0),
        ],
        "upsample_nearest2x": [
            (tracked, tracked_teacher),
            (tracked, None),
            (channels_last, teacher),
            (student.transpose(2, 3), None),
            (student[:, :, :0], None),
        ],
        "upsample_nearest2x_backward": [
            (tracked_teacher,),
            (teacher.to(memory_format=torch.channels_last),),
            (teacher[:, :0],),
        ],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", operator_samples())
def test_opcheck(name: str) -> None:
    operation = name.removesuffix("_dense").removesuffix("_backward")
    for backend in (built for op, built in BUILT if op == operation):
        for sample in operator_samples()[name]:
            torch.library.opcheck(getattr(torch.ops.zoominnet, f"{name}_{backend}").default, sample)


@pytest.mark.parametrize(("operation", "backend"), BUILT)
def test_outputs_share_no_memory(operation: str, backend: str) -> None:
    for name, samples in operator_samples().items():
        if not name.startswith(operation):
            continue
        for sample in samples:
            outputs = pytree.tree_leaves(getattr(torch.ops.zoominnet, f"{name}_{backend}").default(*sample))
            inputs = [leaf for leaf in pytree.tree_leaves(sample) if isinstance(leaf, Tensor)]
            of_outputs, of_inputs = (
                [t.untyped_storage().data_ptr() for t in tensors if t.numel()] for tensors in (outputs, inputs)
            )
            assert len(set(of_outputs)) == len(of_outputs)
            assert not set(of_outputs) & set(of_inputs)


def detection_case(count: int) -> tuple[list[AnchorGrid], list[Tensor]]:
    return pyramid([(5, 4), (3, 2)]), [random_boxes(count, 24), random_boxes(13, 24)]


def mask_and_stats(grids: list[AnchorGrid], boxes: list[Tensor], backend: str) -> Any:
    return (
        akdp_mask(grids, boxes, backend=backend),
        akdp_mask(grids[0].boxes(), boxes[0], threshold=0.5, backend=backend),
        akdp_stats(grids, boxes, scope="all", backend=backend),
    )


def assignments(grids: list[AnchorGrid], boxes: list[Tensor], backend: str) -> Any:
    return (
        max_iou_assign(grids, boxes, backend=backend),
        max_iou_assign(grids, boxes, own_best=True, backend=backend),
        max_iou_assign(grids[0].boxes(), boxes[0], positive=0.3, negative=0.3, backend=backend),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("operation", "function"), [("akdp_mask", mask_and_stats), ("max_iou_assign", assignments)])
def test_compiled_masks_and_assignments(operation: str, function: Callable[..., Any], dynamic: bool) -> None:
    for backend in (built for op, built in BUILT if op == operation):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        # With dynamic shapes, another number of boxes compiles nothing anew.
        with torch._dynamo.config.patch(error_on_recompile=dynamic):
            for count in (7, 9, 11):  # sizes unlike any other, since equal ones may be taken for the same
                grids, boxes = detection_case(count)
                got, expected = (pytree.tree_leaves(f(grids, boxes, backend)) for f in (compiled, function))
                assert all(map(torch.equal, got, expected))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_with_grids_and_boxes_made_inside(dynamic: bool) -> None:
    def function(feature: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        grid = AnchorGrid(torch.tensor([[-4.0, -4.0, 4.0, 4.0]]), (8, 8), tuple(feature.shape[2:]))
        inside = boxes[boxes[:, 0] > 5]  # their number is known at run time only
        return akdp_mask([grid], [inside, boxes])[0], max_iou_assign(grid, inside)

    torch._dynamo.reset()
    boxes = random_boxes(9, 48)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for h, w in [(5, 6), (6, 7)]:
            feature = torch.zeros(1, 3, h, w)
            assert all(map(torch.equal, compiled(feature, boxes), function(feature, boxes)))


def distill_step(student: Tensor, teacher: Tensor, mask: Tensor, backend: str) -> Tensor:
    return pa_l2_loss(student, teacher, mask, backend=backend) * 2


def upsample_step(x: Tensor, add: Tensor, mask: Tensor, backend: str) -> Tensor:
    return (upsample_nearest2x(x, add, backend=backend) + upsample_nearest2x(x, backend=backend)) * mask[:, None]


def focal_step(logits: Tensor, other: Tensor, mask: Tensor, backend: str) -> Tensor:
    b, c = logits.shape[:2]
    levels = [x.flatten(2).transpose(1, 2) for x in (logits, other)]  # [B, h * w, C], in every stride
    assigned = torch.cat([torch.where(mask[:, ::2, ::2], 1, -1).flatten(1), torch.where(mask, 0, -2).flatten(1)], 1)
    labels = [torch.arange(image % 2 + 2, device=logits.device) % c for image in range(b)]
    return sigmoid_focal_loss(levels, assigned, labels, backend=backend) * 2


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("operation", "function"),
    [("pa_l2_loss", distill_step), ("sigmoid_focal_loss", focal_step), ("upsample_nearest2x", upsample_step)],
)
def test_compiled_gradients(operation: str, function: Callable[..., Tensor], dynamic: bool) -> None:
    for backend in (built for op, built in BUILT if op == operation):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for b, h, w in [(2, 4, 5), (3, 6, 7)]:
            student = torch.randn(b, 3, h, w).to(memory_format=torch.channels_last).requires_grad_()
            arguments = (student, torch.randn(b, 3, 2 * h, 2 * w), torch.rand(b, 2 * h, 2 * w) < 0.4, backend)
            results = []
            for f in (compiled, function):
                out = f(*arguments)
                results.append((out, *torch.autograd.grad(out.sum(), student)))
            assert all(map(torch.equal, *results))


@pytest.mark.slow
def test_inductor() -> None:
    # Nothing but the operators, so that no C++ needs compiling.
    torch._dynamo.reset()
    grid, boxes = pyramid([(8, 10)])[0], random_boxes(4, 40)
    student, teacher = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(1, 3, 8, 10)

    def distill(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
        return pa_l2_loss(student, teacher, akdp_mask(grid, [boxes]))

    def upsample(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
        return upsample_nearest2x(student, teacher)

    assigned, labels = torch.tensor([[0, -1, 2, -2]] * 3), torch.tensor([[4, 0, 1]] * 3)

    def focal(student: Tensor, teacher: Tensor, boxes: Tensor) -> Tensor:
        # Not the public function, which pads labels.
        return torch.ops.zoominnet.sigmoid_focal_loss_reference([student[0]], assigned, labels, 0.25, 2.0)

    for step in (distill, focal, upsample):
        out, expected = (f(student, teacher, boxes) for f in (torch.compile(step, fullgraph=True), step))
        assert torch.equal(out, expected)
        grads = [torch.autograd.grad(result, student, torch.ones_like(result))[0] for result in (out, expected)]
        assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    convolution, image = torch.nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 6, 6)
    grid, boxes = pyramid([(6, 6)])[0], random_boxes(4, 24)
    with torch.autocast("cpu", dtype):
        feature = convolution(image)
        top_down = upsample_nearest2x(feature[:, :, ::2, ::2], feature)
        loss = pa_l2_loss(feature, torch.zeros_like(feature), akdp_mask(grid, [boxes, boxes]))
        stats = akdp_stats(grid, boxes)
        focal = sigmoid_focal_loss(feature.flatten(2), torch.full((2, 8), -1), [boxes[:0, 0].long()] * 2)
    assert feature.dtype == top_down.dtype == dtype
    assert loss.dtype == focal.dtype == torch.float32
    assert (stats.lam.dtype, stats.max_iou.dtype) == (torch.float64, torch.float32)
    (loss + focal + top_down.float().sum()).backward()
    assert convolution.weight.grad.dtype == torch.float32
    assert torch.isfinite(convolution.weight.grad).all()


@pytest.mark.parametrize(("name", "samples"), operator_samples().items(), ids=list(operator_samples()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_in_an_operator(name: str, samples: list[tuple[Any, ...]], dtype: torch.dtype) -> None:
    """CUDA's changes what `interpolate` and others give, of which the CPU's knows nothing."""

    def as_features(value: Any) -> Any:
        is_map = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() > 0
        return value.to(dtype) if is_map else value

    for backend in (backend for op, backend in BUILT if op == name.removesuffix("_dense").removesuffix("_backward")):
        operator = getattr(torch.ops.zoominnet, f"{name}_{backend}").default
        for arguments in samples:
            if name in FEATURES:
                arguments = pytree.tree_map(as_features, arguments)
            expected = pytree.tree_leaves(operator(*arguments))
            with cuda_autocast_on_cpu(), torch.autocast("cpu", dtype):
                got = pytree.tree_leaves(operator(*arguments))
                assert torch.is_autocast_enabled("cpu")
            for mine, theirs in zip(got, expected, strict=True):
                assert mine.dtype == theirs.dtype
                assert torch.equal(mine, theirs)


def test_meta_tensors() -> None:
    grids, boxes = [grid.to("meta") for grid in pyramid([(5, 4), (3, 2)])], torch.zeros(3, 4, device="meta")
    assert [tuple(mask.shape) for mask in akdp_mask(grids, [boxes, boxes])] == [(2, 5, 4), (2, 3, 2)]
    assert tuple(max_iou_assign(grids, boxes).shape) == (78,)
    student, teacher = torch.zeros(2, 3, 4, 5, device="meta"), torch.zeros(2, 3, 8, 10, device="meta")
    assert pa_l2_loss(student, teacher, torch.zeros(2, 8, 10, dtype=torch.bool, device="meta")).shape == ()
    assert upsample_nearest2x(student, teacher).shape == (2, 3, 8, 10)
    assigned, labels = torch.zeros(2, 9, dtype=torch.int64, device="meta"), boxes[:, 0].long()
    assert sigmoid_focal_loss(torch.zeros(2, 9, 4, device="meta"), assigned, [labels, labels[:1]]).shape == ()


def small_call(operation: str, backend: str) -> None:
    """Any valid call of an operation."""
    if operation in ("akdp_mask", "max_iou_assign"):
        FUNCTIONS[operation](torch.zeros(1, 1, 1, 4), torch.zeros(1, 4), backend=backend)
    elif operation == "pa_l2_loss":
        zeros = torch.zeros(1, 1, 1, 1)
        pa_l2_loss(zeros, zeros, torch.zeros(1, 1, 1, dtype=torch.bool), backend=backend)
    elif operation == "sigmoid_focal_loss":
        index = torch.zeros(1, 1, dtype=torch.int64)
        sigmoid_focal_loss(torch.zeros(1, 1, 1), index, [index[0]], backend=backend)
    else:
        upsample_nearest2x(torch.zeros(1, 1, 1, 1), backend=backend)


def test_available_backends() -> None:
    available = available_backends()
    assert set(available) == set(FUNCTIONS)
    for states in available.values():
        assert list(states) == ["reference", "native", "triton"]
        assert states["reference"] == "ok"
        for name in ("triton", "native"):
            assert states[name] == "ok" or states[name].startswith(("not built: ", "unusable: "))


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_named_backend_runs_or_tells_why_not(operation: str) -> None:
    for name, state in available_backends("cpu")[operation].items():
        if state == "ok":
            small_call(operation, name)
        else:
            with pytest.raises(BackendUnavailableError) as caught:
                small_call(operation, name)
            assert str(caught.value) == f"{operation}: backend {name!r} is {state}"
            assert isinstance(caught.value, RuntimeError)
    with pytest.raises(
        ValueError, match="backend must be 'auto', 'fused' or one of 'reference', 'native', 'triton', got 'cuda'"
    ):
        small_call(operation, "cuda")


def test_where_nothing_is_measured_what_is_compiled_already_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_state", lambda operation, backend, device_type: "ok")
    choose = _dispatch._choose_fastest.__wrapped__
    assert choose("akdp_mask", "auto", "elsewhere") == "reference"
    assert choose("akdp_mask", "fused", "elsewhere") == "native"


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_automatic_choice_is_logged_once(operation: str, caplog: pytest.LogCaptureFixture) -> None:
    _dispatch._choose_fastest.cache_clear()
    with caplog.at_level(logging.INFO, logger="zoominnet.kernels"):
        small_call(operation, "auto")
        small_call(operation, "auto")
        small_call(operation, "reference")
    (record,) = caplog.records
    assert record.name == "zoominnet.kernels"
    fastest = "native" if (operation, "native") in BUILT else "reference"
    assert record.getMessage().startswith(f"{operation} on cpu: backend {fastest!r}")


@pytest.mark.parametrize(
    "module",
    [
        *("anchor_grid", "akdp_mask.op", "max_iou_assign.op", "pa_l2_loss.op", "sigmoid_focal_loss.op"),
        "upsample_nearest2x.op",
    ],
)
def test_documented_examples(module: str) -> None:
    result = doctest.testmod(
        importlib.import_module(f"zoominnet.kernels.{module}"), extraglobs={"torch": torch, "math": math}
    )
    assert result.attempted
    assert not result.failed
