"""A trained model from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zoominnet.command import choose_device
from zoominnet.deployment import SUFFIX, OnnxModel, load_onnx
from zoominnet.engine.checkpoint import load_model
from zoominnet.models.interfaces import DetectionModel
from zoominnet.prediction import Detector


def load(path: str | Path, *, device: str = "cpu", **options: Any) -> Detector:
    """A trained model, in evaluation mode, its weights verified where they are in a checkpoint.

    Args:
        path: a run folder (its best student), a checkpoint folder, a model.safetensors file, the name of a model that is
            shipped, or an ONNX file of :func:`zoominnet.export`, which onnxruntime runs.
        device: "cpu", "cuda", "cuda:N", or "auto" (cuda if there is one).
        **options: score_threshold, nms_threshold, candidates, max_detections of direct calls, see
            :class:`zoominnet.models.postprocess.PostProcess`; `predict` has its own.

    Returns:
        The model. Its `predict` takes images of any size as files, arrays or tensors. Called directly it takes a list of
        float images [3, H, W] in 0..1 (RGB) and gives a dict of "boxes" (x1, y1, x2, y2 px), "scores" and "labels" for
        each, as torchvision's detectors do. Its `class_names` are those of the labels 0, 1, ...

    Raises:
        UserError: missing, damaged, not written by this project, or there is no such device.

    Example:
        >>> model = zoominnet.load("runs/fa")
        >>> result = model.predict("street.jpg")
        >>> result.names
        ['car', 'pedestrian']
        >>> [found] = model([torch.rand(3, 512, 512)])
    """
    path = Path(path)
    model, info = load_onnx(path, **options) if path.suffix == SUFFIX else load_model(path, **options)
    return Detector(model, info, path).place(device_for(model, device))


def device_for(model: DetectionModel, name: str) -> torch.device:
    """The device of --device for a model: "auto" is cuda where there is one and what runs the model can use it.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto" and isinstance(model, OnnxModel) and not model.runs_on_cuda:
        return torch.device("cpu")
    return choose_device(name)
