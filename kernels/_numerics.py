"""What the reference implementations share beside the IoU."""

from __future__ import annotations

import torch
from torch import Tensor

_RUN = 1024


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def ordered_sum(x: Tensor) -> Tensor:
    """Sum of all elements, in an order that does not depend on the number of threads.

    ``Tensor.sum`` cuts a large sum into one part a thread. Here rows of fixed length are summed, then their sums, in
    the order of memory.
    """
    x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).flatten()
    while x.numel() > _RUN:
        whole = x.numel() // _RUN * _RUN
        x = torch.cat([x[:whole].view(-1, _RUN).sum(1), x[whole:]])
    return x.sum()
