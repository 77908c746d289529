"""What the Triton implementations on anchors and boxes share: the IoU, windows and tiles of anchors, and their maxima.

A *window* is the cells of a level whose anchors one box can touch; a program visits a share of it. Where the anchors
come first, as for a plain anchor tensor, a program holds a *tile* of them and goes through the boxes that touch it.

In kernels, boxes and anchors are tuples (x1, y1, x2, y2, area).

Sizes: B images, G boxes in all, L levels of H x W cells with K anchors each, P slots, N anchors of a tensor, T tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import LAUNCH, TRITON_DTYPE, divide

LEVEL_FIELDS = tl.constexpr(6)
"""Numbers a level in the table of :func:`level_table`."""

WINDOW_BLOCK, WINDOW_COLUMNS = 64, 32
"""A window is cut into tiles of so many (row, anchor) pairs by so many columns; one warp takes one after the other.

At VisDrone's box sizes most windows are 6 to 10 cells wide and high, so that larger tiles would stand half empty.
"""
WINDOW_OPTIONS: dict[str, Any] = {"BLOCK": WINDOW_BLOCK, "COLUMNS": WINDOW_COLUMNS, "num_warps": 1}

TILE = 1024
"""Anchors a tile: 8 a thread of 4 warps."""
TILE_OPTIONS: dict[str, Any] = {"BLOCK": TILE, "num_warps": 4}

_INF = tl.constexpr(float("inf"))
_MANY = tl.constexpr(2**30)

# Rounding moves an anchor's edge by at most 2^-23 of the coordinates that enter it. Four times that is allowed for,
# and something for coordinates near the smallest numbers.
_SLACK = tl.constexpr(2.0**-21)
_TINY = tl.constexpr(1e-30)


def level_table(strides: Sequence[float], shapes: Sequence[int], anchors: Sequence[int]) -> list[float]:
    """For each level (stride_y, stride_x, H, W, K, cells of the levels before it)."""
    table: list[float] = []
    cells = 0
    for level, k in enumerate(anchors):
        h, w = shapes[2 * level : 2 * level + 2]
        table += [*strides[2 * level : 2 * level + 2], h, w, k, cells]
        cells += h * w
    return table


def box_offsets(counts: Sequence[int]) -> list[float]:
    """Index of the first box of each of B images, and G."""
    offsets = [0.0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return offsets


def slot_count(boxes: int, shapes: Sequence[int], anchors: Sequence[int]) -> int:
    """Programs that share a window: enough to fill a GPU when boxes are few, no more than the largest window has tiles."""
    tiles = max(
        triton.cdiv(shapes[2 * level] * k, WINDOW_BLOCK) * triton.cdiv(shapes[2 * level + 1], WINDOW_COLUMNS)
        for level, k in enumerate(anchors)
    )
    return max(1, min(16, tiles, 16384 // max(boxes * len(anchors), 1)))


def grid_options(base_anchors: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """Options of every kernel on anchor grids; `dtype` is the IoU's."""
    largest = max(1, *(base.shape[0] for base in base_anchors))
    levels = {"LEVELS": len(base_anchors), "BASE_BLOCK": triton.next_power_of_2(largest)}
    return {**levels, "DTYPE": TRITON_DTYPE[dtype], **LAUNCH}


