"""A GPU's operators, done by the CPU on the memory of the stand-in for CUDA's runtime (runtime.c), which must be preloaded.

`replace` gives each operator that has a kernel for CUDA another one, below autograd and autocast: the CPU's own on the same
memory. All else of PyTorch for CUDA is its own: autograd's threads, autocast, streams, the allocators of memory and of pinned
memory. So a program that mixes devices is found out on the stand-in as on a GPU, and one that does not gets the CPU's numbers
to the bit.
"""

from __future__ import annotations

import ctypes
import functools
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

WITHOUT_KERNEL = (
    *("empty", "resize", "set_", "record_stream", "is_set_to", "unfold", "view", "as_strided"),
    *("_resize", "_reshape_alias", "_pin_memory", "is_pinned", "_nested"),
)
"""Beginnings of the names of operators that only allocate and describe: PyTorch's stay."""
ABOVE = ("convolution", "convolution_backward", "copy_")
"""Operators that choose among several kernels by themselves, and are replaced instead of those."""
BETWEEN_DEVICES = ("copy_", "_copy_from", "index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
"""Operators that take tensors of two devices."""
READ = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal")
"""Operators that wait for the device, since their result, or its shape, depends on values."""

waits: Counter[str] = Counter()
"""How often the host had to wait for the device, by the operator and where zoominnet called it, innermost first."""
_libraries: list[torch.library.Library] = []


def replace(namespace: str) -> None:
    """Replaces the kernels for CUDA of all operators of a namespace that are there by now, for good."""
    library = torch.library.Library(namespace, "IMPL")
    _libraries.append(library)
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith(f"{namespace}::"):
            continue
        own = full.removeprefix(f"{namespace}::")
        name, _, overload = own.partition(".")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(full, "CUDA") or name in ABOVE
        if not has_kernel or name.startswith(WITHOUT_KERNEL):
            continue
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
        if any(each.alias_info is not None and not each.alias_info.is_write for each in operator._schema.returns):
            continue  # a view

        stand_in = functools.partial(run, operator, OTHERS.get(name, operator))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overriding is the purpose
            library.impl(own, stand_in, "CUDA", allow_override=True)


def run(operator: Any, kernel: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What CUDA's kernel of `operator` would return, by a kernel of the CPU.

    Raises:
        RuntimeError: tensors of two devices, as CUDA's kernels do.
    """
    schema, name = operator._schema, operator._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if name not in BETWEEN_DEVICES and any(each.is_cuda for each in tensors):
        for each in tensors:
            if not each.is_cuda and each.dim():
                raise RuntimeError(f"{operator}: all tensors must be on one device, one of {list(each.shape)} is not")
    note_wait(name, args, kwargs)
    kwargs = {key: None if key in ("generator", "pin_memory") else value for key, value in kwargs.items()}
    device = torch.device(kwargs.get("device") or "cuda")
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    takes_tensors = [str(argument.type) == "Tensor" for argument in schema.arguments]
    if any(takes and isinstance(value, int | float) for takes, value in zip(takes_tensors, args, strict=False)):
        kernel = operator.overloadpacket  # a number in place of a tensor, which another overload takes
    host_args, host_kwargs = tree_map_only(Tensor, on_host, (args, kwargs))
    result = kernel(*host_args, **host_kwargs)
    written = [each.alias_info for each in schema.returns if each.alias_info is not None]
    if not written:
        return result if device.type == "cpu" else tree_map_only(Tensor, on_device, result)
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    outputs = [
        given[argument.name]
        for alias in written
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set
    ]
    for output, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=True):
        if output.shape != value.shape:
            output.resize_(value.shape)
            on_host(output).copy_(value)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def on_host(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the CPU."""
    if not tensor.is_cuda:
        return tensor
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = tensor.untyped_storage()
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=storage.nbytes() // tensor.element_size())
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on_device(tensor: Tensor) -> Tensor:
    """A copy on the stand-in."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    on_host(copy).copy_(tensor)
    return copy


def note_wait(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts in `waits` a call for which the host would wait on a GPU."""
    if name == "copy_":
        to, source, *more = args
        host = source if to.is_cuda else to
        at_once = (more[0] if more else kwargs.get("non_blocking", False)) and host.is_pinned()
        waiting = to.is_cuda != source.is_cuda and to.numel() > 0 and not at_once
    elif name == "index":
        waiting = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    else:
        waiting = name in READ
    if waiting:
        frames = [frame for frame in traceback.extract_stack() if "/zoominnet/" in frame.filename]
        places = [f"{frame.filename.rpartition('/zoominnet/')[2]}:{frame.lineno}" for frame in reversed(frames)]
        waits[" < ".join([name, *places])] += 1


def batch_norm(*args: Any) -> Any:
    """cudnn_batch_norm, which returns cuDNN's reserved memory as well."""
    return *torch.ops.aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8)


def batch_norm_backward(x: Tensor, grad: Tensor, weight: Tensor, *more: Any) -> Any:
    """cudnn_batch_norm_backward, whose arguments come in another order."""
    *statistics, eps, _ = more
    return torch.ops.aten.native_batch_norm_backward(grad, x, weight, *statistics, True, eps, [True, True, True])


OTHERS = {"cudnn_batch_norm": batch_norm, "cudnn_batch_norm_backward": batch_norm_backward}
"""Kernels of the CPU that have other names."""
