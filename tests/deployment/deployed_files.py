"""Contracts, and exported files that several tests use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import zoominnet
from zoominnet.data import SyntheticScenes
from zoominnet.data.drawing import pixels_of
from zoominnet.deployment import Contract
from zoominnet.engine.checkpoint import ModelInfo
from zoominnet.models import RetinaNet


def network(name: str) -> RetinaNet:
    """A shipped model."""
    model = zoominnet.load(name).model
    assert isinstance(model, RetinaNet)
    return model


def info_of(name: str) -> ModelInfo:
    """What a shipped model's file says of it."""
    return zoominnet.load(name).info


def contract(model: RetinaNet, **changes: Any) -> Contract:
    """Float images of the model's size to at most 100 boxes."""
    fields: dict[str, Any] = {
        "image_size": model.image_size,
        "dynamic_size": False,
        "size_divisor": model.architecture.size_divisor,
        "smallest_size": model.architecture.size_divisor,
        "batch": None,
        "input": "float",
        "postprocess": "inside",
        "conf": 0.05,
        "iou": 0.5,
        "max_det": 100,
        "precision": "float32",
        "gflops": 0.125,
        "parameters": 1000,
    }
    if changes.get("postprocess") == "outside":
        changes |= {"conf": None, "iou": None, "max_det": None}
    return Contract(**{**fields, **changes})


def scenes(number: int, size: int) -> Tensor:
    """Drawn scenes as the shipped models know them, uint8 [N, 3, size, size]."""
    split = SyntheticScenes(number, size=size, seed=5, split="val", zoom=4.0, classes="grouped").split()
    return torch.stack([pixels_of(record, split) for record in split.records])
