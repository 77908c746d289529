"""Eight-bit weights and maps, by onnxruntime's static quantisation."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from zoominnet.deployment.contract import IMAGES
from zoominnet.prediction.extras import extra

CONVOLUTIONS = ("Conv", "ConvTranspose")


def quantise(file: Path, out: Path, batches: Iterable[np.ndarray]) -> None:
    """Writes `out`, which computes the convolutions of `file` in int8, weights by channel and maps by tensor, but for the last
    ones of the head: their sums are scores and boxes, which need more than 256 values.

    Args:
        file: ONNX in float32.
        out: another file.
        batches: of images as the file takes them, by which the ranges of the maps are found.

    Raises:
        MissingExtraError: onnxruntime or onnx is not installed.
    """
    quantization = extra("onnxruntime.quantization", "--int8")
    onnx = extra("onnx", "--int8")
    prepare = extra("onnxruntime.quantization.shape_inference", "--int8").quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.remaining = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {IMAGES: batch}

    with tempfile.TemporaryDirectory() as folder, _silence():
        prepared = Path(folder) / "prepared.onnx"
        prepare(str(file), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(CONVOLUTIONS),
            nodes_to_exclude=last_convolutions(onnx.load(prepared).graph),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )


def last_convolutions(graph: Any) -> list[str]:
    """The names of the convolutions behind which no other comes."""
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    before_one: set[str] = set()
    last = []
    for node in reversed(graph.node):  # in topological order, as ONNX requires
        behind = any(
            each.op_type in CONVOLUTIONS or each.name in before_one
            for name in node.output
            for each in consumers.get(name, [])
        )
        if behind:
            before_one.add(node.name)
        elif node.op_type in CONVOLUTIONS:
            last.append(node.name)
    return last


@contextlib.contextmanager
def _silence() -> Any:
    """onnxruntime logs advice for the makers of other files."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
