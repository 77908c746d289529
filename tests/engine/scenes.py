"""The synthetic scenes of the training runs, painted once: that takes longer than the steps of a tiny model.

A scene follows from seed, split, density and index, and its image from its size besides; tests/data/test_synthetic.py
sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from zoominnet.data.records import ImageRecord
from zoominnet.data.synthetic import SyntheticScenes

_make, _render = SyntheticScenes._make_scene, SyntheticScenes.render
_scenes: dict[tuple[Any, ...], Any] = {}
_images: dict[tuple[Any, ...], Tensor] = {}


def _make_once(self: SyntheticScenes, index: int) -> Any:
    key = (*self._key, self.density, index)
    if key not in _scenes:
        _scenes[key] = _make(self, index)
    return _scenes[key]


def _render_once(self: SyntheticScenes, record: ImageRecord) -> Tensor:
    key = (*self._key, self.density, record.image_id, self.size)
    if key not in _images:
        _images[key] = _render(self, record)
    return _images[key].clone()


def keep() -> None:
    """From now on in this process and its forks, which begin with what is kept."""
    SyntheticScenes._make_scene, SyntheticScenes.render = _make_once, _render_once  # type: ignore[method-assign]


@contextmanager
def kept() -> Iterator[None]:
    """`keep` within."""
    before = SyntheticScenes._make_scene, SyntheticScenes.render
    keep()
    try:
        yield
    finally:
        SyntheticScenes._make_scene, SyntheticScenes.render = before  # type: ignore[method-assign]


@contextmanager
def painted_anew() -> Iterator[None]:
    """Each image each time, as in a run of the command."""
    with kept():
        SyntheticScenes._make_scene, SyntheticScenes.render = _make, _render  # type: ignore[method-assign]
        yield
