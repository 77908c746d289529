"""Nearest 2x upsampling in Triton; the contract stands in `reference.py`.

Forward, a program takes a tile of positions of the result and reads x at half of each index; the repeated reads of a
value come from the cache. Backward, it takes a tile of positions of x and reads the four gradients of each.

Inputs have any strides. Results are dense, channels_last or not.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .._numerics import accumulation_dtype
from .._triton import (
    LAUNCH,
    TRITON_DTYPE,
    along_channels,
    along_positions,
    map_tiles,
    on_device,
    spread_positions,
    tile_place,
)
from .reference import empty_downsampled, empty_upsampled


def upsample_nearest2x_triton(x: Tensor, add: Tensor | None) -> Tensor:
    """Arguments and results as in `_schemas.py`."""
    out = empty_upsampled(x)
    if out.numel() == 0:
        return out
    b, c, height, width = out.shape
    tiles = map_tiles(height * width, c, out.stride(1) == 1, 1024, longest=1024, steps=4)
    add_strides = (0, 0, 0, 0) if add is None else add.stride()
    with on_device(x):
        _upsample_kernel[(b * tiles.tiles * tiles.groups,)](
            x,
            add,
            out,
            x.stride(),
            add_strides,
            out.stride(),
            c,
            height * width,
            width,
            tiles.tiles,
            tiles.groups,
            ADD_DENSE=add_strides[2] == width * add_strides[3],
            ACC=TRITON_DTYPE[accumulation_dtype(x)],
            num_warps=4,
            **tiles.options,
            **LAUNCH,
        )
    return out


def upsample_nearest2x_backward_triton(grad_out: Tensor) -> Tensor:
    """Gradient of x; arguments and results as in `_schemas.py`."""
    grad = empty_downsampled(grad_out)
    if grad.numel() == 0:
        return grad
    b, c, height, width = grad.shape
    tiles = map_tiles(height * width, c, grad.stride(1) == 1, 512, longest=512, steps=4)
    with on_device(grad_out):
        _downsample_kernel[(b * tiles.tiles * tiles.groups,)](
            grad_out,
            grad,
            grad_out.stride(),
            grad.stride(),
            c,
            height * width,
            width,
            tiles.tiles,
            tiles.groups,
            CHANNELS_INNER=tiles.channels_inner,
            ACC=TRITON_DTYPE[accumulation_dtype(grad_out)],
            num_warps=4,
            **tiles.options,
            **LAUNCH,
        )
    return grad


@triton.jit(do_not_specialize=["tiles", "groups"])
def _upsample_kernel(
    x_ptr: tl.tensor,  # [B, C, H, W]
    add_ptr: tl.tensor,  # [B, C, 2H, 2W], or None
    out_ptr: tl.tensor,  # [B, C, 2H, 2W], with stride out_strides[3] from one position to the next
    x_strides: tl.tuple,
    add_strides: tl.tuple,
    out_strides: tl.tuple,
    channels: tl.tensor,
    positions: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    groups: tl.tensor,
    ADD_DENSE: tl.constexpr,
    S_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """out = upsampled x (+ add); `positions` and `width` are those of the result."""
    image, _, position, channel = tile_place(tiles, groups, S_BLOCK, C_BLOCK, STEPS)
    p = position.to(INDEX) + tl.arange(0, S_BLOCK)
    i, j = p // width, p % width
    x_at = (i // 2).to(tl.int64) * x_strides[2] + (j // 2).to(tl.int64) * x_strides[3]
    x_ptr += image * x_strides[0] + along_positions(x_at)
    out_ptr += image * out_strides[0] + along_positions(p.to(tl.int64) * out_strides[3])
    if add_ptr is not None:
        add_b, add_c, add_h, add_w = add_strides
        # One product of the index keeps the compiler's knowledge that neighbours are adjacent in memory.
        add_at = p.to(tl.int64) * add_w if ADD_DENSE else i.to(tl.int64) * add_h + j.to(tl.int64) * add_w
        add_ptr += image * add_b + along_positions(add_at)
    inside_image = along_positions(p < positions)
    for step in range(STEPS):
        c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
        inside = inside_image & (c < channels)
        value = tl.load(x_ptr + c * x_strides[1], mask=inside, other=0).to(ACC)
        if add_ptr is not None:
            value += tl.load(add_ptr + c * add_c, mask=inside, other=0).to(ACC)
        tl.store(out_ptr + c * out_strides[1], value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tiles", "groups"])
def _downsample_kernel(
    grad_out_ptr: tl.tensor,  # [B, C, 2H, 2W]
    grad_ptr: tl.tensor,  # [B, C, H, W], with stride grad_strides[3] from one position to the next
    grad_out_strides: tl.tuple,
    grad_strides: tl.tuple,
    channels: tl.tensor,
    positions: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    groups: tl.tensor,
    S_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    INDEX: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """Sums of the gradients of each position's four copies; `positions` and `width` are those of x."""
    image, _, position, channel = tile_place(tiles, groups, S_BLOCK, C_BLOCK, STEPS)
    p = spread_positions(position, S_BLOCK, CHANNELS_INNER, INDEX)
    at = 2 * ((p // width).to(tl.int64) * grad_out_strides[2] + (p % width).to(tl.int64) * grad_out_strides[3])
    grad_out_ptr += image * grad_out_strides[0] + along_positions(at)
    grad_ptr += image * grad_strides[0] + along_positions(p.to(tl.int64) * grad_strides[3])
    inside_image = along_positions(p < positions)
    for step in range(STEPS):
        c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
        inside = inside_image & (c < channels)
        upper_ptr = grad_out_ptr + c * grad_out_strides[1]
        lower_ptr = upper_ptr + grad_out_strides[2]
        g00 = tl.load(upper_ptr, mask=inside, other=0).to(ACC)
        g01 = tl.load(upper_ptr + grad_out_strides[3], mask=inside, other=0).to(ACC)
        g10 = tl.load(lower_ptr, mask=inside, other=0).to(ACC)
        g11 = tl.load(lower_ptr + grad_out_strides[3], mask=inside, other=0).to(ACC)
        tl.store(grad_ptr + c * grad_strides[1], ((g00 + g01) + (g10 + g11)).to(grad_ptr.dtype.element_ty), mask=inside)
