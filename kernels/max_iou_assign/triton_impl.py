"""The assignment by IoU in Triton; the contract stands in `reference.py`.

First, where low-quality matches are allowed, the greatest IoU of each box: over the cells that it touches for anchor
grids, over the tiles that it touches for an anchor tensor. Then a program for each image and tile of anchors goes
through the boxes that touch the tile, in their order, and writes each anchor's result once: no atomics on the anchors,
nothing of size A x G.

Sizes: B images, G boxes in all, L levels of H x W cells with K anchors each, A anchors in all, P slots, T tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._numerics import accumulation_dtype
from .._triton import LAUNCH, TRITON_DTYPE, on_device, to_device
from .._triton_iou import (
    LEVEL_FIELDS,
    TILE,
    TILE_OPTIONS,
    anchor_tile,
    as_integers,
    base_extent,
    box_offsets,
    dense_stats_kernel,
    grid_options,
    level_table,
    load_boxes,
    load_level,
    next_touching,
    pick_level,
    slot_count,
    tile_of_image,
    touching_boxes,
    window_stats,
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
    own_best: bool,
) -> Tensor:
    """The assignment of all levels' anchors, for B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    count, images = boxes.shape[0], len(counts)
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
        bases = tuple(base.contiguous() for base in base_anchors)
        table = level_table(strides, shapes, anchors)
        numbers = to_device([positive, negative, *table, *places, *box_offsets(counts)], boxes.device)
        options = grid_options(base_anchors, dtype)
        best = None
        if allow_low_quality:
            best = boxes.new_zeros((count,), dtype=dtype)
            slots = slot_count(count, shapes, anchors)
            window_stats(boxes, bases, numbers[2:], as_integers(best), slots, options)
        assigned = boxes.new_empty((images, total), dtype=torch.int64)
        _assign_kernel[(first_tile * images,)](
            boxes,
            bases,
            numbers,
            best,
            assigned,
            boxes.stride(),
            total,
            first_tile,
            KEEP_BEST=allow_low_quality,
            OWN_BEST=own_best,
            ROWS=TILE_ROWS,
            **TILE_OPTIONS,
            **options,
        )
    return assigned


