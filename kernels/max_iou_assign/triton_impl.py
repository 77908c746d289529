"""The assignment by IoU in Triton; the contract stands in `reference.py`.

First, where low-quality matches are allowed, the greatest IoU of each box: over the cells that it touches for anchor
grids, over the tiles that it touches for an anchor tensor. Then a program for each image and tile of anchors goes
through the boxes that touch the tile, in their order, and writes each anchor's result once: no atomics on the anchors,
nothing of size A x G.

Sizes: B images, G boxes in all, L levels of H x W cells with K anchors each, A anchors in all, P slots, T tiles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._numerics import accumulation_dtype
from .._triton import LAUNCH, TRITON_DTYPE, on_device, to_device
from .._triton_iou import (
    LEVEL_FIELDS,
    TILE,
    WINDOW_BLOCK,
    WINDOW_COLUMNS,
    as_integers,
    base_extent,
    box_offsets,
    dense_stats_kernel,
    level_table,
    load_boxes,
    lowest_bit,
    overlap,
    pair_iou,
    pick_level,
    slot_count,
    tile_extent,
    tile_of_image,
    touching_boxes,
    window_stats_kernel,
)
from .reference import BELOW, BETWEEN

_BELOW, _BETWEEN, _INF = tl.constexpr(BELOW), tl.constexpr(BETWEEN), tl.constexpr(float("inf"))

TILE_ROWS = 8
"""Rows of cells in a tile of a grid. The nearer its cells are to a square, the fewer boxes touch it."""


def max_iou_assign_triton(
    boxes: Tensor,
    counts: list[int],
    base_anchors: list[Tensor],
    strides: list[float],
    shapes: list[int],
    positive: float,
    negative: float,
    allow_low_quality: bool,
) -> Tensor:
    """The assignment of all levels' anchors, for B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    levels, count, images = len(base_anchors), boxes.shape[0], len(counts)
    anchors = [base.shape[0] for base in base_anchors]
    total = sum(k * h * w for k, h, w in zip(anchors, shapes[::2], shapes[1::2], strict=True))
    if count == 0 or total == 0:
        return boxes.new_full((images, total), BELOW, dtype=torch.int64)
    columns = TILE // TILE_ROWS
    first_anchor, first_tile, places = 0, 0, []
    for k, h, w in zip(anchors, shapes[::2], shapes[1::2], strict=True):
        places += [first_anchor, first_tile]
        first_anchor += k * h * w
        first_tile += triton.cdiv(h, TILE_ROWS) * triton.cdiv(w * k, columns)
    with on_device(boxes):
        base_anchors = [base.contiguous() for base in base_anchors]
        table = level_table(strides, shapes, anchors)
        numbers = to_device([positive, negative, *table, *places, *box_offsets(counts)], boxes.device)
        common = {
            "LEVELS": levels,
            "FIELDS": LEVEL_FIELDS,
            "BASE_BLOCK": triton.next_power_of_2(max(anchors)),
            "DTYPE": TRITON_DTYPE[dtype],
            **LAUNCH,
        }
        best = None
        if allow_low_quality:
            best = boxes.new_zeros((count,), dtype=dtype)
            slots = slot_count(count, shapes, anchors)
            window_stats_kernel[(count, levels * slots)](
                boxes,
                tuple(base_anchors),
                numbers[2:],
                None,
                as_integers(best),
                None,
                *boxes.stride(),
                slots,
                0,
                0,
                SUMS=False,
                BLOCK=WINDOW_BLOCK,
                COLUMNS=WINDOW_COLUMNS,
                num_warps=1,
                **common,
            )
        assigned = boxes.new_empty((images, total), dtype=torch.int64)
        _assign_kernel[(first_tile * images,)](
            boxes,
            tuple(base_anchors),
            numbers,
            best,
            assigned,
            *boxes.stride(),
            total,
            first_tile,
            KEEP_BEST=allow_low_quality,
            ROWS=TILE_ROWS,
            BLOCK=TILE,
            num_warps=4,
            **common,
        )
    return assigned


