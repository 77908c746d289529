"""timm's models as backbones, named "timm:NAME"; timm itself is imported where one is asked for."""

from __future__ import annotations

import difflib
import functools
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from zoominnet.errors import UserError
from zoominnet.models.inputs import IMAGENET, Normalisation
from zoominnet.models.interfaces import Backbone

PREFIX = "timm:"
"""Before a name of timm's registry, "timm:convnext_atto", which may have a tag of weights, "timm:convnext_atto.d2_in1k"."""
STRIDES = (4, 8, 16, 32)
PROBE = (64, 96)
"""Height and width, px, that a model must take: multiples of 32, neither the other's multiple."""


class TimmError(UserError):
    """A model of timm's that cannot be had or used. The message is one line: name, reason, remedy."""


@dataclass(frozen=True)
class TimmModel:
    """What is to be known of a model before it is built.

    Attributes:
        indices: which of timm's maps are C2, C3, C4 and C5.
        channels: of these.
        made_from: of each of these the names of the parameters that it is computed from.
        normalisation: of the images that its weights were trained on.
    """

    indices: tuple[int, ...]
    channels: tuple[int, int, int, int]
    made_from: tuple[frozenset[str], ...]
    normalisation: Normalisation


def import_timm(name: str) -> ModuleType:
    """timm, for the sake of `name`.

    Raises:
        TimmError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        why = "is not installed" if getattr(error, "name", None) == "timm" else f"cannot be imported ({error})"
        raise TimmError(f"{PREFIX}{name}: needs timm, which {why}: pip install zoominnet[timm]") from error


@functools.cache
def describe(name: str) -> TimmModel:
    """Looks at a model, which is built without memory for its weights, and has no effect on random numbers.

    Args:
        name: without "timm:".

    Raises:
        TimmError: there is no timm or no such model, or it cannot be a backbone.
    """
    timm = import_timm(name)
    _require_known(timm, name)
    with _on_nothing():
        try:
            net = timm.create_model(name, features_only=True)
            info = net.feature_info
            strides = info.reduction(list(range(len(info))))
        except Exception as error:  # whatever a model that has no maps to give says
            raise TimmError(
                f"{PREFIX}{name}: timm cannot take feature maps out of it ({_first_line(error)}); choose another model"
            ) from error
        if missing := [stride for stride in STRIDES if stride not in strides]:
            found = ", ".join(str(stride) for stride in sorted(set(strides)))
            raise TimmError(
                f"{PREFIX}{name}: has maps of strides {found}, but not of {' and '.join(map(str, missing))}; a "
                "backbone needs 4, 8, 16 and 32: choose a MobileNet, EfficientNet, ConvNeXt, RepViT or another such model"
            )
        # Of several maps of a stride the last is the deepest.
        indices = tuple(max(i for i, stride in enumerate(strides) if stride == wanted) for wanted in STRIDES)
        height, width = PROBE
        try:
            if not set(indices) <= set(info.out_indices):
                net = timm.create_model(name, features_only=True, out_indices=indices)
            given = dict(zip(net.feature_info.out_indices, net.eval()(torch.empty(1, 3, height, width)), strict=True))
            maps = [_channels_first(net, given[i]) for i in indices]
            names = [each for each, _ in net.named_parameters()]
            made_from = [
                torch.autograd.grad(each.sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
                for each in maps
            ]
        except Exception as error:  # of models for one size of images it may be anything
            raise TimmError(
                f"{PREFIX}{name}: cannot take images of {height} x {width} px ({_first_line(error)}); a backbone needs "
                "to take any multiples of 32: choose another model"
            ) from error
    cells = [tuple(each.shape[-2:]) for each in maps]
    if cells != [(height // stride, width // stride) for stride in STRIDES]:
        raise TimmError(
            f"{PREFIX}{name}: of an image of {height} x {width} px its maps have {', '.join(f'{h} x {w}' for h, w in cells)} "
            "cells, which are not those of strides 4, 8, 16 and 32; choose another model"
        )
    c2, c3, c4, c5 = (each.shape[1] for each in maps)
    return TimmModel(
        indices,
        (c2, c3, c4, c5),
        tuple(frozenset(n for n, g in zip(names, found, strict=True) if g is not None) for found in made_from),
        (_three(net.pretrained_cfg.get("mean"), IMAGENET[0]), _three(net.pretrained_cfg.get("std"), IMAGENET[1])),
    )


def _require_known(timm: ModuleType, name: str) -> None:
    """Names of timm's registry alone: "hf-hub:" and "local-dir:" would read what a model file of others names."""
    base, _, tag = name.partition(".")
    if not re.fullmatch(r"\w+", base) or not timm.is_model(base):
        models = timm.list_models()
        close = (
            difflib.get_close_matches(base, models, n=4, cutoff=0.7) or [each for each in models if base in each][:4]
        )
        hint = f"close are {', '.join(close)}" if base and close else 'timm.list_models("*word*") finds names'
        raise TimmError(f"{PREFIX}{name}: timm {timm.__version__} has no such model; {hint}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise TimmError(
            f"{PREFIX}{name}: timm {timm.__version__} has no weights of the tag {tag!r} for {base}; "
            + (f"it has {', '.join(tags)}" if tags else "it has none: leave the tag out")
        )


