"""Pytest plugin for a run of the kernels' tests in Triton's interpreter: only its cases, faster, and with its faults mended.

Used as ``TRITON_INTERPRET=1 python -m pytest -p triton_interpreter tests/kernels`` with this folder on the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton.language as tl
import triton.runtime.interpreter as interpreter
from hypothesis import settings

# The interpreter takes about 40 microseconds an operation, whatever its size.
TOO_SLOW = {
    "test_memory_does_not_grow_with_anchors_times_boxes",
    "test_repeats_and_threads_give_the_same_bits",
}

settings.register_profile("interpreter", derandomize=True, deadline=None, max_examples=15)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps what runs on the backend `triton`."""
    kept = [
        item
        for item in items
        if getattr(item, "callspec", None) is not None
        and item.callspec.params.get("backend") == "triton"
        and item.name.partition("[")[0] not in TOO_SLOW
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish() -> None:
    settings.load_profile("interpreter")


def convert(x: np.ndarray, source: tl.dtype, target: tl.dtype, _rounding: Any) -> np.ndarray:
    """Float32 from and to the bits of bfloat16, rounded to nearest even; the interpreter's own cuts the bits off."""
    if source == tl.bfloat16:
        return x.astype(np.uint32) << np.uint32(16)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


class _Kept:
    def restore(self) -> None: ...


def patch_language_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The interpreter replaces the functions of triton.language anew for each call of a device function."""
    patched = set()

    def patch_once(fn: Any) -> _Kept:
        if id(fn.__globals__) not in patched:
            patched.add(id(fn.__globals__))
            patch(fn)
        return _Kept()

    return patch_once


interpreter._convert_float = convert
interpreter._patch_lang = patch_language_once(interpreter._patch_lang)
# It would copy every byte of each tensor's storage to itself, untouched memory between strides included.
interpreter.GridExecutor._restore_args_dev = lambda *_: None
