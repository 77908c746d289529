"""What all Triton implementations share: launch options, the way of numbers to the device, division, tiles of maps.

Imported only by the `triton_impl.py` of each operation, when it first runs, so that the package works without Triton.

In every kernel, program ids are 64-bit before any address arithmetic, and loops over run-time bounds are `while` loops,
because Triton's interpreter cannot take a `range` of tensors under NumPy 2.4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH: dict[str, Any] = {"enable_fp_fusion": False}
"""Options of every launch: no contraction to fused multiply-adds, since the contracts round each operation by itself."""

TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}
"""The accumulation and IoU dtypes as kernels take them."""


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the GPU of `x` the current one; Triton launches on its current stream."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def to_device(values: Sequence[float], device: torch.device) -> Tensor:
    """float64 tensor of `values` on `device`, without waiting for a GPU."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float64, device=device)
    return torch.tensor(values, dtype=torch.float64, pin_memory=True).to(device, non_blocking=True)


class MapTiles(NamedTuple):
    """How programs share a map [B, C, H, W]: a tile of positions each, and of the channels one group.

    Attributes:
        tiles, groups: their numbers for one image; program ``(b * tiles + tile) * groups + group``.
        channels_inner: whether the channels, not the positions, are the faster axis in memory.
        options: compile-time arguments of the kernels. S_BLOCK positions and C_BLOCK channels are taken at a time,
            STEPS times along the channels. INDEX holds the index of a position.
    """

    tiles: int
    groups: int
    channels_inner: bool
    options: dict[str, Any]


def map_tiles(positions: int, channels: int, channels_inner: bool, elements: int, longest: int, steps: int) -> MapTiles:
    """Tiles of `elements` values at a time, `longest` at most along the inner axis, for maps of `positions` = H * W."""
    inner = min(triton.next_power_of_2(max(channels if channels_inner else positions, 1)), longest)
    c_block, s_block = (inner, elements // inner) if channels_inner else (elements // inner, inner)
    options = {
        "S_BLOCK": s_block,
        "C_BLOCK": c_block,
        "STEPS": steps,
        "INDEX": tl.int32 if positions < 2**30 else tl.int64,
    }
    groups = max(1, triton.cdiv(channels, c_block * steps))
    return MapTiles(triton.cdiv(positions, s_block), groups, channels_inner, options)


@triton.jit
def divide(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Quotient rounded to nearest, float32 or float64; the operator / is less exact in float32."""
    if a.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def spread_positions(
    position: tl.tensor, S_BLOCK: tl.constexpr, CHANNELS_INNER: tl.constexpr, INDEX: tl.constexpr
) -> tl.tensor:
    """The positions of a tile; where they are its inner axis, neighbouring threads take neighbours.

    The compiler would give each thread several in a row, to load them at once. Where each is masked by itself, or only
    every second value is read, that cannot be, and a warp's accesses would spread over more lines of the cache. In
    descending order it does not see them as a row.
    """
    lane = tl.arange(0, S_BLOCK)
    if not CHANNELS_INNER:
        lane = S_BLOCK - 1 - lane
    return position.to(INDEX) + lane


@triton.jit
def along_positions(x: tl.tensor) -> tl.tensor:
    """A vector over the positions of a tile, to broadcast over its channels.

    Positions are always the first axis. Where neither axis is known to be contiguous, the compiler gives neighbouring
    threads neighbours of the first.
    """
    return tl.expand_dims(x, 1)


@triton.jit
def along_channels(x: tl.tensor) -> tl.tensor:
    """A vector over the channels of a tile, to broadcast over its positions."""
    return tl.expand_dims(x, 0)


@triton.jit
def tile_place(
    tiles: tl.tensor, groups: tl.tensor, S_BLOCK: tl.constexpr, C_BLOCK: tl.constexpr, STEPS: tl.constexpr
) -> tl.tensor:
    """Image, group, first position and first channel of this program."""
    program = tl.program_id(0).to(tl.int64)
    group = program % groups
    tile = program // groups
    return tile // tiles, group, (tile % tiles) * S_BLOCK, group * (C_BLOCK * STEPS)
