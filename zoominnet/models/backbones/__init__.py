"""The backbones by name. A new one is a file here and an entry below."""

from collections.abc import Callable
from functools import partial

from zoominnet.models.backbones.resnet import RESNETS, ResNetStages
from zoominnet.models.backbones.timm import PREFIX, TimmStages
from zoominnet.models.interfaces import Backbone

BACKBONES: dict[str, Callable[..., Backbone]] = {name: partial(ResNetStages, name) for name in RESNETS}


def find_backbone(name: str) -> Callable[..., Backbone]:
    """What makes the backbone `name`: an entry of `BACKBONES`, or "timm:" and a name of timm's.

    Raises:
        ValueError: neither.
    """
    if name.startswith(PREFIX):
        return partial(TimmStages, name.removeprefix(PREFIX))
    if name not in BACKBONES:
        raise ValueError(f"backbone: {name!r} is not one of {', '.join(BACKBONES)}, nor timm:NAME")
    return BACKBONES[name]


__all__ = ["BACKBONES", "find_backbone"]
