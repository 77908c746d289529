"""The backbones by name. A new one is a file here and an entry below."""

from collections.abc import Callable
from functools import partial

from zoominnet.models.backbones.resnet import RESNETS, ResNetStages
from zoominnet.models.interfaces import Backbone

BACKBONES: dict[str, Callable[..., Backbone]] = {name: partial(ResNetStages, name) for name in RESNETS}

__all__ = ["BACKBONES"]
