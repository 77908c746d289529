"""The specification of the nearest 2x upsampling in plain PyTorch.

Numerics, for every backend: the result at (i, j) is x at (i // 2, j // 2), plus `add` there, rounded once to the
dtype of x. The gradient of x is ``(g00 + g01) + (g10 + g11)`` of the gradients at its four copies, in float64 for
float64, else in float32, and is rounded once; that of `add` is the gradient itself. All results are the same bits on
every backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._numerics import accumulation_dtype


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of the results: channels_last where `x` [B, C, H, W] is that and not plainly contiguous as well."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty_upsampled(x: Tensor) -> Tensor:
    """An empty result [B, C, 2H, 2W] for `x` [B, C, H, W]."""
    b, c, h, w = x.shape
    return torch.empty((b, c, 2 * h, 2 * w), dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def empty_downsampled(grad_out: Tensor) -> Tensor:
    """An empty gradient [B, C, H, W] for `grad_out` [B, C, 2H, 2W]."""
    b, c, height, width = grad_out.shape
    return torch.empty(
        (b, c, height // 2, width // 2),
        dtype=grad_out.dtype,
        device=grad_out.device,
        memory_format=memory_format(grad_out),
    )


def upsample_nearest2x_reference(x: Tensor, add: Tensor | None) -> Tensor:
    """Arguments and results as in `_schemas.py`."""
    if x.numel() == 0:  # interpolate refuses it
        return empty_upsampled(x)
    out = F.interpolate(x, scale_factor=2, mode="nearest").contiguous(memory_format=memory_format(x))
    return out if add is None else out.add_(add)


def upsample_nearest2x_backward_reference(grad_out: Tensor) -> Tensor:
    """Gradient of x; arguments and results as in `_schemas.py`."""
    dtype = accumulation_dtype(grad_out)
    g00, g01, g10, g11 = (grad_out[:, :, i::2, j::2].to(dtype) for i in (0, 1) for j in (0, 1))
    return empty_downsampled(grad_out).copy_((g00 + g01) + (g10 + g11))
