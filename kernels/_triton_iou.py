"""What the Triton implementations on anchors and boxes share: the IoU, windows and tiles of anchors, and their maxima.

A *window* is the cells of a level whose anchors one box can touch; a program visits a share of it. Where the anchors
come first, as for a plain anchor tensor, a program holds a *tile* of them and goes through the boxes that touch it.

Sizes: B images, G boxes in all, L levels of H x W cells with K anchors each, P slots, N anchors of a tensor, T tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import divide

LEVEL_FIELDS = 6
"""Numbers a level in the table of :func:`level_table`."""

WINDOW_BLOCK, WINDOW_COLUMNS = 64, 32
"""A window is cut into tiles of so many (row, anchor) pairs by so many columns; one warp takes one after the other.

At VisDrone's box sizes most windows are 6 to 10 cells wide and high, so that larger tiles would stand half empty.
"""

TILE = 1024
"""Anchors a tile: 8 a thread of 4 warps."""

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


def as_integers(x: Tensor) -> Tensor:
    """The bits of IoUs as integers, which have the same order, since no IoU is negative."""
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@triton.jit
def pick_level(base_ptrs: tl.tensor, level: tl.tensor, LEVELS: tl.constexpr) -> tl.tensor:
    """The pointer of `level` in a tuple of L pointers."""
    base_ptr = base_ptrs[0]
    for i in tl.static_range(1, LEVELS):
        if level == i:
            base_ptr = base_ptrs[i]
    return base_ptr


@triton.jit
def load_boxes(
    boxes_ptr: tl.tensor, g: tl.tensor, stride_g: tl.tensor, stride_c: tl.tensor, inside: tl.tensor, DTYPE: tl.constexpr
) -> tl.tensor:
    """Coordinates and areas of boxes `g`, and whether they are `inside` and have a positive, finite area."""
    box_ptr = boxes_ptr + g * stride_g
    x1 = tl.load(box_ptr, mask=inside, other=0).to(DTYPE)
    y1 = tl.load(box_ptr + stride_c, mask=inside, other=0).to(DTYPE)
    x2 = tl.load(box_ptr + 2 * stride_c, mask=inside, other=0).to(DTYPE)
    y2 = tl.load(box_ptr + 3 * stride_c, mask=inside, other=0).to(DTYPE)
    area = (x2 - x1) * (y2 - y1)
    return x1, y1, x2, y2, area, (x2 > x1) & (y2 > y1) & (area < _INF)


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
def base_extent(base_ptr: tl.tensor, anchors: tl.tensor, BASE_BLOCK: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """Least x1 and y1, greatest x2 and y2 of those base anchors [K, 4] that have finite, positive sides."""
    k = tl.arange(0, BASE_BLOCK)
    x1, y1, x2, y2, _, _ = load_boxes(base_ptr, k, 4, 1, k < anchors, DTYPE)
    sound = (x2 > x1) & (y2 > y1) & (x1 > -_INF) & (y1 > -_INF) & (x2 < _INF) & (y2 < _INF)
    return (
        tl.min(tl.where(sound, x1, _INF), 0),
        tl.min(tl.where(sound, y1, _INF), 0),
        tl.max(tl.where(sound, x2, -_INF), 0),
        tl.max(tl.where(sound, y2, -_INF), 0),
    )


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
    x1: tl.tensor,
    y1: tl.tensor,
    x2: tl.tensor,
    y2: tl.tensor,
    valid: tl.tensor,
    base_ptr: tl.tensor,
    level_ptr: tl.tensor,
    BASE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """A box's window on a level: first row, first column, columns, its (row, anchor) pairs, tiles; then steps and K."""
    step_y, step_x = tl.load(level_ptr).to(DTYPE), tl.load(level_ptr + 1).to(DTYPE)
    height, width = tl.load(level_ptr + 2).to(tl.int32), tl.load(level_ptr + 3).to(tl.int32)
    anchors = tl.load(level_ptr + 4).to(tl.int32)
    low_x, low_y, high_x, high_y = base_extent(base_ptr, anchors, BASE_BLOCK, DTYPE)
    row, rows = touched_cells(y1, y2, low_y, high_y, step_y, height)
    column, columns = touched_cells(x1, x2, low_x, high_x, step_x, width)
    pairs = tl.where(valid, rows * anchors, 0)
    tiles = tl.cdiv(pairs, BLOCK) * tl.cdiv(columns, COLUMNS)
    return row, column, columns, pairs, tiles, step_y, step_x, anchors


