"""An ONNX file of this project, run by onnxruntime in a model's place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from zoominnet.deployment.contract import IMAGES, METADATA_KEY, Contract, DeploymentError, not_ours
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.engine.checkpoint.model_file import info_of_text, reason
from zoominnet.engine.inference import cost_of
from zoominnet.models import RetinaNet
from zoominnet.models.anchors import Anchors
from zoominnet.models.architectures import ARCHITECTURES, Architecture
from zoominnet.models.interfaces import DetectionModel
from zoominnet.models.postprocess import PostProcess
from zoominnet.models.weights import METADATA_KEY as INFO_KEY
from zoominnet.prediction.extras import extra

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SUFFIX = ".onnx"


class OnnxModel:
    """What an ONNX file finds in images of its own size, see :class:`zoominnet.models.interfaces.DetectionModel`.

    Args:
        path: of the file.
        **postprocess: as :class:`PostProcess`, of direct calls.

    Attributes:
        info: what the file says of the model.
        contract: what it takes and gives.

    Raises:
        DeploymentError: no such file, damaged, or not written by this project.
        CheckpointError: of a model that this version does not know.
        MissingExtraError: onnxruntime is not installed.
    """

    training = False

    def __init__(self, path: Path, **postprocess: Any) -> None:
        if not path.is_file():
            raise DeploymentError(f"{path}: there is no such file; export a model with python -m zoominnet.export")
        self._ort = extra("onnxruntime", "running an ONNX file")
        self.path = path
        self._start(torch.device("cpu"))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.contract = Contract.of_text(metadata.get(METADATA_KEY), path)
        self.info: ModelInfo = info_of_text(metadata.get(INFO_KEY), path, not_ours(path))
        names = [each.name for each in self._session.get_inputs()], [each.name for each in self._session.get_outputs()]
        if names != ([IMAGES], list(self.contract.outputs)):
            raise DeploymentError(not_ours(path))
        if self.contract.postprocess == "inside":
            own = {"score_threshold": self.contract.conf, "max_detections": self.contract.max_det}
            postprocess = {**own, "nms_threshold": self.contract.iou, **postprocess}
        self.postprocess = PostProcess(**postprocess)
        self.image_size = self.contract.image_size

    def _start(self, device: torch.device) -> None:
        options = self._ort.SessionOptions()
        if threads := os.environ.get("OMP_NUM_THREADS"):
            options.intra_op_num_threads = int(threads)
        options.log_severity_level = 3
        # Its threads would wait for the next image on the cores that reading, drawing and other models need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = (PROVIDERS[device.type], {"device_id": device.index or 0} if device.type == "cuda" else {})
        try:
            self._session = self._ort.InferenceSession(str(self.path), options, providers=[provider])
        except Exception as error:  # onnxruntime has an exception of its own for each code, without a common parent
            raise DeploymentError(
                f"{self.path}: not an ONNX file that onnxruntime {self._ort.__version__} can run ({reason(error)}); export "
                "it again"
            ) from error
        self._device = device

    @property
    def architecture(self) -> Architecture:
        """Of the model."""
        return ARCHITECTURES[self.info.name]

    @property
    def device(self) -> torch.device:
        """Where onnxruntime computes."""
        return self._device

    @property
    def runs_on_cuda(self) -> bool:
        """Whether this onnxruntime can."""
        return PROVIDERS["cuda"] in self._ort.get_available_providers()

    def place(self, device: torch.device) -> OnnxModel:
        """Has onnxruntime compute on `device`.

        Raises:
            DeploymentError: this onnxruntime cannot.
        """
        if device != self._device:
            if device.type == "cuda" and not self.runs_on_cuda:
                raise DeploymentError(
                    f"--device {device}: onnxruntime {self._ort.__version__} is without CUDA; pip install onnxruntime-gpu, "
                    "or use --device cpu"
                )
            self._start(device)
        return self

    def train(self, mode: bool = True) -> OnnxModel:
        """It has no mode but evaluation."""
        return self

    def eval(self) -> OnnxModel:
        """As it is."""
        return self

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Float images [3, H, W] in 0..1 of one size -> boxes, scores and labels of each, as `postprocess` says."""
        return self.detect(torch.stack(list(images)), self.postprocess)

    def detect(
        self, images: Tensor, process: PostProcess, labels: Sequence[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """See :meth:`zoominnet.models.RetinaNet.detect`; of a file with the post-processing inside, `labels` are chosen
        among what it gives.

        Raises:
            DeploymentError: `process` asks for what the file leaves out, or the images have a size that it does not take.
        """
        self._check(process, (images.shape[-2], images.shape[-1]))
        return read_outputs(self.contract, self.info.name, images, process, labels, self.run)

    def run(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """What the file itself gives for what it takes, in pieces of its batch."""
        array, batch = numbers.cpu().numpy(), self.contract.batch
        pieces = [array] if batch is None else [array[i : i + batch] for i in range(0, len(array), batch)]
        parts = []
        for piece in pieces:
            filled = piece if batch is None else np.pad(piece, ((0, batch - len(piece)), (0, 0), (0, 0), (0, 0)))
            try:
                given = self._session.run(None, {IMAGES: np.ascontiguousarray(filled)})
            except Exception as error:  # as above
                raise DeploymentError(
                    f"{self.path}: onnxruntime cannot run it ({reason(error)}); export it again"
                ) from error
            parts.append([torch.from_numpy(each[: len(piece)]) for each in given])
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def cost(self) -> dict[str, Any]:
        """What :func:`zoominnet.engine.inference.cost_of` says of the model that it was made of."""
        larger = (self.image_size / self.contract.image_size) ** 2
        return {"gflops": self.contract.gflops * larger, "parameters": self.contract.parameters}

    def _check(self, process: PostProcess, size: tuple[int, int]) -> None:
        contract = self.contract
        if not contract.dynamic_size and size != (contract.image_size, contract.image_size):
            raise DeploymentError(
                f"{self.path}: takes images of {contract.image_size} px, not {size[1]} x {size[0]}; export it with "
                f"--dynamic-size or another --image-size"
            )
        if contract.postprocess == "outside":
            return
        assert contract.conf is not None
        assert contract.max_det is not None
        again = "export the model with other options, or with --postprocess outside"
        if process.score_threshold < contract.conf:
            raise DeploymentError(
                f"{self.path}: gives no scores at or below {contract.conf:g}, and {process.score_threshold:g} is asked for; "
                f"raise that, or {again}"
            )
        if process.nms_threshold != contract.iou:
            raise DeploymentError(
                f"{self.path}: its NMS has an IoU of {contract.iou:g}, and {process.nms_threshold:g} is asked for; ask for "
                f"that one, or {again}"
            )
        if process.max_detections > contract.max_det:
            raise DeploymentError(
                f"{self.path}: gives {contract.max_det} boxes at most, and {process.max_detections} are asked for; ask for "
                f"as many, or {again}"
            )


def read_outputs(
    contract: Contract,
    name: str,
    images: Tensor,
    process: PostProcess,
    labels: Sequence[int] | None,
    run: Callable[[Tensor], tuple[Tensor, ...]],
) -> list[dict[str, Tensor]]:
    """What a deployed file finds, see :meth:`OnnxModel.detect`.

    Args:
        contract: of the file.
        name: of the model's architecture.
        images, process, labels: as :meth:`OnnxModel.detect`.
        run: from what the file takes to what it gives.
    """
    outputs = run((images * 255).round().to(torch.uint8) if contract.input == "uint8" else images.float())
    if contract.postprocess == "outside":
        boxes, scores = outputs
        if labels is not None:
            scores[..., [label for label in range(scores.shape[-1]) if label not in labels]] = 0
        height, width = images.shape[-2:]
        with torch.device("meta"):
            sizes = [grid.num_anchors for grid in Anchors(ARCHITECTURES[name])(height, width)]
        return process.of_boxes(scores.split(sizes, dim=1), boxes.split(sizes, dim=1), [(height, width)] * len(images))
    found = []
    for boxes, scores, classes, count in zip(*outputs, strict=True):
        wanted = scores[: int(count)] > process.score_threshold
        if labels is not None:
            wanted &= torch.isin(classes[: int(count)], torch.tensor(labels))
        kept = torch.nonzero(wanted).squeeze(1)[: process.max_detections]
        found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": classes[kept]})
    return found


def known_cost(model: DetectionModel) -> dict[str, Any]:
    """What a model costs, see :func:`zoominnet.engine.inference.cost_of`; of an ONNX file, what that says."""
    return model.cost() if isinstance(model, OnnxModel) else cost_of(cast(RetinaNet, model))


def load_onnx(path: Path, **postprocess: Any) -> tuple[OnnxModel, ModelInfo]:
    """The model of an ONNX file, on the CPU, and what its file says of it; see :class:`OnnxModel`."""
    model = OnnxModel(path, **postprocess)
    return model, model.info
