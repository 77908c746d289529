"""What a model costs: multiply-adds, parameters, time."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_jit, elementwise_flop_counter, get_shape
from torch import Tensor, nn

_COPIES = ("zoominnet::upsample_nearest2x",)
"""Operators of this project, by the start of their names, that copy or add and multiply nothing."""

_PRODUCTS = re.compile(r"conv|mm$|matmul|mv$|dot|linear|einsum|attention|lstm|gru|rnn|cdist")
"""Names of PyTorch operators that multiply matrices or convolve."""


class _PredictRaw(nn.Module):
    """`model.predict_raw` as a module's forward, which is what fvcore counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> object:
        return cast(Callable[[Tensor], object], self.model.predict_raw)(images)


def _convolution_with_bias(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    products = cast(Counter[str], conv_flop_jit(inputs, outputs))
    return products + Counter(bias=math.prod(get_shape(outputs[0])) if get_shape(inputs[2]) else 0)


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries [..., L, E], keys [..., S, E] and values [..., S, V]: scores, and the sum of values."""
    queries, keys, values = (get_shape(each) for each in inputs[:3])
    return math.prod(queries) * keys[-2] + math.prod(queries[:-1]) * math.prod(values[-2:])


def count_gflops(model: nn.Module, image_size: int, *, convention: Literal["fvcore", "mmcv"] = "fvcore") -> float:
    """Multiply-adds of `model.predict_raw` for one image, in 1e9.

    Counted are convolutions, matrix products, attention and normalisations (BatchNorm 2 for each number, LayerNorm 5, as
    fvcore estimates); by the convention "mmcv" also one for each output of a convolution that has biases, and of a ReLU.
    So the paper's Table 3 counts. Other activations, additions and nearest upsampling (fvcore would count one per output;
    here none, whatever kernel does it) are not. The model runs once, in evaluation mode without gradients, on its own
    device; the mode of each of its modules is restored.

    Args:
        model: has `predict_raw(images: Tensor[1, 3, S, S])`, as the models of `zoominnet.models` have.
        image_size: S, px.
        convention: whose counter to agree with.

    Raises:
        ValueError: the model runs an operator that may multiply and that nothing here can count.
    """
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            analysis = FlopCountAnalysis(_PredictRaw(model).eval(), images)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
            # A handle, since fvcore keeps its own where it is told None.
            analysis.set_op_handle("aten::upsample_nearest2d", lambda inputs, outputs: 0)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
            if convention == "mmcv":
                analysis.set_op_handle("aten::_convolution", _convolution_with_bias)
                analysis.set_op_handle("aten::relu", elementwise_flop_counter(0, 1))
                analysis.set_op_handle("aten::relu_", elementwise_flop_counter(0, 1))
            total = analysis.total()
    finally:
        for module, training in modes.items():
            module.training = training
    uncounted = [name for name in analysis.unsupported_ops() if _may_multiply(name)]
    if uncounted:
        raise ValueError(
            f"cannot count the multiply-adds of {', '.join(sorted(uncounted))}: "
            "give it an fvcore handle in zoominnet/evaluation/cost.py"
        )
    return total / 1e9


def _may_multiply(operator: str) -> bool:
    namespace, _, name = operator.partition("::")
    if namespace == "aten":
        return _PRODUCTS.search(name.rstrip("_")) is not None
    return not operator.startswith(_COPIES)


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters, frozen ones included, buffers not, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_latency(
    predict: Callable[[], object], device: torch.device | str, *, repeats: int = 50, warmup: int = 10
) -> dict[str, float]:
    """Wall time of `predict()`, without gradients, waiting each time until `device` has finished.

    Args:
        predict: runs one prediction.
        device: where it computes.
        repeats: measured calls, at least 1.
        warmup: calls before them that are not measured.

    Returns:
        `median_ms`, `p10_ms` and `p90_ms` (percentiles 10 and 90) over the measured calls.

    Raises:
        ValueError: `repeats` or `warmup` is out of range.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    device = torch.device(device)

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    times_ms = []
    with torch.no_grad():
        for call in range(warmup + repeats):
            wait()
            start = time.perf_counter()
            predict()
            wait()
            if call >= warmup:
                times_ms.append((time.perf_counter() - start) * 1e3)
    p10, median, p90 = np.percentile(times_ms, [10, 50, 90]).tolist()
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90}