@contextmanager
def _on_nothing() -> Iterator[None]:
    """Modules that are built within have no memory; gradients are known, random numbers stay as they were."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def _first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]


def _three(values: object, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if not isinstance(values, tuple | list) or len(values) != 3:
        return default
    a, b, c = (float(value) for value in values)
    return a, b, c


def _channels_first(net: nn.Module, x: Tensor) -> Tensor:
    """[B, C, H, W], also of a model that has its channels last."""
    return x.permute(0, 3, 1, 2) if getattr(net, "output_fmt", None) == "NHWC" else x


class TimmStages(Backbone):
    """A model of timm's without its classifier, returning its maps at strides 4, 8, 16 and 32.

    Dropout and drop path, of the few models that have them by default, are off: training has no randomness but the
    data's, so that it resumes exactly.

    Args:
        name: of timm's registry, with or without a tag of weights.
        stride_in_1x1: has to be False: timm's models stride as they do.
        frozen_stages: 0 trains everything; n >= 1 freezes whatever the first n of C2..C5 are computed from, the stem
            included (parameters, and the statistics of the BatchNorms among them).
        norm_eval: keep every BatchNorm in evaluation mode also while training. LayerNorms have no statistics: no effect.

    Raises:
        TimmError: there is no timm or no such model, or an option that the model cannot have.
    """

    def __init__(
        self, name: str, *, stride_in_1x1: bool = False, frozen_stages: int = 0, norm_eval: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= frozen_stages <= 4:
            raise ValueError(f"frozen_stages: {frozen_stages} is not in 0..4")
        if stride_in_1x1:
            raise TimmError(f"{PREFIX}{name}: has no stride_in_1x1, which is of Caffe's ResNets; leave it out")
        found = describe(name)
        self.channels, self.normalisation, self._made_from = found.channels, found.normalisation, found.made_from
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.net = import_timm(name).create_model(name, features_only=True, out_indices=found.indices)
        self._names = frozenset(self.net.state_dict())
        for module in self.net.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        frozen = frozenset().union(*found.made_from[:frozen_stages])
        if 1 <= frozen_stages < 4 and self._numbers(found.made_from[0]) > self._numbers(found.made_from[-1]) / 2:
            raise TimmError(
                f"{PREFIX}{name}: its stages cannot be frozen one by one, for already C2 is computed from most of it; "
                "give --frozen-stages 0"
            )
        self._freeze(frozen)
        self.use_from(2)

    def _numbers(self, names: frozenset[str]) -> int:
        return sum(parameter.numel() for name, parameter in self.net.named_parameters() if name in names)

    def _freeze(self, names: frozenset[str]) -> None:
        for name, parameter in self.net.named_parameters():
            if name in names:
                parameter.requires_grad_(False)

    def use_from(self, first: int) -> None:
        used = frozenset().union(*self._made_from[first - 2 :])
        self._freeze(frozenset(name for name, _ in self.net.named_parameters()) - used)

    def synchronise_batchnorm(self) -> None:
        """timm's own way, for some of its BatchNorms have their activation within, which torch's would lose."""
        layers = importlib.import_module("timm.layers")
        self.net = layers.convert_sync_batchnorm(self.net)

    def own_name(self, key: str) -> str | None:
        """timm's names, of the whole model; in what gives maps they may have one dot less, or stand in "model"."""
        candidates = (key, key.replace(".", "_", 1), f"model.{key}")
        return next((f"net.{name}" for name in candidates if name in self._names), None)

    def train(self, mode: bool = True) -> TimmStages:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and (self.norm_eval or _is_frozen(module)):
                module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        return [_channels_first(self.net, each) for each in self.net(x)]


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def fetch_pretrained(name: str) -> tuple[str, dict[str, Tensor]]:
    """timm's own weights of a model, of the tag that its name has, else of timm's first.

    Returns:
        What they are called, and the state dict of the whole model, classifier included (downloaded to the cache of
        Hugging Face's hub, or taken from it).

    Raises:
        TimmError: there are none.
        OSError: they cannot be downloaded.
    """
    timm = import_timm(name)
    _require_known(timm, name)
    if not timm.models.is_model_pretrained(name):
        raise TimmError(f"{PREFIX}{name}: timm has no weights of it")
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # else each of its ten tries is a line on the terminal
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whichever library the hub's client asks by
        raise OSError(_first_line(error)) from error
    finally:
        hub.setLevel(level)
    cfg = model.pretrained_cfg
    return f"timm {cfg['architecture']}.{cfg.get('tag')}", model.state_dict()
