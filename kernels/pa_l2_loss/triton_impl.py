"""The PA-L2 loss in Triton; the contract stands in `reference.py`.

A program takes a tile of the student's positions. With a teacher of the double size, SCALE = 2, each of them compares
with four of the teacher's: the student is read once and its four gradients are summed in registers. Nothing is read
at positions that are not masked. Each program's sum is stored and a last program adds them up in a fixed order.
Tensors have any strides.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._numerics import accumulation_dtype
from .._triton import (
    LAUNCH,
    TRITON_DTYPE,
    MapTiles,
    along_channels,
    along_positions,
    divide,
    map_tiles,
    on_device,
    spread_positions,
    tile_place,
)


def pa_l2_loss_triton(student: Tensor, teacher: Tensor, mask: Tensor, channel_mean: bool) -> tuple[Tensor, Tensor]:
    """Loss and number of masked positions; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(student)
    tiles, sizes, options = _plan(student, teacher, mask)
    programs = student.shape[0] * tiles.tiles * tiles.groups
    with on_device(student):
        sums = student.new_empty((programs,), dtype=dtype)
        counts = student.new_empty((student.shape[0] * tiles.tiles,), dtype=torch.int64)
        loss, count = student.new_empty((), dtype=dtype), student.new_empty((), dtype=torch.int64)
        if programs:
            _loss_kernel[(programs,)](student, teacher, mask.view(torch.uint8), sums, counts, *sizes, **options)
        _finish_kernel[(1,)](
            sums,
            counts,
            loss,
            count,
            programs,
            counts.numel(),
            student.shape[1] if channel_mean else 1,
            ACC=TRITON_DTYPE[dtype],
            BLOCK=4096,
            num_warps=16,
            **LAUNCH,
        )
    return loss, count


def pa_l2_loss_backward_triton(
    grad_out: Tensor, student: Tensor, teacher: Tensor, mask: Tensor, count: Tensor, channel_mean: bool
) -> Tensor:
    """Gradient of the loss in the student's features; arguments and results as in `_schemas.py`."""
    grad = torch.empty_like(student)
    if grad.numel() == 0:
        return grad
    tiles, sizes, options = _plan(student, teacher, mask)
    with on_device(student):
        _gradient_kernel[(student.shape[0] * tiles.tiles * tiles.groups,)](
            student,
            teacher,
            mask.view(torch.uint8),
            grad_out,
            count,
            grad,
            grad.stride(),
            student.shape[1] if channel_mean else 1,
            *sizes,
            **options,
        )
    return grad


