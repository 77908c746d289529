"""Nearest 2x upsampling in Triton; the contract stands in `reference.py`.

Forward, a program takes a tile of positions of the result and reads x at half of each index; the repeated reads of a
value come from the cache. Backward, it takes a tile of positions of x and reads the four gradients of each.

Inputs have any strides: `x_c` is the stride of x over the channels, and so on. Results are dense, channels_last or not.
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
            *x.stride(),
            *add_strides,
            out.stride(0),
            out.stride(1),
            out.stride(3),
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
            *grad_out.stride(),
            grad.stride(0),
            grad.stride(1),
            grad.stride(3),
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
    out_ptr: tl.tensor,  # [B, C, 2H, 2W], with stride out_w from one position to the next
    x_b: tl.tensor,
    x_c: tl.tensor,
    x_h: tl.tensor,
    x_w: tl.tensor,
    add_b: tl.tensor,
    add_c: tl.tensor,
    add_h: tl.tensor,
    add_w: tl.tensor,
    out_b: tl.tensor,
    out_c: tl.tensor,
    out_w: tl.tensor,
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
    x_at = (i // 2).to(tl.int64) * x_h + (j // 2).to(tl.int64) * x_w
    x_ptr += image * x_b + along_positions(x_at)
    out_ptr += image * out_b + along_positions(p.to(tl.int64) * out_w)
    if add_ptr is not None:
        # One product of the index keeps the compiler's knowledge that neighbours are adjacent in memory.
        add_at = p.to(tl.int64) * add_w if ADD_DENSE else i.to(tl.int64) * add_h + j.to(tl.int64) * add_w
        add_ptr += image * add_b + along_positions(add_at)
    inside_image = along_positions(p < positions)
    for step in range(STEPS):
        c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
        inside = inside_image & (c < channels)
        value = tl.load(x_ptr + c * x_c, mask=inside, other=0).to(ACC)
        if add_ptr is not None:
            value += tl.load(add_ptr + c * add_c, mask=inside, other=0).to(ACC)
        tl.store(out_ptr + c * out_c, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tiles", "groups"])
def _downsample_kernel(
    grad_out_ptr: tl.tensor,  # [B, C, 2H, 2W]
    grad_ptr: tl.tensor,  # [B, C, H, W], with stride grad_w from one position to the next
    out_b: tl.tensor,
    out_c: tl.tensor,
    out_h: tl.tensor,
    out_w: tl.tensor,
    grad_b: tl.tensor,
    grad_c: tl.tensor,
    grad_w: tl.tensor,
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
    at = 2 * ((p // width).to(tl.int64) * out_h + (p % width).to(tl.int64) * out_w)
    grad_out_ptr += image * out_b + along_positions(at)
    grad_ptr += image * grad_b + along_positions(p.to(tl.int64) * grad_w)
    inside_image = along_positions(p < positions)
    for step in range(STEPS):
        c = along_channels(channel + step * C_BLOCK + tl.arange(0, C_BLOCK))
        inside = inside_image & (c < channels)
        upper_ptr = grad_out_ptr + c * out_c
        lower_ptr = upper_ptr + out_h
        g00 = tl.load(upper_ptr, mask=inside, other=0).to(ACC)
        g01 = tl.load(upper_ptr + out_w, mask=inside, other=0).to(ACC)
        g10 = tl.load(lower_ptr, mask=inside, other=0).to(ACC)
        g11 = tl.load(lower_ptr + out_w, mask=inside, other=0).to(ACC)
        tl.store(grad_ptr + c * grad_c, ((g00 + g01) + (g10 + g11)).to(grad_ptr.dtype.element_ty), mask=inside)
