"""The heads by name. A new one is a file here and an entry below."""

from collections.abc import Callable

from zoominnet.models.heads.retina import RetinaHead
from zoominnet.models.interfaces import Head

HEADS: dict[str, Callable[..., Head]] = {"retina": RetinaHead}

__all__ = ["HEADS"]