def max_iou_assign_dense_triton(
    boxes: Tensor, counts: list[int], anchors: Tensor, positive: float, negative: float, allow_low_quality: bool
) -> Tensor:
    """:func:`max_iou_assign_triton` for any anchors [A, 4]."""
    dtype = accumulation_dtype(boxes, anchors)
    count, images, total = boxes.shape[0], len(counts), anchors.shape[0]
    if count == 0 or total == 0:
        return boxes.new_full((images, total), BELOW, dtype=torch.int64)
    with on_device(boxes):
        numbers = to_device([positive, negative, *box_offsets(counts)], boxes.device)
        tiles = triton.cdiv(total, TILE)
        grid = (tiles * images,)
        strides = (*boxes.stride(), *anchors.stride())
        options: dict[str, Any] = {"BLOCK": TILE, "DTYPE": TRITON_DTYPE[dtype], "num_warps": 4, **LAUNCH}
        best = None
        if allow_low_quality:
            best = boxes.new_zeros((count,), dtype=dtype)
            dense_stats_kernel[grid](
                boxes,
                numbers[2:],
                anchors,
                None,
                as_integers(best),
                None,
                *strides,
                total,
                0,
                1,
                tiles,
                SUMS=False,
                **options,
            )
        assigned = boxes.new_empty((images, total), dtype=torch.int64)
        _assign_dense_kernel[grid](
            boxes, numbers, anchors, best, assigned, *strides, total, tiles, KEEP_BEST=allow_low_quality, **options
        )
    return assigned


