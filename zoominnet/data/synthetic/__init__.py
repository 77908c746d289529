"""Synthetic drone scenes: VisDrone's ten classes, or four groups of them, on textured ground, made on the fly from a seed.

A scene is a small world (roads, car parks, squares, fields, houses, and the solids of `models`) seen by a tilted
camera. What sets look-alike classes apart, such as walking or sitting, a load or a roof, panels or windows, is 2 to
10 px large at 512 px, so that an image of twice the side shows clearly more. Sizes, crowding, class imbalance,
occlusion, ignored regions and images without objects follow VisDrone's.

The annotations follow from a scene's layout without rendering it, and scale with the image: at another size the same
objects have proportional boxes. Objects under 1 px, in images of less than 171 px, are painted but not annotated.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args, overload

import numpy as np
import torch
from torch import Tensor

from zoominnet.data.plan import keyed_rng
from zoominnet.data.records import ANY_CLASS, VISDRONE_CLASSES, DataReport, ImageRecord, Split
from zoominnet.data.synthetic.geometry import REFERENCE_PX
from zoominnet.data.synthetic.layout import MIN_OBJECTS, Scene, make_scene
from zoominnet.data.synthetic.render import render

__all__ = ["MAX_ZOOM", "SyntheticClasses", "SyntheticScenes"]

SyntheticClasses = Literal["visdrone", "grouped"]
"""What is told apart: VisDrone's ten classes, or the four groups `GROUPS`."""
GROUPS = {
    "person": ("pedestrian", "people"),
    "cycle": ("bicycle", "motor", "tricycle", "awning-tricycle"),
    "car": ("car", "van"),
    "truck or bus": ("truck", "bus"),
}
MAX_ZOOM = 6.0
"""At a larger one a bus would not fit into the image."""
EMPTY_SHARE = 0.03
"""Share of the images that have no objects."""
_LAYOUT, _PIXELS = 11, 12  # purposes of random streams, see plan.keyed_rng


class SyntheticScenes(Sequence[ImageRecord]):
    """A split of generated scenes: a sequence of records, and the images to them.

    Everything is a pure function of (seed, split, index): the same in every process and every run. A record is made
    when it is first asked for, an image each time; both together take about 0.07 s at 512 px on one core.

    Args:
        num_images: 1 or more.
        size: side of the square images, px, 32 or more.
        seed: 0 or greater.
        split: its name; splits of different names share no scene.
        density: of the objects, 0.05 to 1; at 1 there are 20 to 500 in an image, but none in about 3 % of the images.
        zoom: of the camera, 1 to `MAX_ZOOM`. It sees 1 / zoom of the field: objects measure 3 * zoom to 60 * zoom px at
            512 px, in proportion elsewhere, and there are about 1 / zoom as many, but for want of room.
        classes: see `SyntheticClasses`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_images: int,
        *,
        size: int = REFERENCE_PX,
        seed: int = 0,
        split: str = "train",
        density: float = 1.0,
        zoom: float = 1.0,
        classes: SyntheticClasses = "visdrone",
    ) -> None:
        if num_images < 1 or size < 32 or seed < 0 or not 0.05 <= density <= 1 or not 1 <= zoom <= MAX_ZOOM:
            raise ValueError(
                "SyntheticScenes: needs num_images >= 1, size >= 32 px, seed >= 0, a density of 0.05 to 1 and a zoom of "
                f"1 to {MAX_ZOOM:g}; got {num_images}, {size}, {seed}, {density} and {zoom}"
            )
        if classes not in get_args(SyntheticClasses):
            raise ValueError(f"SyntheticScenes: classes are {' or '.join(get_args(SyntheticClasses))}, got {classes!r}")
        self.num_images = num_images
        self.size = size
        self.name = split
        self.density, self.zoom = density, zoom
        self.class_names = tuple(GROUPS) if classes == "grouped" else VISDRONE_CLASSES
        self._label_of = np.array([_group_of(name) for name in VISDRONE_CLASSES] if classes == "grouped" else range(10))
        self._key = (seed, zlib.crc32(split.encode()))
        self._records: dict[int, ImageRecord] = {}
        self._new: dict[int, ImageRecord] = {}
        self._latest: tuple[int, Scene] | None = None

    def __len__(self) -> int:
        return self.num_images

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        if index not in self._records:
            self._records[index] = self._new[index] = self._make_record(index)
        return self._records[index]

    def has_made(self, index: int) -> bool:
        """Whether the record at `index`, 0 or greater, is there already."""
        return index in self._records

    def take_new(self) -> dict[int, ImageRecord]:
        """The records made, in this process, since the last call: what a loader's worker has to give away."""
        taken, self._new = self._new, {}
        return taken

    def keep(self, records: Mapping[int, ImageRecord]) -> None:
        """Spares this process, and those that it forks, from making records that another process of these scenes made."""
        self._records.update(records)

    def split(self) -> Split:
        """The scenes as a reader would give them."""
        return Split(
            name=self.name,
            records=self,
            class_names=self.class_names,
            category_ids=tuple(range(1, len(self.class_names) + 1)),
            report=DataReport(),
            render=self.render,
            generator=f"SyntheticScenes {self._key} {self.size} px, density {self.density}, zoom {self.zoom}",
        )

    def render(self, record: ImageRecord) -> Tensor:
        """The image of one of this split's records: uint8[3, size, size], RGB."""
        index = record.image_id
        return torch.from_numpy(render(self._scene(index), self.size, keyed_rng(_PIXELS, *self._key, index)))

    def _scene(self, index: int) -> Scene:
        """Scenes are too large to keep them all, but who asks for a record mostly wants its image next."""
        if self._latest is None or self._latest[0] != index:
            self._latest = index, self._make_scene(index)
        return self._latest[1]

    def _make_scene(self, index: int) -> Scene:
        rng = keyed_rng(_LAYOUT, *self._key, index)
        empty = bool(rng.random() < EMPTY_SHARE)
        while True:
            scene = make_scene(rng, density=self.density, empty=empty, zoom=self.zoom)
            if empty or len(scene.labels) >= max(1, round(self.density * MIN_OBJECTS / self.zoom**2)):
                return scene  # else this camera saw too little

    def _make_record(self, index: int) -> ImageRecord:
        scene = self._scene(index)
        boxes = scene.boxes * np.float32(self.size)
        annotated = np.flatnonzero((boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= 1)
        return ImageRecord(
            path=None,
            image_id=index,
            width=self.size,
            height=self.size,
            boxes=boxes[annotated],
            labels=self._label_of[scene.labels[annotated]],
            ignored=scene.ignored * np.float32(self.size),
            ignored_labels=np.full(len(scene.ignored), ANY_CLASS, dtype=np.int64),
        )


def _group_of(name: str) -> int:
    return next(label for label, names in enumerate(GROUPS.values()) if name in names)
