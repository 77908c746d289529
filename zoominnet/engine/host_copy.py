"""Values on their way from a device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of `values` on the host that begins now; nobody waits for it, nor for what is computed after it, before
    :meth:`read`.

    Args:
        values: on any device; on the CPU taken as they are.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._arrived = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def read(self) -> Tensor:
        """The values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
