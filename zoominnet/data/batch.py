"""What a loader hands out: samples, batches, and a batch's way to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from zoominnet.data.cache import DeviceCache
from zoominnet.data.records import ImageRecord
from zoominnet.data.transforms import ResizeGeometry

_IGNORED, _PADDING = -1.0, -2.0


class Target(TypedDict):
    """What is known of one image; torchvision's detection convention, extended.

    boxes: float32[G, 4], (x1, y1, x2, y2) px of the image that is handed out.
    labels: int64[G], 0 to number of classes - 1.
    ignored: float32[R, 4], regions in which objects are not annotated, same form as `boxes`.
    image_id: as in the record.
    index: of the record in its split.
    geometry: maps boxes back to the original image; of one that is augmented, those before that.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    image_id: int
    index: int
    geometry: ResizeGeometry


@dataclass(frozen=True)
class Sample:
    """One image, uint8[3, size, size], and its target."""

    image: Tensor
    target: Target


@dataclass(frozen=True)
class _About:
    """What is not a tensor in a target, and the number of its boxes and of its ignored regions."""

    boxes: int
    ignored: int
    image_id: int
    index: int
    geometry: ResizeGeometry


@dataclass(frozen=True)
class Batch:
    """Images and one target each, in few tensors: each is a file and a message on its way from a worker, and a copy on its
    way to the device.

    Attributes:
        images: uint8[B, 3, size, size]. With `kept` those alone that were not there when they were read, not flipped.
        objects: float32[B, M, 5], of each image (x1, y1, x2, y2) px and label of its boxes, then of its ignored regions,
            whose label is -1, then rows of padding, of label -2.
        about: the rest of each target.
        sent: the index of each of `images`.
        kept: the images that are on the device.
        records: of generated images that the worker has made since its last batch, by index.
    """

    images: Tensor
    objects: Tensor
    about: Sequence[_About]
    sent: Sequence[int]
    kept: DeviceCache | None = None
    records: Mapping[int, ImageRecord] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.about)

    @cached_property
    def targets(self) -> list[Target]:
        """One an image; boxes and ignored regions are views of `objects`."""
        views = _split_objects(self.objects[..., :4], self.objects[..., 4].long(), self.about)
        return [
            Target(
                boxes=boxes,
                labels=labels,
                ignored=ignored,
                image_id=about.image_id,
                index=about.index,
                geometry=about.geometry,
            )
            for (boxes, labels, ignored), about in zip(views, self.about, strict=True)
        ]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader."""
        return replace(self, images=self.images.pin_memory(), objects=self.objects.pin_memory())


def pack(images: Tensor, targets: Sequence[Target], sent: Sequence[int]) -> Batch:
    """A batch of images, uint8[N, 3, size, size], the targets of all its images, and the indices of these `images`."""
    about = [_About(len(t["boxes"]), len(t["ignored"]), t["image_id"], t["index"], t["geometry"]) for t in targets]
    longest = max((each.boxes + each.ignored for each in about), default=0)
    objects = np.full((len(about), longest, 5), _PADDING, dtype=np.float32)
    for row, target, each in zip(objects, targets, about, strict=True):
        end = each.boxes + each.ignored
        row[: each.boxes, :4], row[: each.boxes, 4] = target["boxes"].numpy(), target["labels"].numpy()
        row[each.boxes : end, :4], row[each.boxes : end, 4] = target["ignored"].numpy(), _IGNORED
    return Batch(images, torch.from_numpy(objects), about, sent)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples to a batch."""
    targets = [sample.target for sample in samples]
    return pack(torch.stack([sample.image for sample in samples]), targets, [target["index"] for target in targets])


def to_device(batch: Batch, device: torch.device, *, ignored: bool) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch on a device, in two copies, which wait for nothing where the batch is pinned.

    Args:
        batch: of a loader.
        device: that of `batch.kept`, where there is one.
        ignored: whether the targets get their ignored regions.

    Returns:
        uint8[B, 3, size, size], and for each image "boxes" float32[G, 4], "labels" int64[G] and, if asked for, "ignored"
        float32[R, 4]: views of one tensor each for the batch, whose padding no view holds.
    """
    images = batch.images.to(device, non_blocking=True)
    if batch.kept is not None:
        for index, image in zip(batch.sent, images, strict=True):
            batch.kept.put(index, image)
        images = batch.kept.gather(
            [each.index for each in batch.about], [each.geometry.flipped for each in batch.about]
        )
    objects = batch.objects.to(device, non_blocking=True)
    views = _split_objects(objects[..., :4].contiguous(), objects[..., 4].long(), batch.about)
    names = ("boxes", "labels", "ignored") if ignored else ("boxes", "labels")
    return images, [dict(zip(names, parts, strict=False)) for parts in views]


def _split_objects(boxes: Tensor, labels: Tensor, about: Sequence[_About]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes, labels and ignored regions of each image, as views of boxes [B, M, 4] and labels [B, M]."""
    return [
        (boxes[row, : each.boxes], labels[row, : each.boxes], boxes[row, each.boxes : each.boxes + each.ignored])
        for row, each in enumerate(about)
    ]
