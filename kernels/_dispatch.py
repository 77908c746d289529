"""Which backend serves an operation, and why another does not."""

from __future__ import annotations

import functools
import logging

import torch

OPERATIONS = ("akdp_mask", "max_iou_assign", "pa_l2_loss", "upsample_nearest2x")
BACKENDS = ("reference", "triton", "native")

_logger = logging.getLogger("zoominnet.kernels")

_MISSING = {
    "triton": "not built: this version of zoominnet has no Triton kernels; use backend='auto' or 'reference'",
    "native": "not built: this version of zoominnet has no C++/CUDA extension; use backend='auto' or 'reference'",
}


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here. The message gives the reason and the remedy."""


def available_backends() -> dict[str, dict[str, str]]:
    """Tells which backends this installation can run.

    Returns:
        For each public operation, for each backend, "ok" or the reason why it cannot run, with the remedy.
    """
    return {op: {backend: _MISSING.get(backend, "ok") for backend in BACKENDS} for op in OPERATIONS}


# One result for each (operation, backend, device type), so it is safe to fix it while torch.compile traces; the
# logging and the cache would not trace.
@torch.compiler.assume_constant_result
def choose_backend(operation: str, backend: str, device_type: str) -> str:
    """Resolves the `backend` argument of a public function to the name of a backend that runs.

    "auto" takes the backend measured fastest on the device and logs the choice once. A named backend is never
    replaced by another.

    Raises:
        ValueError: no backend has this name.
        BackendUnavailableError: the backend of this name cannot run here.
    """
    if backend == "auto":
        return _choose_automatically(operation, device_type)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend in _MISSING:
        raise BackendUnavailableError(f"{operation}: backend {backend!r} is {_MISSING[backend]}")
    return backend


@functools.cache
def _choose_automatically(operation: str, device_type: str) -> str:
    _logger.info("%s on %s: backend 'reference', the only one built", operation, device_type)
    return "reference"
