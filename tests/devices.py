"""Where a test of the faults runs: on the CPU, and by `make gpu-check` on a GPU; and in how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from zoominnet.kernels import available_backends

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes in so many threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_gpu(*values: Any, **options: Any) -> Any:
    """A case of `pytest.mark.parametrize` for the GPU."""
    return pytest.param(*values, marks=ON_GPU, **options)


def _case(backend: str, device: str) -> Any:
    marks: list[Any] = list(ON_GPU) if device == "cuda" else []
    if device == "cpu" or torch.cuda.is_available():
        state = available_backends(device)["akdp_mask"][backend]
        marks.append(pytest.mark.skipif(state != "ok", reason=f"{backend} on {device}: {state}"))
    return pytest.param(backend, device, marks=marks, id=f"{backend}-{device}")


each_device = pytest.mark.parametrize("device", ["cpu", on_gpu("cuda")])
FAST_ON_GPU = [_case("native", "cuda"), _case("triton", "cuda")]
BACKENDS_ON_GPU = [_case("reference", "cuda"), *FAST_ON_GPU]
each_backend = pytest.mark.parametrize(
    ("backend", "device"), [_case("reference", "cpu"), _case("native", "cpu"), *BACKENDS_ON_GPU]
)
