"""The focal loss in Triton; the contract stands in `reference.py`.

A program takes a run of the logits of one image and level, in the order of anchors and classes, whatever their strides;
each looks up the class of its anchor. Each program's sum is stored and a last program adds them up in a fixed order. exp
and log1p are those of csrc/sigmoid_focal_loss/sigmoid_focal_loss.h, which says how exact they are: Triton's own exp loses
digits far from 0, and its log of 1 + e all of them where e is small. Powers other than 2 are computed in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._numerics import accumulation_dtype
from .._triton import LAUNCH, TRITON_DTYPE, divide, on_device, to_device

_BLOCK = 1024
_STEPS = 4


def sigmoid_focal_loss_triton(
    logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float
) -> Tensor:
    """The loss; arguments and results as in `_schemas.py`."""
    programs = [_programs(level) for level in logits]
    with on_device(assigned):
        numbers = to_device([alpha, 1 - alpha, gamma], assigned.device)
        sums = assigned.new_empty((sum(programs),), dtype=torch.float64)
        loss = logits[0].new_empty((), dtype=accumulation_dtype(*logits))
        first, anchor = 0, 0
        for level, count in zip(logits, programs, strict=True):
            if count:
                arguments, options = _arguments(level, assigned, labels, numbers, gamma == 2, anchor)
                _focal_kernel[(count,)](sums, first, *arguments, **options)
            first, anchor = first + count, anchor + level.shape[1]
        _add_up_kernel[(1,)](sums, loss, first, BLOCK=4096, num_warps=16, **LAUNCH)
    return loss


def sigmoid_focal_loss_backward_triton(
    grad_out: Tensor, logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float
) -> list[Tensor]:
    """Gradient of the loss in each level's logits; arguments and results as in `_schemas.py`."""
    grads = [torch.empty_like(level) for level in logits]
    anchor = 0
    with on_device(assigned):
        numbers = to_device([alpha, 1 - alpha, gamma], assigned.device)
        for level, grad in zip(logits, grads, strict=True):
            if level.numel():
                arguments, options = _arguments(level, assigned, labels, numbers, gamma == 2, anchor)
                dense = grad.stride(1) == grad.shape[2] * grad.stride(2)
                _focal_gradient_kernel[(_programs(level),)](
                    grad_out, grad, grad.stride(), *arguments, GRAD_DENSE=dense, **options
                )
            anchor += level.shape[1]
    return grads


def _programs(level: Tensor) -> int:
    return level.shape[0] * triton.cdiv(level.shape[1] * level.shape[2], _BLOCK * _STEPS)