@triton.jit
def window_anchors(
    base_ptr: tl.tensor,
    pair: tl.tensor,
    pairs: tl.tensor,
    row: tl.tensor,
    anchors: tl.tensor,
    step_y: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Of (row, anchor) pairs of a window: row, x1 and x2 in column 0, height, overlap with the box in y.

    From `pairs` on, the overlap is 0.
    """
    inside = pair < pairs
    i = row + pair // anchors
    anchor_ptr = base_ptr + 4 * (pair % anchors)
    shift = i.to(DTYPE) * step_y
    base_x1 = tl.load(anchor_ptr, mask=inside, other=0).to(DTYPE)
    low = tl.load(anchor_ptr + 1, mask=inside, other=0).to(DTYPE) + shift
    base_x2 = tl.load(anchor_ptr + 2, mask=inside, other=0).to(DTYPE)
    high = tl.load(anchor_ptr + 3, mask=inside, other=0).to(DTYPE) + shift
    return i, base_x1, base_x2, high - low, tl.where(inside, overlap(low, high, y1, y2), 0.0)


@triton.jit(do_not_specialize=["slots", "mask_size", "mask_share"])
def window_stats_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at strides stride_g, stride_c
    base_ptrs: tl.tensor,  # L times [K, 4]
    levels_ptr: tl.tensor,  # float64 [L, FIELDS]
    sums_ptr: tl.tensor,  # float64 [3, L, G, P], or None without SUMS
    maxima_ptr: tl.tensor,  # with SUMS DTYPE [L, G, P], else integers [G], zero at first
    mask_ptr: tl.tensor,  # uint8 [mask_size], or None without SUMS
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    slots: tl.tensor,
    mask_size: tl.tensor,
    mask_share: tl.tensor,
    SUMS: tl.constexpr,
    LEVELS: tl.constexpr,
    FIELDS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Greatest IoU of each box; with SUMS of each slot's share, and its sums of IoU and IoU^2 and its pairs above 0.

    The grid is (G, L * P). With SUMS, each program also sets `mask_share` bytes of the mask to zero.
    """
    g, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    boxes = tl.num_programs(0).to(tl.int64)
    level, slot = share // slots, (share % slots).to(tl.int32)
    base_ptr = pick_level(base_ptrs, level, LEVELS)
    x1, y1, x2, y2, area, valid = load_boxes(boxes_ptr, g, stride_g, stride_c, True, DTYPE)
    row, column, columns, pairs, tiles, step_y, step_x, anchors = open_window(
        x1, y1, x2, y2, valid, base_ptr, levels_ptr + level * FIELDS, BASE_BLOCK, BLOCK, COLUMNS, DTYPE
    )
    row_tiles = tl.cdiv(pairs, BLOCK)

    best = tl.zeros([BLOCK], DTYPE)
    total, squares = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    hits = tl.zeros([BLOCK], tl.int32)
    tile = slot
    while tile < tiles:
        pair = (tile % row_tiles) * BLOCK + tl.arange(0, BLOCK)
        _, base_x1, base_x2, height, h = window_anchors(base_ptr, pair, pairs, row, anchors, step_y, y1, y2, DTYPE)
        offset = (tile // row_tiles) * COLUMNS
        end = tl.minimum(offset + COLUMNS, columns)
        while offset < end:
            shift = (column + offset).to(DTYPE) * step_x
            low, high = base_x1 + shift, base_x2 + shift
            iou, hit = pair_iou(overlap(low, high, x1, x2), h, (high - low) * height, area)
            best = tl.maximum(best, iou)
            if SUMS:
                exact = iou.to(tl.float64)
                total += exact
                squares = tl.fma(exact, exact, squares)
                hits += hit.to(tl.int32)
            offset += 1
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
        start = (share * boxes + g) * mask_share
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
    boxes_ptr: tl.tensor,
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    low_x: tl.tensor,
    low_y: tl.tensor,
    high_x: tl.tensor,
    high_y: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Bit i tells whether box ``first + i``, i < 32, of those before `end` intersects a rectangle."""
    lane = tl.arange(0, 32)
    g = first + lane
    x1, y1, x2, y2, _, valid = load_boxes(boxes_ptr, g, stride_g, stride_c, g < end, DTYPE)
    touch = valid & (x1 < high_x) & (x2 > low_x) & (y1 < high_y) & (y2 > low_y)
    return tl.sum(touch.to(tl.int64) << lane, 0)


@triton.jit
def lowest_bit(bits: tl.tensor) -> tl.tensor:
    """Index of the lowest bit set, from the exponent of that power of two as a number."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def tile_extent(x1: tl.tensor, y1: tl.tensor, x2: tl.tensor, y2: tl.tensor, valid: tl.tensor) -> tl.tensor:
    """Least x1 and y1 and greatest x2 and y2 of the valid anchors of a tile."""
    return (
        tl.min(tl.where(valid, x1, _INF), 0),
        tl.min(tl.where(valid, y1, _INF), 0),
        tl.max(tl.where(valid, x2, -_INF), 0),
        tl.max(tl.where(valid, y2, -_INF), 0),
    )


@triton.jit
def tile_of_image(tiles: tl.tensor) -> tl.tensor:
    """Image and tile of this program, where each image has `tiles` of them.

    The grid has one axis, since a GPU takes no more than 65,535 programs along another.
    """
    program = tl.program_id(0).to(tl.int64)
    return program // tiles, program % tiles


@triton.jit(do_not_specialize=["tiles"])
def dense_stats_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at strides stride_g, stride_c
    offsets_ptr: tl.tensor,  # float64 [B + 1]
    anchors_ptr: tl.tensor,  # [N, 4] at strides stride_n, stride_a
    sums_ptr: tl.tensor,  # float64 [3, B, T], or None without SUMS
    maxima_ptr: tl.tensor,  # integers [G], zero at first
    mask_ptr: tl.tensor,  # uint8 [B, cells], or None without SUMS
    stride_g: tl.tensor,
    stride_c: tl.tensor,
    stride_n: tl.tensor,
    stride_a: tl.tensor,
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
    image, tile = tile_of_image(tiles)
    n = tile * BLOCK + tl.arange(0, BLOCK)
    ax1, ay1, ax2, ay2, area, valid = load_boxes(anchors_ptr, n, stride_n, stride_a, n < count, DTYPE)
    low_x, low_y, high_x, high_y = tile_extent(ax1, ay1, ax2, ay2, valid)
    total, squares = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    hits = tl.zeros([BLOCK], tl.int32)
    first = tl.load(offsets_ptr + image).to(tl.int64)
    end = tl.load(offsets_ptr + image + 1).to(tl.int64)
    while first < end:
        bits = touching_boxes(boxes_ptr, stride_g, stride_c, first, end, low_x, low_y, high_x, high_y, DTYPE)
        while bits != 0:
            g = first + lowest_bit(bits)
            bits &= bits - 1
            x1, y1, x2, y2, box_area, _ = load_boxes(boxes_ptr, g, stride_g, stride_c, True, DTYPE)
            iou, hit = pair_iou(overlap(ax1, ax2, x1, x2), overlap(ay1, ay2, y1, y2), area, box_area)
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