def _plan(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[MapTiles, tuple[Any, ...], dict[str, Any]]:
    """The tiles, and the last arguments and the options that both kernels take."""
    _, c, h, w = student.shape
    channels_inner = teacher.stride(1) == 1
    # Short rows of positions, so that many tiles are without a masked one.
    tiles = map_tiles(h * w, c, channels_inner, 512, longest=128 if channels_inner else 64, steps=4)
    sizes = (student.stride(), teacher.stride(), mask.stride(), c, h * w, w, tiles.tiles, tiles.groups)
    options = {
        "SCALE": 1 if teacher.shape == student.shape else 2,
        "CHANNELS_INNER": channels_inner,
        "ACC": TRITON_DTYPE[accumulation_dtype(student)],
        "num_warps": 4,
        **tiles.options,
        **LAUNCH,
    }
    return tiles, sizes, options


@triton.jit
def _masked(
    mask_ptr: tl.tensor, strides: tl.tuple, i: tl.tensor, j: tl.tensor, inside: tl.tensor, SCALE: tl.constexpr
) -> tl.tensor:
    """Bit 2 * di + dj tells whether position (2i + di, 2j + dj) is masked; with SCALE 1, bit 0 tells it of (i, j)."""
    bits = tl.zeros(i.shape, tl.int32)
    for phase in tl.static_range(SCALE * SCALE):
        row, column = SCALE * i + phase // SCALE, SCALE * j + phase % SCALE
        masked = tl.load(mask_ptr + row * strides[1] + column * strides[2], mask=inside, other=0)
        bits |= (masked != 0).to(tl.int32) << phase
    return bits


@triton.jit
def _at(
    base_ptr: tl.tensor, strides: tl.tuple, image: tl.tensor, i: tl.tensor, j: tl.tensor, SCALE: tl.constexpr
) -> tl.tensor:
    """Where the first channel of positions (SCALE * i, SCALE * j) of an image is, of a map [B, C, H, W]."""
    return base_ptr + image * strides[0] + along_positions(SCALE * (i * strides[2] + j * strides[3]))


@triton.jit
def _difference(
    student: tl.tensor,
    teacher_ptr: tl.tensor,
    teacher_strides: tl.tuple,
    bits: tl.tensor,
    inside: tl.tensor,
    PHASE: tl.constexpr,
    SCALE: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tuple:
    """Student minus teacher at one phase of a tile, and where it is masked; the rest of the first means nothing."""
    masked = (((bits >> PHASE) & 1) != 0) & inside
    pointer = teacher_ptr + (PHASE // SCALE) * teacher_strides[2] + (PHASE % SCALE) * teacher_strides[3]
    return student - tl.load(pointer, mask=masked, other=0).to(ACC), masked


@triton.jit(do_not_specialize=["tiles", "groups"])
def _loss_kernel(
    student_ptr: tl.tensor,  # [B, C, h, w]
    teacher_ptr: tl.tensor,  # [B, C, SCALE * h, SCALE * w]
    mask_ptr: tl.tensor,  # uint8 [B, SCALE * h, SCALE * w]
    sums_ptr: tl.tensor,  # ACC [B * tiles * groups]
    counts_ptr: tl.tensor,  # int64 [B * tiles]
    student_strides: tl.tuple,
    teacher_strides: tl.tuple,
    mask_strides: tl.tuple,
    channels: tl.tensor,
    positions: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    groups: tl.tensor,
    SCALE: tl.constexpr,
    S_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """Sum of squares and masked positions of each program's tile."""
    image, group, position, channel = tile_place(tiles, groups, S_BLOCK, C_BLOCK, STEPS)
    p = spread_positions(position, S_BLOCK, CHANNELS_INNER, INDEX)
    i, j = (p // width).to(tl.int64), (p % width).to(tl.int64)
    bits = _masked(mask_ptr + image * mask_strides[0], mask_strides, i, j, p < positions, SCALE)
    count = tl.sum((bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3), 0)
    tl.store(counts_ptr + tl.program_id(0).to(tl.int64) // groups, count.to(tl.int64), mask=group == 0)

    total = tl.zeros([S_BLOCK, C_BLOCK], ACC)
    if count > 0:
        student_at = _at(student_ptr, student_strides, image, i, j, 1)
        teacher_at = _at(teacher_ptr, teacher_strides, image, i, j, SCALE)
        phases = along_positions(bits)
        for step in range(STEPS):
            c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
            inside = c < channels
            student = tl.load(student_at + c * student_strides[1], mask=(phases != 0) & inside, other=0).to(ACC)
            for phase in tl.static_range(SCALE * SCALE):
                difference, masked = _difference(
                    student, teacher_at + c * teacher_strides[1], teacher_strides, phases, inside, phase, SCALE, ACC
                )
                difference = tl.where(masked, difference, 0.0)
                total = tl.fma(difference, difference, total)
    tl.store(sums_ptr + tl.program_id(0).to(tl.int64), tl.sum(tl.sum(total, 1), 0))


@triton.jit(do_not_specialize=["programs", "tiles", "per_position"])
def _finish_kernel(
    sums_ptr: tl.tensor,  # ACC [programs]
    counts_ptr: tl.tensor,  # int64 [tiles]
    loss_ptr: tl.tensor,  # ACC scalar
    count_ptr: tl.tensor,  # int64 scalar
    programs: tl.tensor,
    tiles: tl.tensor,
    per_position: tl.tensor,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Adds up the programs' sums and counts. One program."""
    total, count = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int64)
    at = tl.arange(0, BLOCK)
    start = 0
    while start < programs:
        total += tl.load(sums_ptr + start + at, mask=start + at < programs, other=0).to(tl.float64)
        count += tl.load(counts_ptr + start + at, mask=start + at < tiles, other=0)
        start += BLOCK
    masked = tl.sum(count, 0)
    tl.store(count_ptr, masked)
    tl.store(loss_ptr, divide(tl.sum(total, 0).to(ACC), tl.maximum(masked * per_position, 1).to(ACC)))


@triton.jit(do_not_specialize=["tiles", "groups", "per_position"])
def _gradient_kernel(
    student_ptr: tl.tensor,  # [B, C, h, w]
    teacher_ptr: tl.tensor,  # [B, C, SCALE * h, SCALE * w]
    mask_ptr: tl.tensor,  # uint8 [B, SCALE * h, SCALE * w]
    grad_out_ptr: tl.tensor,  # ACC scalar
    count_ptr: tl.tensor,  # int64 scalar
    grad_ptr: tl.tensor,  # [B, C, h, w]
    grad_strides: tl.tuple,
    per_position: tl.tensor,
    student_strides: tl.tuple,
    teacher_strides: tl.tuple,
    mask_strides: tl.tuple,
    channels: tl.tensor,
    positions: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    groups: tl.tensor,
    SCALE: tl.constexpr,
    S_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """The gradient in the student, each value written once."""
    image, _, position, channel = tile_place(tiles, groups, S_BLOCK, C_BLOCK, STEPS)
    p = spread_positions(position, S_BLOCK, CHANNELS_INNER, INDEX)
    i, j = (p // width).to(tl.int64), (p % width).to(tl.int64)
    bits = along_positions(_masked(mask_ptr + image * mask_strides[0], mask_strides, i, j, p < positions, SCALE))
    divisor = tl.maximum(tl.load(count_ptr) * per_position, 1).to(ACC)
    factor = divide(2.0 * tl.load(grad_out_ptr), divisor)
    student_ptr = _at(student_ptr, student_strides, image, i, j, 1)
    teacher_ptr = _at(teacher_ptr, teacher_strides, image, i, j, SCALE)
    grad_ptr = _at(grad_ptr, grad_strides, image, i, j, 1)
    inside_image = along_positions(p < positions)
    for step in range(STEPS):
        c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
        inside = c < channels
        student = tl.load(student_ptr + c * student_strides[1], mask=(bits != 0) & inside, other=0).to(ACC)
        pointer = teacher_ptr + c * teacher_strides[1]
        for row in tl.static_range(SCALE):
            for column in tl.static_range(SCALE):
                difference, masked = _difference(
                    student, pointer, teacher_strides, bits, inside, SCALE * row + column, SCALE, ACC
                )
                term = tl.where(masked, difference * factor, 0.0)
                if column == 0:
                    of_row = term
                else:
                    of_row += term
            if row == 0:
                grad = of_row
            else:
                grad += of_row
        tl.store(grad_ptr + c * grad_strides[1], grad.to(grad_ptr.dtype.element_ty), mask=inside_image & inside)