def window_stats(
    boxes: Tensor,
    bases: tuple[Tensor, ...],
    levels: Tensor,
    maxima: Tensor,
    slots: int,
    options: dict[str, Any],
    sums: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Launches :func:`window_stats_kernel`, where the shapes stand; SUMS with `sums` and `mask`."""
    grid = (boxes.shape[0], len(bases) * slots)
    size, share = (0, 0) if mask is None else (mask.numel(), triton.cdiv(mask.numel(), grid[0] * grid[1]))
    arguments = (boxes, bases, levels, sums, maxima, mask, boxes.stride(), slots, size, share)
    window_stats_kernel[grid](*arguments, SUMS=mask is not None, **WINDOW_OPTIONS, **options)


def as_integers(x: Tensor) -> Tensor:
    """The bits of IoUs as integers, which have the same order, since no IoU is negative."""
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@triton.jit
def pick_level(base_ptrs: tl.tuple, level: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """The pointer of `level` in a tuple of L pointers."""
    base_ptr = base_ptrs[0]
    for i in tl.static_range(1, LEVELS):
        if level == i:
            base_ptr = base_ptrs[i]
    return base_ptr


@triton.jit
def load_level(levels_ptr: tl.tensor, level: tl.tensor, DTYPE: tl.constexpr) -> tl.tuple:
    """A row of the table [L, LEVEL_FIELDS]: step_y, step_x, H, W, K, cells of the levels before it."""
    level_ptr = levels_ptr + level * LEVEL_FIELDS
    step_y, step_x = tl.load(level_ptr).to(DTYPE), tl.load(level_ptr + 1).to(DTYPE)
    height, width = tl.load(level_ptr + 2).to(tl.int32), tl.load(level_ptr + 3).to(tl.int32)
    return step_y, step_x, height, width, tl.load(level_ptr + 4).to(tl.int32), tl.load(level_ptr + 5).to(tl.int64)


@triton.jit
def load_boxes(
    boxes_ptr: tl.tensor, g: tl.tensor, strides: tl.tuple, inside: tl.tensor, DTYPE: tl.constexpr
) -> tl.tuple:
    """Boxes `g`, and whether they are `inside` and have a positive, finite area."""
    box_ptr = boxes_ptr + g * strides[0]
    x1 = tl.load(box_ptr, mask=inside, other=0).to(DTYPE)
    y1 = tl.load(box_ptr + strides[1], mask=inside, other=0).to(DTYPE)
    x2 = tl.load(box_ptr + 2 * strides[1], mask=inside, other=0).to(DTYPE)
    y2 = tl.load(box_ptr + 3 * strides[1], mask=inside, other=0).to(DTYPE)
    area = (x2 - x1) * (y2 - y1)
    return (x1, y1, x2, y2, area), (x2 > x1) & (y2 > y1) & (area < _INF)


@triton.jit
def overlap(low: tl.tensor, high: tl.tensor, box_low: tl.tensor, box_high: tl.tensor) -> tl.tensor:
    """Length of the intersection of two intervals, 0 where they are apart."""
    return tl.maximum(tl.minimum(high, box_high) - tl.maximum(low, box_low), 0)


@triton.jit
def pair_iou(w: tl.tensor, h: tl.tensor, area_a: tl.tensor, area_b: tl.tensor) -> tl.tensor:
    """IoU of anchors with a valid box that they intersect in w x h, and whether it is positive.

    An anchor with an infinite or NaN coordinate has such an area and gets 0; one without width or height intersects
    nothing. So anchors need no other check.
    """
    inter = w * h
    hit = (inter > 0) & (area_a < _INF)
    union = (area_a + area_b) - inter
    # Division is slow for a numerator of 0, and most are 0.
    return tl.where(hit, divide(tl.where(hit, inter, 1.0), union), 0.0), hit


@triton.jit
def extent(boxes: tl.tuple, valid: tl.tensor) -> tl.tuple:
    """Least x1 and y1 and greatest x2 and y2 of the valid ones of boxes."""
    return (
        tl.min(tl.where(valid, boxes[0], _INF), 0),
        tl.min(tl.where(valid, boxes[1], _INF), 0),
        tl.max(tl.where(valid, boxes[2], -_INF), 0),
        tl.max(tl.where(valid, boxes[3], -_INF), 0),
    )


@triton.jit
def base_extent(base_ptr: tl.tensor, anchors: tl.tensor, BASE_BLOCK: tl.constexpr, DTYPE: tl.constexpr) -> tl.tuple:
    """The extent of those base anchors [K, 4] that have finite, positive sides."""
    k = tl.arange(0, BASE_BLOCK)
    base, _ = load_boxes(base_ptr, k, (4, 1), k < anchors, DTYPE)
    x1, y1, x2, y2, _ = base
    sound = (x2 > x1) & (y2 > y1) & (x1 > -_INF) & (y1 > -_INF) & (x2 < _INF) & (y2 < _INF)
    return extent(base, sound)


@triton.jit
def touched_cells(
    box_low: tl.tensor,
    box_high: tl.tensor,
    base_low: tl.tensor,
    base_high: tl.tensor,
    step: tl.tensor,
    cells: tl.tensor,
) -> tl.tensor:
    """First cell along one axis whose anchors can touch a box, and the number of such cells.

    The anchors of cell i lie between ``base_low + i * step`` and ``base_high + i * step``. No cell that touches is left
    out, however these are rounded; where a bound is not a number, every cell is taken.
    """
    slack = _SLACK * tl.abs(box_low) + _SLACK * tl.abs(box_high) + _TINY
    slack += _SLACK * tl.abs(base_low) + _SLACK * tl.abs(base_high)
    first = tl.ceil((box_low - base_high - slack) / step)
    last = tl.floor((box_high - base_low + slack) / step)
    first = tl.where(tl.abs(first) < _INF, tl.minimum(tl.maximum(first, 0), _MANY), 0).to(tl.int32)
    last = tl.where(tl.abs(last) < _INF, tl.minimum(tl.maximum(last, -1), _MANY), _MANY).to(tl.int32)
    return first, tl.maximum(tl.minimum(last + 1, cells) - first, 0)


@triton.jit
def open_window(
    boxes_ptr: tl.tensor,
    box_strides: tl.tuple,
    base_ptrs: tl.tuple,
    levels_ptr: tl.tensor,
    slots: tl.tensor,
    LEVELS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tuple:
    """Box, level and slot of this program of a grid (G, L * P), the window, and the number of its tiles.

    The window is its box, step_x, step_y, base anchors [K, 4], K, and then first row, first column, columns, and (row,
    anchor) pairs.
    """
    g, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    level, slot = share // slots, (share % slots).to(tl.int32)
    base_ptr = pick_level(base_ptrs, level, LEVELS)
    box, valid = load_boxes(boxes_ptr, g, box_strides, True, DTYPE)
    step_y, step_x, height, width, anchors, _ = load_level(levels_ptr, level, DTYPE)
    low_x, low_y, high_x, high_y = base_extent(base_ptr, anchors, BASE_BLOCK, DTYPE)
    row, rows = touched_cells(box[1], box[3], low_y, high_y, step_y, height)
    column, columns = touched_cells(box[0], box[2], low_x, high_x, step_x, width)
    pairs = tl.where(valid, rows * anchors, 0)
    tiles = tl.cdiv(pairs, BLOCK) * tl.cdiv(columns, COLUMNS)
    return g, level, slot, (box, step_x, step_y, base_ptr, anchors, row, column, columns, pairs), tiles


@triton.jit
def window_tile(
    window: tl.tuple, tile: tl.tensor, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr
) -> tl.tuple:
    """Of a tile of a window: its rows of cells, first column, the column after the last, and the anchors of its pairs.

    The anchors are x1 and x2 in column 0, height, overlap with the box in y; behind the window, that is 0.
    """
    box, _, step_y, base_ptr, anchors, row, column, columns, pairs = window
    row_tiles = tl.cdiv(pairs, BLOCK)
    pair = (tile % row_tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    i = row + pair // anchors
    base, _ = load_boxes(base_ptr, pair % anchors, (4, 1), inside, DTYPE)
    shift = i.to(DTYPE) * step_y
    low, high = base[1] + shift, base[3] + shift
    h = tl.where(inside, overlap(low, high, box[1], box[3]), 0.0)
    offset = (tile // row_tiles) * COLUMNS
    end = tl.minimum(offset + COLUMNS, columns)
    return i, column + offset, column + end, (base[0], base[2], high - low, h)


@triton.jit
def window_iou(window: tl.tuple, anchors: tl.tuple, column: tl.tensor, DTYPE: tl.constexpr) -> tl.tuple:
    """:func:`pair_iou` of a window's box with the anchors of a tile in one column."""
    box, step_x = window[0], window[1]
    shift = column.to(DTYPE) * step_x
    low, high = anchors[0] + shift, anchors[1] + shift
    return pair_iou(overlap(low, high, box[0], box[2]), anchors[3], (high - low) * anchors[2], box[4])


@triton.jit(do_not_specialize=["slots", "mask_size", "mask_share"])
def window_stats_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    base_ptrs: tl.tuple,  # L times [K, 4]
    levels_ptr: tl.tensor,  # float64 [L, LEVEL_FIELDS]
    sums_ptr: tl.tensor,  # float64 [3, L, G, P], or None without SUMS
    maxima_ptr: tl.tensor,  # with SUMS DTYPE [L, G, P], else integers [G], zero at first
    mask_ptr: tl.tensor,  # uint8 [mask_size], or None without SUMS
    box_strides: tl.tuple,
    slots: tl.tensor,
    mask_size: tl.tensor,
    mask_share: tl.tensor,
    SUMS: tl.constexpr,
    LEVELS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Greatest IoU of each box; with SUMS of each slot's share, and its sums of IoU and IoU^2 and its pairs above 0.

    The grid is (G, L * P). With SUMS, each program also sets `mask_share` bytes of the mask to zero.
    """
    boxes = tl.num_programs(0).to(tl.int64)
    g, level, slot, window, tiles = open_window(
        boxes_ptr, box_strides, base_ptrs, levels_ptr, slots, LEVELS, BASE_BLOCK, BLOCK, COLUMNS, DTYPE
    )
    best = tl.zeros([BLOCK], DTYPE)
    total, squares = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    hits = tl.zeros([BLOCK], tl.int32)
    tile = slot
    while tile < tiles:
        _, column, end, anchors = window_tile(window, tile, BLOCK, COLUMNS, DTYPE)
        while column < end:
            iou, hit = window_iou(window, anchors, column, DTYPE)
            best = tl.maximum(best, iou)
            if SUMS:
                exact = iou.to(tl.float64)
                total += exact
                squares = tl.fma(exact, exact, squares)
                hits += hit.to(tl.int32)
            column += 1
        tile += slots

    if SUMS:
        entry = (level * boxes + g) * slots + slot
        plane = LEVELS * boxes * slots
        if slot < tiles:
            tl.store(maxima_ptr + entry, tl.max(best, 0))
            tl.store(sums_ptr + entry, tl.sum(total, 0))
            tl.store(sums_ptr + plane + entry, tl.sum(squares, 0))
            tl.store(sums_ptr + 2 * plane + entry, tl.sum(hits.to(tl.int64), 0).to(tl.float64))
        else:
            tl.store(maxima_ptr + entry, 0.0)
            tl.store(sums_ptr + entry, 0.0)
            tl.store(sums_ptr + plane + entry, 0.0)
            tl.store(sums_ptr + 2 * plane + entry, 0.0)
        start = (tl.program_id(1).to(tl.int64) * boxes + g) * mask_share
        stop = tl.minimum(start + mask_share, mask_size)
        while start < stop:
            at = start + tl.arange(0, BLOCK)
            tl.store(mask_ptr + at, tl.zeros([BLOCK], tl.uint8), mask=at < stop)
            start += BLOCK
    elif slot < tiles:
        raise_maximum(maxima_ptr + g, tl.max(best, 0))


@triton.jit
def raise_maximum(maximum_ptr: tl.tensor, iou: tl.tensor) -> None:
    """Raises a greatest IoU, stored as an integer of the same bits, to `iou`; the order of programs does not matter."""
    integer: tl.constexpr = tl.int64 if iou.dtype == tl.float64 else tl.int32
    tl.atomic_max(maximum_ptr, iou.to(integer, bitcast=True), mask=iou > 0, sem="relaxed")


@triton.jit
def touching_boxes(
    boxes_ptr: tl.tensor, strides: tl.tuple, first: tl.tensor, end: tl.tensor, rectangle: tl.tuple, DTYPE: tl.constexpr
) -> tl.tensor:
    """Bit i tells whether box ``first + i``, i < 32, of those before `end` intersects (x1, y1, x2, y2)."""
    lane = tl.arange(0, 32)
    g = first + lane
    box, valid = load_boxes(boxes_ptr, g, strides, g < end, DTYPE)
    low_x, low_y, high_x, high_y = rectangle
    touch = valid & (box[0] < high_x) & (box[2] > low_x) & (box[1] < high_y) & (box[3] > low_y)
    return tl.sum(touch.to(tl.int64) << lane, 0)


@triton.jit
def next_touching(
    boxes_ptr: tl.tensor, strides: tl.tuple, first: tl.tensor, bits: tl.tensor, anchors: tl.tuple, DTYPE: tl.constexpr
) -> tl.tuple:
    """Index of the first box in the bits of :func:`touching_boxes`, the other bits, and :func:`pair_iou` with it."""
    # The index of the lowest bit is the exponent of that power of two as a number.
    g = first + (((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127)
    box, _ = load_boxes(boxes_ptr, g, strides, True, DTYPE)
    w, h = overlap(anchors[0], anchors[2], box[0], box[2]), overlap(anchors[1], anchors[3], box[1], box[3])
    iou, hit = pair_iou(w, h, anchors[4], box[4])
    return g, bits & (bits - 1), iou, hit


@triton.jit
def tile_of_image(tiles: tl.tensor) -> tl.tuple:
    """Image and tile of this program, where each image has `tiles` of them.

    The grid has one axis, since a GPU takes no more than 65,535 programs along another.
    """
    program = tl.program_id(0).to(tl.int64)
    return program // tiles, program % tiles


@triton.jit
def anchor_tile(
    anchors_ptr: tl.tensor,
    strides: tl.tuple,
    count: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tuple:
    """Image of this program, indices of the anchors of its tile, these anchors, and their extent."""
    image, tile = tile_of_image(tiles)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    anchors, valid = load_boxes(anchors_ptr, n, strides, n < count, DTYPE)
    return image, n, anchors, extent(anchors, valid)


@triton.jit(do_not_specialize=["tiles"])
def dense_stats_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    offsets_ptr: tl.tensor,  # float64 [B + 1]
    anchors_ptr: tl.tensor,  # [N, 4] at anchor_strides
    sums_ptr: tl.tensor,  # float64 [3, B, T], or None without SUMS
    maxima_ptr: tl.tensor,  # integers [G], zero at first
    mask_ptr: tl.tensor,  # uint8 [B, cells], or None without SUMS
    box_strides: tl.tuple,
    anchor_strides: tl.tuple,
    count: tl.tensor,
    cells: tl.tensor,
    anchors_per_cell: tl.tensor,
    tiles: tl.tensor,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Greatest IoU of each box; with SUMS, each tile's sums of IoU and IoU^2 and its pairs above 0, and a mask of zeros.

    A program is a tile of an image, tile after tile.
    """
    image, n, anchors, rectangle = anchor_tile(anchors_ptr, anchor_strides, count, tiles, BLOCK, DTYPE)
    total, squares = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    hits = tl.zeros([BLOCK], tl.int32)
    first = tl.load(offsets_ptr + image).to(tl.int64)
    end = tl.load(offsets_ptr + image + 1).to(tl.int64)
    while first < end:
        bits = touching_boxes(boxes_ptr, box_strides, first, end, rectangle, DTYPE)
        while bits != 0:
            g, bits, iou, hit = next_touching(boxes_ptr, box_strides, first, bits, anchors, DTYPE)
            raise_maximum(maxima_ptr + g, tl.max(iou, 0))
            if SUMS:
                exact = iou.to(tl.float64)
                total += exact
                squares = tl.fma(exact, exact, squares)
                hits += hit.to(tl.int32)
        first += 32
    if SUMS:
        entry = tl.program_id(0).to(tl.int64)
        plane = tl.num_programs(0).to(tl.int64)
        tl.store(sums_ptr + entry, tl.sum(total, 0))
        tl.store(sums_ptr + plane + entry, tl.sum(squares, 0))
        tl.store(sums_ptr + 2 * plane + entry, tl.sum(hits.to(tl.int64), 0).to(tl.float64))
        mask_ptr += image * cells + n // anchors_per_cell
        tl.store(mask_ptr, tl.zeros([BLOCK], tl.uint8), mask=n < count)
