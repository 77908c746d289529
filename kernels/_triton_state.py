"""Whether the Triton kernels can run here, and the way to them that imports Triton no sooner than needed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

TESTED = ((3, 6), (3, 7))
"""The kernels are tested with Triton from the first version on and below the second."""

_OTHER = "use backend='auto' or 'reference'"


@functools.cache
def triton_state(device_type: str) -> str:
    """Asks Triton whether it can run kernels on tensors of a device type.

    Returns:
        "ok", or the reason why not, and after "; " the remedy.
    """
    low, high = (".".join(map(str, version)) for version in TESTED)
    install = f"run pip install 'triton>={low},<{high}', or {_OTHER}"
    try:
        import triton
        from triton import knobs, runtime
    except ImportError as error:
        cause = " ".join(str(error).split()).replace(";", ",")
        return f"unusable: Triton cannot be imported ({cause}); {install}"
    if not TESTED[0] <= tuple(int(part) for part in triton.__version__.split(".")[:2]) < TESTED[1]:
        return f"unusable: the kernels are tested with Triton {low}, and this is {triton.__version__}; {install}"
    if knobs.runtime.interpret:
        if device_type == "cpu":
            return "ok"
        return f"unusable: TRITON_INTERPRET is set, which serves CPU tensors; unset it to run on {device_type}"
    if device_type != "cuda":
        return (
            f"unusable: it serves CUDA tensors, not {device_type}; move the tensors to a GPU, or set TRITON_INTERPRET=1"
            " before Python starts to run it on the CPU, slowly"
        )
    try:
        target = runtime.driver.active.get_current_target()
    except Exception as error:  # whatever goes wrong while Triton looks for a driver and a compiler is the reason
        cause = " ".join(str(error).split()).replace(";", ",")
        return f"unusable: Triton finds no GPU that it can use ({cause}); check nvidia-smi, or {_OTHER}"
    if target.backend != "cuda":
        return f"unusable: the kernels are tested on NVIDIA GPUs, and this one is {target.backend}; {_OTHER}"
    return "ok"


def from_triton(package: str, name: str) -> Callable[..., Any]:
    """The function `name` of ``package.triton_impl``, which is imported when it is first called."""

    def implementation(*args: Any) -> Any:
        return getattr(importlib.import_module(".triton_impl", package), name)(*args)

    return implementation