@triton.jit
def _assign(
    boxes_ptr: tl.tensor,
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    offsets_ptr: tl.tensor,
    best_ptr: tl.tensor,
    ax1: tl.tensor,
    ay1: tl.tensor,
    ax2: tl.tensor,
    ay2: tl.tensor,
    low_x: tl.tensor,
    low_y: tl.tensor,
    high_x: tl.tensor,
    high_y: tl.tensor,
    positive: tl.tensor,
    negative: tl.tensor,
    KEEP_BEST: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """What the anchors of a tile are assigned to; the rectangle contains all of them that can intersect a box."""
    area = (ax2 - ax1) * (ay2 - ay1)
    greatest = tl.zeros([BLOCK], DTYPE)
    index = tl.zeros([BLOCK], tl.int64)
    keep = tl.zeros([BLOCK], tl.int1)
    start, end = tl.load(offsets_ptr).to(tl.int64), tl.load(offsets_ptr + 1).to(tl.int64)
    first = start
    while first < end:
        bits = touching_boxes(boxes_ptr, stride_g, stride_c, first, end, low_x, low_y, high_x, high_y, DTYPE)
        while bits != 0:
            g = first + lowest_bit(bits)
            bits &= bits - 1
            x1, y1, x2, y2, box_area, _ = load_boxes(boxes_ptr, g, stride_g, stride_c, True, DTYPE)
            iou, _ = pair_iou(overlap(ax1, ax2, x1, x2), overlap(ay1, ay2, y1, y2), area, box_area)
            if KEEP_BEST:
                keep |= (iou == tl.load(best_ptr + g)) & (iou > 0)
            better = iou > greatest
            index = tl.where(better, g - start, index)
            greatest = tl.where(better, iou, greatest)
        first += 32
    # Nothing reaches an infinite threshold: without boxes all are below.
    keep |= greatest >= tl.where(start < end, positive, _INF)
    below = greatest < tl.where(start < end, negative, _INF)
    return tl.where(keep, index, tl.where(below, _BELOW, _BETWEEN).to(tl.int64))


@triton.jit(do_not_specialize=["tiles"])
def _assign_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at strides stride_g, stride_c
    base_ptrs: tl.tensor,  # L times [K, 4]
    numbers_ptr: tl.tensor,  # float64: thresholds, table of levels, first anchor and tile of each, offsets of images
    best_ptr: tl.tensor,  # DTYPE [G], or None
    assigned_ptr: tl.tensor,  # int64 [B, A]
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    KEEP_BEST: tl.constexpr,
    LEVELS: tl.constexpr,
    FIELDS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Assigns a tile of ROWS rows of cells by BLOCK / ROWS anchors along a row. A program is a tile of an image."""
    image, tile = tile_of_image(tiles)
    COLUMNS: tl.constexpr = BLOCK // ROWS
    levels_ptr = numbers_ptr + 2
    places_ptr = levels_ptr + LEVELS * FIELDS
    offsets_ptr = places_ptr + 2 * LEVELS + image
    positive, negative = tl.load(numbers_ptr).to(DTYPE), tl.load(numbers_ptr + 1).to(DTYPE)
    level = tl.zeros([], tl.int32)
    for i in tl.static_range(1, LEVELS):
        level += (tile >= tl.load(places_ptr + 2 * i + 1).to(tl.int64)).to(tl.int32)
    base_ptr, level_ptr = pick_level(base_ptrs, level, LEVELS), levels_ptr + level * FIELDS
    step_y, step_x = tl.load(level_ptr).to(DTYPE), tl.load(level_ptr + 1).to(DTYPE)
    height, width = tl.load(level_ptr + 2).to(tl.int32), tl.load(level_ptr + 3).to(tl.int32)
    anchors = tl.load(level_ptr + 4).to(tl.int32)
    first_anchor = tl.load(places_ptr + 2 * level).to(tl.int64)
    tile_of_level = (tile - tl.load(places_ptr + 2 * level + 1).to(tl.int64)).to(tl.int32)

    across = tl.cdiv(width * anchors, COLUMNS)
    first_row, first_place = (tile_of_level // across) * ROWS, (tile_of_level % across) * COLUMNS
    last_row = tl.minimum(first_row + ROWS, height) - 1
    last_place = tl.minimum(first_place + COLUMNS, width * anchors) - 1
    base_low_x, base_low_y, base_high_x, base_high_y = base_extent(base_ptr, anchors, BASE_BLOCK, DTYPE)
    low_x = base_low_x + (first_place // anchors).to(DTYPE) * step_x
    low_y = base_low_y + first_row.to(DTYPE) * step_y
    high_x = base_high_x + (last_place // anchors).to(DTYPE) * step_x
    high_y = base_high_y + last_row.to(DTYPE) * step_y

    lane = tl.arange(0, BLOCK)
    row, place = first_row + lane // COLUMNS, first_place + lane % COLUMNS
    inside = (row <= last_row) & (place <= last_place)
    bx1, by1, bx2, by2, _, _ = load_boxes(base_ptr, place % anchors, 4, 1, inside, DTYPE)
    shift_x, shift_y = (place // anchors).to(DTYPE) * step_x, row.to(DTYPE) * step_y
    result = _assign(
        boxes_ptr,
        stride_g,
        stride_c,
        offsets_ptr,
        best_ptr,
        bx1 + shift_x,
        by1 + shift_y,
        bx2 + shift_x,
        by2 + shift_y,
        low_x,
        low_y,
        high_x,
        high_y,
        positive,
        negative,
        KEEP_BEST,
        BLOCK,
        DTYPE,
    )
    anchor = first_anchor + row.to(tl.int64) * (width * anchors) + place
    tl.store(assigned_ptr + image * total + anchor, result, mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def _assign_dense_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at strides stride_g, stride_c
    numbers_ptr: tl.tensor,  # float64: thresholds, first box of each image, G
    anchors_ptr: tl.tensor,  # [A, 4] at strides stride_n, stride_a
    best_ptr: tl.tensor,  # DTYPE [G], or None
    assigned_ptr: tl.tensor,  # int64 [B, A]
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    stride_n: tl.tensor,
    stride_a: tl.tensor,
    total: tl.tensor,
    tiles: tl.tensor,
    KEEP_BEST: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Assigns a tile of BLOCK anchors. A program is a tile of an image."""
    image, tile = tile_of_image(tiles)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    ax1, ay1, ax2, ay2, _, valid = load_boxes(anchors_ptr, n, stride_n, stride_a, n < total, DTYPE)
    low_x, low_y, high_x, high_y = tile_extent(ax1, ay1, ax2, ay2, valid)
    result = _assign(
        boxes_ptr,
        stride_g,
        stride_c,
        numbers_ptr + 2 + image,
        best_ptr,
        ax1,
        ay1,
        ax2,
        ay2,
        low_x,
        low_y,
        high_x,
        high_y,
        tl.load(numbers_ptr).to(DTYPE),
        tl.load(numbers_ptr + 1).to(DTYPE),
        KEEP_BEST,
        BLOCK,
        DTYPE,
    )
    tl.store(assigned_ptr + image * total + n, result, mask=n < total)
