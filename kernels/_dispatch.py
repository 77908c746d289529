"""Which backend serves an operation, and why another does not."""

from __future__ import annotations

import functools
import logging

import torch

from ._extension import library_state
from ._triton_state import triton_state

OPERATIONS = ("akdp_mask", "max_iou_assign", "pa_l2_loss", "sigmoid_focal_loss", "upsample_nearest2x")
BACKENDS = ("reference", "native", "triton")

# From fastest to slowest, by the time of forward and backward together, on the shapes of benchmarks/shapes.py: medians
# of interleaved runs. A backend that was not measured on a device stands behind the reference, in the order of BACKENDS:
# what is compiled already comes before what is compiled on its first call.
_MEASURED: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": dict.fromkeys(OPERATIONS, ("native", "reference")),
}

_logger = logging.getLogger("zoominnet.kernels")


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here. The message gives the reason and the remedy."""


def available_backends(device_type: str | None = None) -> dict[str, dict[str, str]]:
    """Tells which backends this installation can run.

    Args:
        device_type: "cpu" or "cuda", that of the tensors; by default "cuda" where there is a GPU, else "cpu".

    Returns:
        For each public operation, for each backend, "ok" or the reason why it cannot run and, after "; ", the remedy.
    """
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    return {op: {backend: _state(op, backend, device_type) for backend in BACKENDS} for op in OPERATIONS}


def _state(operation: str, backend: str, device_type: str) -> str:
    if backend == "triton":
        return triton_state(device_type)
    if backend == "native":
        return library_state(device_type)
    return "ok"


# One result for each (operation, backend, device type), so it is safe to fix it while torch.compile traces; the
# logging, the cache and the loading of a library would not trace.
@torch.compiler.assume_constant_result
def choose_backend(operation: str, backend: str, device_type: str) -> str:
    """Resolves the `backend` argument of a public function to the name of a backend that runs.

    "auto" takes the backend measured fastest on the device, "fused" the fastest that is not the reference; both log
    their choice once. A named backend is never replaced by another. Tensors on the meta device have shapes only, for
    which all backends are the same.

    Args:
        operation: a name of :func:`available_backends`, such as "akdp_mask".
        backend: "auto", "fused", or a backend's name.
        device_type: "cpu", "cuda" or "meta".

    Raises:
        ValueError: no backend has this name.
        BackendUnavailableError: the backend of this name, or for "fused" every one, cannot run here.
    """
    if backend not in (*BACKENDS, "auto", "fused"):
        raise ValueError(f"backend must be 'auto', 'fused' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if device_type == "meta":
        return "reference"
    if backend in ("auto", "fused"):
        return _choose_fastest(operation, backend, device_type)
    if (state := _state(operation, backend, device_type)) != "ok":
        raise BackendUnavailableError(f"{operation}: backend {backend!r} is {state}")
    return backend


@functools.cache
def _choose_fastest(operation: str, wanted: str, device_type: str) -> str:
    order = _MEASURED.get(device_type, {}).get(operation, ("reference",))
    order += tuple(name for name in BACKENDS if name not in order)
    if wanted == "fused":
        order = tuple(name for name in order if name != "reference")
    states = {name: _state(operation, name, device_type) for name in order}
    for name, state in states.items():
        if state == "ok":
            _logger.info(
                "%s on %s: backend %r, the fastest measured of those that run here", operation, device_type, name
            )
            return name
    reasons = ", ".join(f"{name!r} is {state}" for name, state in states.items())
    raise BackendUnavailableError(f"{operation}: no fused backend runs on {device_type}: {reasons}")
