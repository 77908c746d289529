"""A trained model from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoominnet.command import choose_device
from zoominnet.engine.checkpoint import load_model
from zoominnet.models import RetinaNet


def load(path: str | Path, *, device: str = "cpu", **options: Any) -> RetinaNet:
    """A trained model, in evaluation mode, its weights verified where they are in a checkpoint.

    Args:
        path: a run folder (its best student), a checkpoint folder, or a model.safetensors file.
        device: "cpu", "cuda", "cuda:N", or "auto" (cuda if there is one).
        **options: score_threshold, nms_threshold, candidates, max_detections, see
            :class:`zoominnet.models.postprocess.PostProcess`.

    Returns:
        The model; its `class_names` are those of the labels 0, 1, ... It takes a list of float images [3, H, W] in 0..1
        (RGB) and gives a dict of "boxes" (x1, y1, x2, y2 px), "scores" and "labels" for each.

    Raises:
        UserError: missing, damaged, not written by this project, or there is no such device.

    Example:
        >>> model = zoominnet.load("runs/fa", score_threshold=0.3)
        >>> [found] = model([torch.rand(3, 512, 512)])
        >>> [model.class_names[label] for label in found["labels"]]
        ['car', 'pedestrian']
    """
    model, _ = load_model(Path(path), **options)
    return model.place(choose_device(device))
