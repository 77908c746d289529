"""A model as fast as it can be where it is not trained: without BatchNorm, in the number format of the device."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zoominnet.models.interfaces import Backbone, Part
from zoominnet.models.retinanet import RetinaNet

PROBE = (64, 96)
"""Height and width, px, of the image by which it is seen which BatchNorm follows which convolution."""
TOLERANCE = 1e-3
"""Of the folded maps, relative to their largest value, in float64: a GPU's convolutions may round to TF32's ten bits. What
the folding rounds is some 1e-5 of it, a wrong fold changes all of it."""


def frozen_copy(model: RetinaNet, upto: Part = "predictions", dtype: torch.dtype | None = None) -> RetinaNet:
    """A frozen copy in evaluation mode that computes the same as far as `upto`, but for rounding, and faster.

    Every BatchNorm of the backbone that follows a convolution is folded into it; weights and maps have `dtype`. Images,
    anchors and what comes after the predictions stay float32.

    Args:
        model: is not changed.
        upto: what :meth:`RetinaNet.outputs` will be asked for at most; of "features", the head is the model's own.
        dtype: None is the model's.
    """
    used = ["backbone", "fpn"] + ["fusion"] * (model.fusion is not None) + ["head"] * (upto != "features")
    shared = {id(module): module for name, module in model.named_children() if name not in used}
    copied = copy.deepcopy(model, shared)
    copied.training = False
    backbone = folded(copied.backbone.eval(), _probe(model.mean.device))
    assert isinstance(backbone, Backbone)
    copied.backbone = backbone
    for name in used:
        getattr(copied, name).eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    return copied


@torch.no_grad()
def folded(module: nn.Module, example: Tensor) -> nn.Module:
    """`module`, in evaluation mode and with lists of maps as output, with each BatchNorm that directly follows a convolution
    folded into that; `module` itself where that would change what it computes.

    Args:
        example: an input.
    """

    def maps(of: nn.Module) -> list[Tensor]:
        return copy.deepcopy(of).to("cpu", torch.float64)(example.to("cpu", torch.float64))

    candidate = copy.deepcopy(module)
    for conv_name, norm_name in _convolutions_before_batchnorm(candidate, example):
        conv, norm = candidate.get_submodule(conv_name), candidate.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        # What a timm BatchNorm does besides, it does by its children: nothing, or dropout and an activation.
        candidate.set_submodule(norm_name, nn.Sequential(*norm.children()))
    same = all(
        float((a - b).abs().max()) <= TOLERANCE * float(a.abs().max())
        for a, b in zip(maps(module), maps(candidate), strict=True)
    )
    return candidate if same else module


def _convolutions_before_batchnorm(module: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """The names of each convolution and the BatchNorm that is given its output, where both are used once."""
    made_by: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, for its id is free once it is gone
    calls: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def after_convolution(name: str, output: Tensor) -> None:
        calls[name] += 1
        made_by[id(output)] = (name, output)

    def before_batchnorm(name: str, x: Tensor) -> None:
        calls[name] += 1
        if id(x) in made_by:
            pairs.append((made_by[id(x)][0], name))

    hooks = []
    for name, each in module.named_modules():
        if isinstance(each, nn.Conv2d):
            hooks.append(each.register_forward_hook(lambda _m, _x, y, name=name: after_convolution(name, y)))
        elif isinstance(each, _BatchNorm) and each.track_running_stats:
            hooks.append(each.register_forward_pre_hook(lambda _m, x, name=name: before_batchnorm(name, x[0])))
    try:
        module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)]


def _probe(device: torch.device) -> Tensor:
    return torch.randn(1, 3, *PROBE, generator=torch.Generator().manual_seed(0)).to(device)