def max_iou_assign_dense_triton(
    boxes: Tensor,
    counts: list[int],
    anchors: Tensor,
    positive: float,
    negative: float,
    allow_low_quality: bool,
    own_best: bool,
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
        sizes = (boxes.stride(), anchors.stride(), total)
        options = {**TILE_OPTIONS, "DTYPE": TRITON_DTYPE[dtype], **LAUNCH}
        best = None
        if allow_low_quality:
            best = boxes.new_zeros((count,), dtype=dtype)
            dense_stats_kernel[grid](
                boxes, numbers[2:], anchors, None, as_integers(best), None, *sizes, 0, 1, tiles, SUMS=False, **options
            )
        assigned = boxes.new_empty((images, total), dtype=torch.int64)
        matching = {"KEEP_BEST": allow_low_quality, "OWN_BEST": own_best}
        _assign_dense_kernel[grid](boxes, numbers, anchors, best, assigned, *sizes, tiles, **matching, **options)
    return assigned


@triton.jit
def _assign(
    boxes_ptr: tl.tensor,
    strides: tl.tuple,
    thresholds_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    best_ptr: tl.tensor,
    anchors: tl.tuple,
    rectangle: tl.tuple,
    KEEP_BEST: tl.constexpr,
    OWN_BEST: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """What the anchors of a tile are assigned to; the rectangle contains all of them that can intersect a box."""
    positive, negative = tl.load(thresholds_ptr).to(DTYPE), tl.load(thresholds_ptr + 1).to(DTYPE)
    greatest = tl.zeros([BLOCK], DTYPE)
    index = tl.zeros([BLOCK], tl.int64)
    last = tl.zeros([BLOCK], tl.int64)
    keep = tl.zeros([BLOCK], tl.int1)
    start, end = tl.load(offsets_ptr).to(tl.int64), tl.load(offsets_ptr + 1).to(tl.int64)
    first = start
    while first < end:
        bits = touching_boxes(boxes_ptr, strides, first, end, rectangle, DTYPE)
        while bits != 0:
            g, bits, iou, _ = next_touching(boxes_ptr, strides, first, bits, anchors, DTYPE)
            if KEEP_BEST:
                best = (iou == tl.load(best_ptr + g)) & (iou > 0)
                keep |= best
                if OWN_BEST:
                    last = tl.where(best, g - start, last)
            better = iou > greatest
            index = tl.where(better, g - start, index)
            greatest = tl.where(better, iou, greatest)
        first += 32
    if OWN_BEST:
        index = tl.where(keep, last, index)
    # Nothing reaches an infinite threshold: without boxes all are below.
    keep |= greatest >= tl.where(start < end, positive, _INF)
    below = greatest < tl.where(start < end, negative, _INF)
    return tl.where(keep, index, tl.where(below, _BELOW, _BETWEEN).to(tl.int64))


@triton.jit(do_not_specialize=["tiles"])
def _assign_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    base_ptrs: tl.tuple,  # L times [K, 4]
    numbers_ptr: tl.tensor,  # float64: thresholds, table of levels, first anchor and tile of each, offsets of images
    best_ptr: tl.tensor,  # DTYPE [G], or None
    assigned_ptr: tl.tensor,  # int64 [B, A]
    box_strides: tl.tuple,
    total: tl.tensor,
    tiles: tl.tensor,
    KEEP_BEST: tl.constexpr,
    OWN_BEST: tl.constexpr,
    LEVELS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Assigns a tile of ROWS rows of cells by BLOCK / ROWS anchors along a row. A program is a tile of an image."""
    image, tile = tile_of_image(tiles)
    COLUMNS: tl.constexpr = BLOCK // ROWS
    levels_ptr = numbers_ptr + 2
    places_ptr = levels_ptr + LEVELS * LEVEL_FIELDS
    offsets_ptr = places_ptr + 2 * LEVELS + image
    level = tl.zeros([], tl.int32)
    for i in tl.static_range(1, LEVELS):
        level += (tile >= tl.load(places_ptr + 2 * i + 1).to(tl.int64)).to(tl.int32)
    base_ptr = pick_level(base_ptrs, level, LEVELS)
    step_y, step_x, height, width, anchors, _ = load_level(levels_ptr, level, DTYPE)
    first_anchor = tl.load(places_ptr + 2 * level).to(tl.int64)
    tile_of_level = (tile - tl.load(places_ptr + 2 * level + 1).to(tl.int64)).to(tl.int32)

    across = tl.cdiv(width * anchors, COLUMNS)
    first_row, first_place = (tile_of_level // across) * ROWS, (tile_of_level % across) * COLUMNS
    last_row = tl.minimum(first_row + ROWS, height) - 1
    last_place = tl.minimum(first_place + COLUMNS, width * anchors) - 1
    base_low_x, base_low_y, base_high_x, base_high_y = base_extent(base_ptr, anchors, BASE_BLOCK, DTYPE)
    rectangle = (
        base_low_x + (first_place // anchors).to(DTYPE) * step_x,
        base_low_y + first_row.to(DTYPE) * step_y,
        base_high_x + (last_place // anchors).to(DTYPE) * step_x,
        base_high_y + last_row.to(DTYPE) * step_y,
    )
    lane = tl.arange(0, BLOCK)
    row, place = first_row + lane // COLUMNS, first_place + lane % COLUMNS
    inside = (row <= last_row) & (place <= last_place)
    base, _ = load_boxes(base_ptr, place % anchors, (4, 1), inside, DTYPE)
    shift_x, shift_y = (place // anchors).to(DTYPE) * step_x, row.to(DTYPE) * step_y
    x1, y1, x2, y2 = base[0] + shift_x, base[1] + shift_y, base[2] + shift_x, base[3] + shift_y
    of_tile = (x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
    result = _assign(
        boxes_ptr,
        box_strides,
        numbers_ptr,
        offsets_ptr,
        best_ptr,
        of_tile,
        rectangle,
        KEEP_BEST,
        OWN_BEST,
        BLOCK,
        DTYPE,
    )
    anchor = first_anchor + row.to(tl.int64) * (width * anchors) + place
    tl.store(assigned_ptr + image * total + anchor, result, mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def _assign_dense_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    numbers_ptr: tl.tensor,  # float64: thresholds, first box of each image, G
    anchors_ptr: tl.tensor,  # [A, 4] at anchor_strides
    best_ptr: tl.tensor,  # DTYPE [G], or None
    assigned_ptr: tl.tensor,  # int64 [B, A]
    box_strides: tl.tuple,
    anchor_strides: tl.tuple,
    total: tl.tensor,
    tiles: tl.tensor,
    KEEP_BEST: tl.constexpr,
    OWN_BEST: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Assigns a tile of BLOCK anchors. A program is a tile of an image."""
    image, n, of_tile, rectangle = anchor_tile(anchors_ptr, anchor_strides, total, tiles, BLOCK, DTYPE)
    offsets_ptr = numbers_ptr + 2 + image
    result = _assign(
        boxes_ptr,
        box_strides,
        numbers_ptr,
        offsets_ptr,
        best_ptr,
        of_tile,
        rectangle,
        KEEP_BEST,
        OWN_BEST,
        BLOCK,
        DTYPE,
    )
    tl.store(assigned_ptr + image * total + n, result, mask=n < total)
