"""CUDA's autocast on the CPU, whose own leaves the dtype of more operations alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

TO_FLOAT32 = (
    *("upsample_nearest2d", "exp", "log", "log1p", "reciprocal", "rsqrt", "softplus"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"),
)
"""What it computes in float32 and the CPU's does not, of what may be called here: AT_FORALL_FP32 in
ATen/autocast_mode.h."""
RESULT_FLOAT32 = ("sum", "sum.dim_IntList", "cumsum", "softmax.int", "log_softmax.int")
"""What gives float32 where no dtype is asked for: AT_FORALL_FP32_SET_OPT_DTYPE there."""


@contextlib.contextmanager
def cuda_autocast_on_cpu() -> Iterator[None]:
    """Within it ``torch.autocast("cpu", ...)`` also changes the dtypes that CUDA's does."""
    library = torch.library.Library("aten", "IMPL")
    for name in (*TO_FLOAT32, *RESULT_FLOAT32):
        library.impl(name, kernel(name), "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()


def kernel(name: str) -> Callable[..., Any]:
    """Of an operation, "NAME.OVERLOAD" or the default one."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def low(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if name in TO_FLOAT32:
                args, kwargs = pytree.tree_map(lambda value: value.float() if low(value) else value, (args, kwargs))
            elif low(args[0]) and kwargs.get("dtype") is None:
                kwargs["dtype"] = torch.float32
            return operation(*args, **kwargs)

    return run
