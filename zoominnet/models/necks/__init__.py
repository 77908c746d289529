"""The necks by name. A new one is a file here and an entry below."""

from collections.abc import Callable

from zoominnet.models.interfaces import Neck
from zoominnet.models.necks.fpn import FeaturePyramid

NECKS: dict[str, Callable[[tuple[int, ...], int, int, int], Neck]] = {"fpn": FeaturePyramid}

__all__ = ["NECKS"]