def _arguments(
    level: Tensor, assigned: Tensor, labels: Tensor, numbers: Tensor, squared: bool, first_anchor: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The last arguments and the options that both kernels take for a level."""
    _, anchors, classes = level.shape
    arguments = (
        level,
        assigned[:, first_anchor : first_anchor + anchors],
        labels,
        level.stride(),
        assigned.stride(),
        *labels.stride(),
        anchors * classes,
        classes,
        labels.shape[1],
        numbers,
    )
    options = {
        "SQUARED": squared,
        # One product of the index keeps the compiler's knowledge that neighbours are adjacent in memory.
        "DENSE": level.stride(1) == classes * level.stride(2),
        "ACC": TRITON_DTYPE[accumulation_dtype(level) if squared else torch.float64],
        "INDEX": tl.int32 if anchors * classes < 2**30 else tl.int64,
        "BLOCK": _BLOCK,
        "STEPS": _STEPS,
        "num_warps": 4,
        **LAUNCH,
    }
    return arguments, options


@triton.jit
def _exp_of_nonpositive(x: tl.tensor) -> tl.tensor:
    """e^x for x <= 0; 0 where it is below the normal numbers."""
    if x.dtype == tl.float64:
        clamped = tl.where(x < -708.3, -708.3, x)
        shifted = clamped * 1.44269504088896341 + 6755399441055744.0
        n = shifted - 6755399441055744.0
        r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
        power = 2.49943256273634e-08 * r + 2.763230675915368e-07
        power = power * r + 2.7557622543887344e-06
        power = power * r + 2.4801486485520618e-05
        power = power * r + 0.00019841269432566554
        power = power * r + 0.001388888895125701
        power = power * r + 0.008333333333559382
        power = power * r + 0.041666666666492644
        power = power * r + 0.1666666666666617
        power = power * r + 0.5000000000000018
        power = power * r + 1.0
        power = power * r + 1.0
        exponent = (shifted.to(tl.int64, bitcast=True) << 52) + 0x3FF0000000000000
        result = tl.where(x < -708.3, 0.0, power * exponent.to(tl.float64, bitcast=True))
    else:
        clamped = tl.where(x < -87.3, -87.3, x)
        shifted = clamped * 1.44269504088896341 + 12582912.0
        n = shifted - 12582912.0
        r = (clamped - n * 0.693359375) - n * -2.12194440e-4
        power = 0.0013836849248036742 * r + 0.008374824188649654
        power = power * r + 0.04166822507977486
        power = power * r + 0.16666419804096222
        power = power * r + 0.49999991059303284
        power = power * r + 1.0
        power = power * r + 1.0
        exponent = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
        result = tl.where(x < -87.3, 0.0, power * exponent.to(tl.float32, bitcast=True))
    return result


@triton.jit
def _log1p_of_unit(e: tl.tensor) -> tl.tensor:
    """log(1 + e) for 0 <= e <= 1."""
    s = divide(e, e + 2.0)
    u = s * s
    if e.dtype == tl.float64:
        quotient = 0.17060070631404683 * u + 0.08315679191216221
        quotient = quotient * u + 0.12112250368475938
        quotient = quotient * u + 0.13300102297452726
        quotient = quotient * u + 0.1538663547459545
        quotient = quotient * u + 0.18181739786499237
        quotient = quotient * u + 0.22222224111818956
        quotient = quotient * u + 0.2857142854492413
        quotient = quotient * u + 0.4000000000019034
        quotient = quotient * u + 0.6666666666666613
        quotient = quotient * u + 2.0
    else:
        quotient = 0.28178322315216064 * u + 0.27960604429244995
        quotient = quotient * u + 0.40024909377098083
        quotient = quotient * u + 0.6666631698608398
        quotient = quotient * u + 2.0
    return s * quotient


@triton.jit
def _focal_terms(z: tl.tensor, gamma: tl.tensor, SQUARED: tl.constexpr) -> tl.tuple:
    """p, 1 - p, softplus(z) and p^gamma."""
    e = _exp_of_nonpositive(tl.where(z > 0, -z, z))
    log1p = _log1p_of_unit(e)
    large = divide(tl.full(z.shape, 1.0, z.dtype), e + 1.0)
    small = e * large
    p = tl.where(z > 0, large, small)
    if SQUARED:
        power = p * p
    else:
        power = _exp_of_nonpositive((tl.where(z > 0, 0.0, z) - log1p) * gamma)
    return p, tl.where(z > 0, small, large), tl.where(z > 0, z, 0.0) + log1p, power


@triton.jit
def _load_terms(
    logits_ptr: tl.tensor,
    assigned_ptr: tl.tensor,
    labels_ptr: tl.tensor,
    logits_strides: tl.tuple,
    assigned_strides: tl.tuple,
    labels_image: tl.tensor,
    labels_box: tl.tensor,
    image: tl.tensor,
    at: tl.tensor,
    values: tl.tensor,
    classes: tl.tensor,
    boxes: tl.tensor,
    DENSE: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tuple:
    """Values `at` of an image: their z, whether they are of their anchor's class, and that class as in `reference.py`."""
    inside = at < values
    anchor, category = at // classes, at % classes
    index = tl.load(
        assigned_ptr + image * assigned_strides[0] + anchor.to(tl.int64) * assigned_strides[1], mask=inside, other=-2
    )
    found = (index >= 0) & (index < boxes)
    label = tl.load(labels_ptr + image * labels_image + index * labels_box, mask=found, other=-3)
    label = tl.where((label >= 0) & (label < classes), label, -3)
    label = tl.where((index == -1) | (index == -2), index, label)
    if DENSE:
        offset = at.to(tl.int64) * logits_strides[2]
    else:
        offset = anchor.to(tl.int64) * logits_strides[1] + category.to(tl.int64) * logits_strides[2]
    x = tl.load(logits_ptr + image * logits_strides[0] + offset, mask=inside, other=0).to(ACC)
    mine = category == label
    return tl.where(mine, -x, x), mine, label


@triton.jit(do_not_specialize=["first_sum", "values", "classes", "boxes", "labels_image", "labels_box"])
def _focal_kernel(
    sums_ptr: tl.tensor,  # float64 [programs of all levels]
    first_sum: tl.tensor,
    logits_ptr: tl.tensor,  # [B, A_l, C]
    assigned_ptr: tl.tensor,  # int64 [B, A_l]
    labels_ptr: tl.tensor,  # int64 [B, G]
    logits_strides: tl.tuple,
    assigned_strides: tl.tuple,
    labels_image: tl.tensor,
    labels_box: tl.tensor,
    values: tl.tensor,  # A_l * C
    classes: tl.tensor,
    boxes: tl.tensor,
    numbers_ptr: tl.tensor,  # float64 [3]: alpha, 1 - alpha, gamma
    SQUARED: tl.constexpr,
    DENSE: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """Sum of each program's terms."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.cdiv(values, BLOCK * STEPS)
    image, first = program // programs, (program % programs) * (BLOCK * STEPS)
    alpha, others = tl.load(numbers_ptr).to(ACC), tl.load(numbers_ptr + 1).to(ACC)
    gamma = tl.load(numbers_ptr + 2).to(ACC)
    total = tl.zeros([BLOCK], tl.float64)
    for step in range(STEPS):
        at = (first + step * BLOCK).to(INDEX) + tl.arange(0, BLOCK)
        z, mine, label = _load_terms(
            logits_ptr, assigned_ptr, labels_ptr, logits_strides, assigned_strides, labels_image, labels_box,
            image, at, values, classes, boxes, DENSE, ACC,
        )  # fmt: skip
        _, _, softplus, power = _focal_terms(z, gamma, SQUARED)
        loss = power * softplus * tl.where(mine, alpha, others)
        loss = tl.where(label == -3, float("nan"), tl.where(label == -2, 0.0, loss))
        total += loss.to(tl.float64)
    tl.store(sums_ptr + first_sum + program, tl.sum(total, 0))


@triton.jit(do_not_specialize=["programs"])
def _add_up_kernel(
    sums_ptr: tl.tensor,  # float64 [programs]
    loss_ptr: tl.tensor,  # float32 or float64 scalar
    programs: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adds up the programs' sums. One program."""
    total = tl.zeros([BLOCK], tl.float64)
    at = tl.arange(0, BLOCK)
    start = 0
    while start < programs:
        total += tl.load(sums_ptr + start + at, mask=start + at < programs, other=0)
        start += BLOCK
    tl.store(loss_ptr, tl.sum(total, 0).to(loss_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["values", "classes", "boxes", "labels_image", "labels_box"])
def _focal_gradient_kernel(
    grad_out_ptr: tl.tensor,  # float32 or float64 scalar
    grad_ptr: tl.tensor,  # [B, A_l, C]
    grad_strides: tl.tuple,
    logits_ptr: tl.tensor,  # [B, A_l, C]
    assigned_ptr: tl.tensor,  # int64 [B, A_l]
    labels_ptr: tl.tensor,  # int64 [B, G]
    logits_strides: tl.tuple,
    assigned_strides: tl.tuple,
    labels_image: tl.tensor,
    labels_box: tl.tensor,
    values: tl.tensor,  # A_l * C
    classes: tl.tensor,
    boxes: tl.tensor,
    numbers_ptr: tl.tensor,  # float64 [3]: alpha, 1 - alpha, gamma
    SQUARED: tl.constexpr,
    GRAD_DENSE: tl.constexpr,
    DENSE: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
) -> None:
    """The gradient in the logits, each value written once."""
    program = tl.program_id(0).to(tl.int64)
    programs = tl.cdiv(values, BLOCK * STEPS)
    image, first = program // programs, (program % programs) * (BLOCK * STEPS)
    grad_out = tl.load(grad_out_ptr).to(ACC)
    alpha, others = tl.load(numbers_ptr).to(ACC) * grad_out, tl.load(numbers_ptr + 1).to(ACC) * grad_out
    gamma = tl.load(numbers_ptr + 2).to(ACC)
    for step in range(STEPS):
        at = (first + step * BLOCK).to(INDEX) + tl.arange(0, BLOCK)
        z, mine, label = _load_terms(
            logits_ptr, assigned_ptr, labels_ptr, logits_strides, assigned_strides, labels_image, labels_box,
            image, at, values, classes, boxes, DENSE, ACC,
        )  # fmt: skip
        p, complement, softplus, power = _focal_terms(z, gamma, SQUARED)
        grad = power * (complement * softplus * gamma + p) * tl.where(mine, alpha, others)
        grad = tl.where(mine, -grad, grad)
        grad = tl.where(label == -3, float("nan"), tl.where(label == -2, 0.0, grad))
        if GRAD_DENSE:
            offset = at.to(tl.int64) * grad_strides[2]
        else:
            anchor, category = (at // classes).to(tl.int64), (at % classes).to(tl.int64)
            offset = anchor * grad_strides[1] + category * grad_strides[2]
        tl.store(
            grad_ptr + image * grad_strides[0] + offset,
            grad.to(grad_out_ptr.dtype.element_ty).to(grad_ptr.dtype.element_ty),
            mask=at < values,
        )
