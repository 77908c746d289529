"""Pytest plugin for a run of the kernels' tests in Triton's interpreter: only its cases, faster, and with its faults mended.

Used as ``TRITON_INTERPRET=1 python -m pytest -p triton_interpreter`` and the modules, with this folder on the path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from hypothesis import settings
from triton.language import core

# The interpreter takes about 20 microseconds an operation, whatever its size, and a program has hundreds.
TOO_SLOW = {"test_memory_does_not_grow_with_anchors_times_boxes", "test_repeats_and_threads_give_the_same_bits"}

settings.register_profile("interpreter", derandomize=True, deadline=None, max_examples=15)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps what runs on the backend `triton`, and the operators' checks for it."""
    kept = [item for item in items if _belongs(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _belongs(item: pytest.Item) -> bool:
    name = item.name.partition("[")[0]
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if name in ("test_opcheck", "test_compiled_gradients"):
        item.module.BUILT[:] = [case for case in item.module.BUILT if case[1] == "triton"]
        return parameters.get("dynamic", True)
    if name == "test_naive_computation" and "scope" in parameters:
        whole = parameters["dtype"] == torch.float32
        return parameters["backend"] == "triton" and (
            whole or (parameters["threshold"], parameters["scope"]) == ("adaptive", "level")
        )
    if name == "test_bad_boxes_overlap_nothing" and parameters.get("threshold", "adaptive") != "adaptive":
        return False
    return parameters.get("backend") == "triton" and name not in TOO_SLOW


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


def numpy_dtype_once(find: Callable[[tl.dtype], np.dtype]) -> Callable[[tl.dtype], np.dtype]:
    """The interpreter makes its whole table of types for each look into it."""
    found: dict[str, np.dtype] = {}

    def look_up(dtype: tl.dtype) -> np.dtype:
        if dtype.name not in found:
            found[dtype.name] = find(dtype)
        return found[dtype.name]

    return look_up


def equal_types(equal: Callable[[tl.dtype, object], bool]) -> Callable[[tl.dtype, object], bool]:
    """Most are the very same."""
    return lambda dtype, other: dtype is other or equal(dtype, other)


def make_tuple(self: core.tuple, values: Any, type: Any = None) -> None:
    """Without the type, which `type_of_tuple` makes when it is asked for: three tuples an operation, and none is asked."""
    self.values = list(values)
    if type is not None:
        self.type = type if isinstance(type, core.tuple_type) else core.tuple_type(type)


def type_of_tuple(field: Callable[[core.tuple, str], Any]) -> Callable[[core.tuple, str], Any]:
    def get(self: core.tuple, name: str) -> Any:
        if name != "type":
            return field(self, name)
        self.type = core._type_for_tuple_values(self.values)
        return self.type

    return get


# Few evaluations in place of two an element; values and gradients are compared element by element in other tests.
torch.autograd.gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=True)
torch.autograd.gradgradcheck = functools.partial(torch.autograd.gradgradcheck, fast_mode=True)

interpreter._convert_float = convert
interpreter._patch_lang = patch_language_once(interpreter._patch_lang)
# It would copy every byte of each tensor's storage to itself, untouched memory between strides included.
interpreter.GridExecutor._restore_args_dev = lambda *_: None
interpreter._get_np_dtype = numpy_dtype_once(interpreter._get_np_dtype)
core.dtype.__eq__ = equal_types(core.dtype.__eq__)
core.tuple.__init__ = make_tuple
core.tuple.__getattr__ = type_of_tuple(core.tuple.__getattr__)
