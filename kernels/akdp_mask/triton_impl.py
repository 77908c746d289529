"""The AKDP mask in Triton; the contract stands in `reference.py`.

Anchor grids, three launches and one small copy to the device for a whole batch: a program for each box, level and slot
sums the IoUs of its share of the cells that the box touches; the shares of an image are joined in a fixed order to
lambda and thresholds; then the same programs set the mask. They store nothing but True, so their order does not matter.

Anchor tensors: the same with a program for each image and tile of anchors, which goes through the boxes that touch it.

Sizes: B images, G boxes in all, L levels of H x W cells with K anchors each, P slots, N anchors of a tensor, T tiles.
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
    WINDOW_OPTIONS,
    anchor_tile,
    as_integers,
    box_offsets,
    dense_stats_kernel,
    grid_options,
    level_table,
    load_level,
    next_touching,
    open_window,
    slot_count,
    touching_boxes,
    window_iou,
    window_stats,
    window_tile,
)
from .reference import ADAPTIVE_NONZERO, FACTOR

_NONZERO, _FACTOR = tl.constexpr(ADAPTIVE_NONZERO), tl.constexpr(FACTOR)


def akdp_mask_triton(
    boxes: Tensor,
    counts: list[int],
    base_anchors: list[Tensor],
    strides: list[float],
    shapes: list[int],
    mode: int,
    factor: float,
    all_levels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The masks of L levels and B images in one call; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(boxes, *base_anchors)
    levels, count, images = len(base_anchors), boxes.shape[0], len(counts)
    anchors = [base.shape[0] for base in base_anchors]
    cells = sum(h * w for h, w in zip(shapes[::2], shapes[1::2], strict=True))
    if count == 0:
        return _nothing(boxes, images, levels, images * cells, dtype, mode, factor)
    with on_device(boxes):
        bases = tuple(base.contiguous() for base in base_anchors)
        table = level_table(strides, shapes, anchors)
        numbers = to_device([factor, *table, *box_offsets(counts)], boxes.device)
        slots = slot_count(count, shapes, anchors)
        mask = boxes.new_empty((images * cells,), dtype=torch.bool)
        sums = boxes.new_empty((3, levels, count, slots), dtype=torch.float64)
        maxima = boxes.new_empty((levels, count, slots), dtype=dtype)
        bytes_of_mask = mask.view(torch.uint8)
        options = grid_options(base_anchors, dtype)
        window_stats(boxes, bases, numbers[1:], maxima, slots, options, sums, bytes_of_mask)
        lam, max_iou, thresholds, image_of_box = _reduce(
            boxes, sums, maxima, numbers, images, levels, 0, mode, all_levels, dtype
        )
        _window_mask_kernel[(count, levels * slots)](
            boxes,
            bases,
            numbers[1:],
            thresholds,
            max_iou,
            image_of_box,
            bytes_of_mask,
            boxes.stride(),
            slots,
            images,
            **WINDOW_OPTIONS,
            **options,
        )
    return mask, lam, max_iou


def akdp_mask_dense_triton(
    boxes: Tensor, counts: list[int], anchors: Tensor, mode: int, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`akdp_mask_triton` for one level of any anchors [H, W, K, 4]."""
    dtype = accumulation_dtype(boxes, anchors)
    h, w, k, _ = anchors.shape
    count, images, cells, n = boxes.shape[0], len(counts), h * w, h * w * k
    if count == 0 or n == 0:
        return _nothing(boxes, images, 1, images * cells, dtype, mode, factor)
    with on_device(boxes):
        flat = anchors.reshape(n, 4)
        numbers = to_device([factor, *level_table([0, 0], [n, 1], [1]), *box_offsets(counts)], boxes.device)
        tiles = triton.cdiv(n, TILE)
        mask = boxes.new_empty((images * cells,), dtype=torch.bool)
        sums = boxes.new_empty((3, images, tiles), dtype=torch.float64)
        maxima = boxes.new_zeros((1, count, 1), dtype=dtype)
        arguments = (boxes.stride(), flat.stride(), n, cells, k, tiles)
        options = {**TILE_OPTIONS, "DTYPE": TRITON_DTYPE[dtype], **LAUNCH}
        offsets = numbers[-images - 1 :]
        bytes_of_mask = mask.view(torch.uint8)
        dense_stats_kernel[(tiles * images,)](
            boxes, offsets, flat, sums, as_integers(maxima), bytes_of_mask, *arguments, SUMS=True, **options
        )
        lam, max_iou, thresholds, _ = _reduce(boxes, sums, maxima, numbers, images, 1, tiles, mode, False, dtype)
        _dense_mask_kernel[(tiles * images,)](boxes, offsets, flat, thresholds, bytes_of_mask, *arguments, **options)
    return mask, lam, max_iou


