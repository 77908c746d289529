"""A deployed model as a graph: by torch.export, and from that as ONNX."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from zoominnet.deployment.contract import IMAGES, METADATA_KEY, Contract
from zoominnet.deployment.deployed import DeployedModel
from zoominnet.deployment.nms import KeepBest, keep_best, keep_best_operator, onnx_translation
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.engine.checkpoint.model_file import text_of_info
from zoominnet.models import RetinaNet
from zoominnet.models.frozen import frozen_copy
from zoominnet.models.weights import METADATA_KEY as INFO_KEY
from zoominnet.prediction.extras import extra

MAX_SIDE = 4096
"""Of a dynamic input, px."""


def deployed(model: RetinaNet, contract: Contract, keep: KeepBest = keep_best) -> DeployedModel:
    """A copy of `model` as `contract` says, on the CPU: BatchNorm folded, in the number format of its precision."""
    half = contract.precision == "float16"
    copied = frozen_copy(model.cpu(), dtype=torch.float16 if half else torch.float32)
    copied.set_kernel_backend("reference")
    # In channels_last the layout of a map depends on whether a dimension is 1, and a graph on that it is not.
    copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return DeployedModel(copied, contract, keep).eval()


def exported(model: DeployedModel) -> ExportedProgram:
    """The model's graph, of PyTorch's and torchvision's operators, and `zoominnet::keep_best` where it was made with it."""
    contract = model.contract
    number = 3 if contract.batch is None else contract.batch
    rows = columns = contract.image_size
    if contract.dynamic_size:
        # torch.export takes a dimension of 1 for one that is never another, and two that are equal for one.
        rows, columns = 3 * (cell := coarsest_cell(model.model)), 5 * cell
    dtype = torch.uint8 if contract.input == "uint8" else torch.float32
    images = torch.zeros(number, 3, rows, columns, dtype=dtype)
    dynamic: dict[int, Any] = {} if contract.batch is not None else {0: Dim("batch", min=1)}
    if contract.dynamic_size:
        unit = contract.size_divisor
        for axis, name in ((2, "rows"), (3, "columns")):
            dynamic[axis] = unit * Dim(name, min=contract.smallest_size // unit, max=MAX_SIDE // unit)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code; what matters fails
        program = torch.export.export(model, (images,), dynamic_shapes={IMAGES: dynamic})
        program = program.run_decompositions({torch.ops.zoominnet.upsample_nearest2x_reference.default: _upsample})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def coarsest_cell(model: RetinaNet) -> int:
    """The side of a cell of the last level, px of the input, as a multiple of what the sides must be multiples of."""
    return max(2**model.architecture.last_level, model.architecture.size_divisor)


def _upsample(x: Tensor, add: Tensor | None) -> Tensor:
    """The kernel by PyTorch's operators, which need nothing of this project."""
    larger = F.interpolate(x, scale_factor=2, mode="nearest")
    return larger if add is None else larger + add


def save_torch_export(model: RetinaNet, contract: Contract, info: ModelInfo, file: Path) -> None:
    """Writes a .pt2 file, which torch.export.load reads where torch and torchvision are."""
    texts = {METADATA_KEY: contract.to_text(), INFO_KEY: text_of_info(info)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported(deployed(model, contract)), file, extra_files=texts)


def _name_dimensions(graph: Any) -> None:
    """Gives the free dimensions of input and outputs names for people."""
    axes = {IMAGES: ("batch", 3, "height", "width"), "boxes": ("batch", "anchors", 4)}
    axes |= {"scores": ("batch", "anchors", "classes"), "labels": ("batch", "anchors"), "count": ("batch",)}
    for value in (*graph.inputs, *graph.outputs):
        known = [each if isinstance(each, int) else None for each in value.shape]
        names = axes[value.name][: len(known)]
        value.shape = type(value.shape)([size or name for size, name in zip(known, names, strict=True)])


def save_onnx(model: RetinaNet, contract: Contract, info: ModelInfo, file: Path, opset: int) -> None:
    """Writes an ONNX file.

    Raises:
        MissingExtraError: onnxscript is not installed.
    """
    extra("onnxscript", "the export to ONNX")
    program = exported(deployed(model, dataclasses.replace(contract), keep_best_operator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[IMAGES],
            output_names=list(contract.outputs),
            custom_translation_table=onnx_translation(),
            verbose=False,
        )
    assert made is not None
    _name_dimensions(made.model.graph)
    for node in (*made.model.graph, *(node for function in made.model.functions.values() for node in function)):
        node.metadata_props.clear()  # the exporter's stack traces: a quarter of a small file, and paths of this machine
    made.model.metadata_props.update({METADATA_KEY: contract.to_text(), INFO_KEY: text_of_info(info)})
    made.save(file, external_data=False)