def _nothing(
    boxes: Tensor, images: int, levels: int, mask_size: int, dtype: torch.dtype, mode: int, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The results where there is no pair of an anchor and a box."""
    return (
        boxes.new_zeros((mask_size,), dtype=torch.bool),
        boxes.new_full((levels, images), factor if mode == FACTOR else 0.0, dtype=torch.float64),
        boxes.new_zeros((levels, boxes.shape[0]), dtype=dtype),
    )


def _reduce(
    boxes: Tensor,
    sums: Tensor,
    maxima: Tensor,
    numbers: Tensor,
    images: int,
    levels: int,
    tiles: int,
    mode: int,
    all_levels: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lam [L, B], max_iou and thresholds [L, G], and the image of each box int32[G]. `tiles`: T, or 0 for grids."""
    count = boxes.shape[0]
    lam = boxes.new_empty((levels, images), dtype=torch.float64)
    max_iou, thresholds = (boxes.new_empty((levels, count), dtype=dtype) for _ in range(2))
    image_of_box = boxes.new_empty((count,), dtype=torch.int32)
    _reduce_kernel[(images, 1 if all_levels else levels)](
        sums,
        maxima,
        numbers,
        lam,
        max_iou,
        thresholds,
        image_of_box,
        count,
        maxima.shape[2],
        tiles,
        MODE=mode,
        ALL_LEVELS=all_levels,
        LEVELS=levels,
        DTYPE=TRITON_DTYPE[dtype],
        BLOCK=1024,
        SLOTS_BLOCK=16,
        num_warps=4,
        **LAUNCH,
    )
    return lam, max_iou, thresholds, image_of_box


@triton.jit(do_not_specialize=["boxes", "slots", "tiles"])
def _reduce_kernel(
    sums_ptr: tl.tensor,  # float64 [3, L, G, P], or [3, B, T]
    maxima_ptr: tl.tensor,  # DTYPE [L, G, P]
    numbers_ptr: tl.tensor,  # float64: the factor, the table of levels, the first box of each image, G
    lam_ptr: tl.tensor,  # float64 [L, B]
    max_iou_ptr: tl.tensor,  # DTYPE [L, G]
    thresholds_ptr: tl.tensor,  # DTYPE [L, G]
    image_ptr: tl.tensor,  # int32 [G]
    boxes: tl.tensor,
    slots: tl.tensor,
    tiles: tl.tensor,
    MODE: tl.constexpr,
    ALL_LEVELS: tl.constexpr,
    LEVELS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS_BLOCK: tl.constexpr,
) -> None:
    """Lambda, maxima and thresholds of an image on one level, or on ALL_LEVELS. The grid is (B, L), or (B, 1)."""
    image, own_level = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    images = tl.num_programs(0).to(tl.int64)
    COUNT: tl.constexpr = LEVELS if ALL_LEVELS else 1
    offsets_ptr = numbers_ptr + 1 + LEVELS * LEVEL_FIELDS + image
    first, end = tl.load(offsets_ptr).to(tl.int64), tl.load(offsets_ptr + 1).to(tl.int64)

    if MODE == _FACTOR:
        lam = tl.load(numbers_ptr)
    else:
        entries = tl.where(tiles > 0, images * tiles, boxes.to(tl.int64) * slots)
        plane = LEVELS * entries
        total, squares = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        hits = tl.zeros([BLOCK], tl.float64)
        pairs = tl.zeros([], tl.float64)
        for i in tl.static_range(COUNT):
            level = own_level + i
            level_ptr = numbers_ptr + 1 + level * LEVEL_FIELDS
            cells = tl.load(level_ptr + 2) * tl.load(level_ptr + 3)
            pairs += cells * tl.load(level_ptr + 4) * (end - first).to(tl.float64)
            at = tl.where(tiles > 0, image * tiles, first * slots)
            stop = tl.where(tiles > 0, at + tiles, end * slots)
            while at < stop:
                entry = at + tl.arange(0, BLOCK)
                sum_ptr = sums_ptr + level * entries + entry
                total += tl.load(sum_ptr, mask=entry < stop, other=0)
                squares += tl.load(sum_ptr + plane, mask=entry < stop, other=0)
                hits += tl.load(sum_ptr + 2 * plane, mask=entry < stop, other=0)
                at += BLOCK
        s1, s2 = tl.sum(total, 0), tl.sum(squares, 0)
        n = tl.sum(hits, 0) if MODE == _NONZERO else pairs
        mean = s1 / tl.maximum(n, 1.0)
        lam = mean + tl.sqrt(tl.maximum(s2 - s1 * mean, 0.0) / tl.maximum(n - 1.0, 1.0))
    for i in tl.static_range(COUNT):
        tl.store(lam_ptr + (own_level + i) * images + image, lam)

    BOXES_BLOCK: tl.constexpr = BLOCK // SLOTS_BLOCK
    slot = tl.arange(0, SLOTS_BLOCK)
    while first < end:
        g = first + tl.arange(0, BOXES_BLOCK)
        best = tl.zeros([BOXES_BLOCK], DTYPE)
        for i in tl.static_range(COUNT):
            entry_ptr = maxima_ptr + ((own_level + i) * boxes + g[:, None]) * slots + slot[None, :]
            inside = (g[:, None] < end) & (slot[None, :] < slots)
            best = tl.maximum(best, tl.max(tl.load(entry_ptr, mask=inside, other=0), 1))
        threshold = (lam * best.to(tl.float64)).to(DTYPE)
        for i in tl.static_range(COUNT):
            at_level = (own_level + i) * boxes + g
            tl.store(max_iou_ptr + at_level, best, mask=g < end)
            tl.store(thresholds_ptr + at_level, threshold, mask=g < end)
        tl.store(image_ptr + g, image.to(tl.int32), mask=(g < end) & (own_level == 0))
        first += BOXES_BLOCK


@triton.jit(do_not_specialize=["slots", "images"])
def _window_mask_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    base_ptrs: tl.tuple,  # L times [K, 4]
    levels_ptr: tl.tensor,  # float64 [L, LEVEL_FIELDS]
    thresholds_ptr: tl.tensor,  # DTYPE [L, G]
    max_iou_ptr: tl.tensor,  # DTYPE [L, G]
    image_ptr: tl.tensor,  # int32 [G]
    mask_ptr: tl.tensor,  # uint8, level after level, each [B, H, W]
    box_strides: tl.tuple,
    slots: tl.tensor,
    images: tl.tensor,
    LEVELS: tl.constexpr,
    BASE_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Sets the cells of the mask with an anchor whose IoU is greater than the box's threshold. The grid is (G, L * P)."""
    g, level, slot, window, tiles = open_window(
        boxes_ptr, box_strides, base_ptrs, levels_ptr, slots, LEVELS, BASE_BLOCK, BLOCK, COLUMNS, DTYPE
    )
    at_level = level * tl.num_programs(0) + g
    threshold = tl.load(thresholds_ptr + at_level)
    tiles = tl.where(tl.load(max_iou_ptr + at_level) > threshold, tiles, 0)
    _, _, height, width, _, cells = load_level(levels_ptr, level, DTYPE)
    mask_ptr += cells * images + tl.load(image_ptr + g) * height.to(tl.int64) * width
    tile = slot
    while tile < tiles:
        row, column, end, anchors = window_tile(window, tile, BLOCK, COLUMNS, DTYPE)
        row_ptr = mask_ptr + row.to(tl.int64) * width
        while column < end:
            iou = window_iou(window, anchors, column, DTYPE)[0]
            tl.store(row_ptr + column, tl.full([BLOCK], 1, tl.uint8), mask=iou > threshold)
            column += 1
        tile += slots


@triton.jit(do_not_specialize=["tiles"])
def _dense_mask_kernel(
    boxes_ptr: tl.tensor,  # [G, 4] at box_strides
    offsets_ptr: tl.tensor,  # float64 [B + 1]
    anchors_ptr: tl.tensor,  # [N, 4] at anchor_strides
    thresholds_ptr: tl.tensor,  # DTYPE [G]
    mask_ptr: tl.tensor,  # uint8 [B, cells]
    box_strides: tl.tuple,
    anchor_strides: tl.tuple,
    count: tl.tensor,
    cells: tl.tensor,
    anchors_per_cell: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """Sets the cells of the mask with an anchor whose IoU is greater than a box's threshold.

    A program is a tile of an image.
    """
    image, n, anchors, rectangle = anchor_tile(anchors_ptr, anchor_strides, count, tiles, BLOCK, DTYPE)
    above = tl.zeros([BLOCK], tl.int1)
    first = tl.load(offsets_ptr + image).to(tl.int64)
    end = tl.load(offsets_ptr + image + 1).to(tl.int64)
    while first < end:
        bits = touching_boxes(boxes_ptr, box_strides, first, end, rectangle, DTYPE)
        while bits != 0:
            g, bits, iou, _ = next_touching(boxes_ptr, box_strides, first, bits, anchors, DTYPE)
            above |= iou > tl.load(thresholds_ptr + g)
        first += 32
    mask_ptr += image * cells + n // anchors_per_cell
    tl.store(mask_ptr, tl.full([BLOCK], 1, tl.uint8), mask=above)
