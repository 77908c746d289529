"""One dataset class in front of every reader, and its loader: stateless, so that resumed runs see the same samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoominnet.data.images import ImageError, decode_image
from zoominnet.data.plan import AUGMENTATION, Key, keyed_rng
from zoominnet.data.records import DataError, ImageRecord, Split
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, resize_image

logger = logging.getLogger("zoominnet.data")


class Target(TypedDict):
    """What is known of one image; torchvision's detection convention, extended.

    boxes: float32[G, 4], (x1, y1, x2, y2) px of the image that is handed out.
    labels: int64[G], 0 to number of classes - 1.
    ignored: float32[R, 4], regions in which objects are not annotated, same form as `boxes`.
    image_id: as in the record.
    index: of the record in its split.
    geometry: maps boxes back to the original image.
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
class Batch:
    """Images, uint8[B, 3, size, size], and one target each."""

    images: Tensor
    targets: list[Target]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader; only the images are worth pinning."""
        return Batch(self.images.pin_memory(), self.targets)


class DetectionDataset(Dataset[Sample]):
    """The images of a split as square uint8 tensors with boxes; holds no state that changes a sample.

    A key (epoch, index) gives a training sample, whose random flip depends on (seed, epoch, index) only; a plain
    index is the same as (0, index).

    An image that can no longer be decoded is replaced by the next one that can, logged once and kept in
    `unreadable`; in evaluation its `image_id` therefore never appears, and its replacement's may appear twice.

    Args:
        split: as a reader, or `SyntheticScenes.split()`, gives it.
        size: side of the square output image, px (2S in training).
        flip: mirror one half of the samples, drawn at random, left to right.
        seed: of the augmentation, 0 or greater.
        resize: "squash" to the square, or "letterbox" to keep the aspect ratio.
        strict: raise on an image that cannot be decoded, instead of replacing it.

    Raises:
        DataError: the split has no images; none of them can be decoded; or one cannot and `strict` is set.
        ValueError: `size` is not positive, `seed` is negative, `resize` is unknown.
    """

    def __init__(
        self, split: Split, size: int, *, flip: bool, seed: int, resize: ResizeMode = "squash", strict: bool = False
    ) -> None:
        if size < 1:
            raise ValueError(f"DetectionDataset: size must be at least 1 px, got {size}")
        if seed < 0:
            raise ValueError(f"DetectionDataset: seed must be 0 or greater, got {seed}")
        if resize not in ("squash", "letterbox"):
            raise ValueError(f"DetectionDataset: resize must be 'squash' or 'letterbox', got {resize!r}")
        if not len(split.records):
            raise DataError(f"split '{split.name}' has no usable image; `python -m zoominnet.data check` tells why")
        self.split = split
        self.size = size
        self.flip = flip
        self.seed = seed
        self.resize: ResizeMode = resize
        self.strict = strict
        # In shared memory, so that worker processes report each file once and the main process can count.
        self._unreadable = torch.zeros(len(split.records), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.split.records)

    @property
    def unreadable(self) -> list[int]:
        """Indices of the images that could not be decoded so far, in this process or in its loader's workers."""
        return [int(index) for index in self._unreadable.nonzero()]

    def __getitem__(self, key: Key | int) -> Sample:
        epoch, index = (0, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            return self._make_sample(epoch, index)
        except Exception as error:
            error.add_note(f"in epoch {epoch}, sample {index} of split '{self.split.name}'")
            raise

    def _make_sample(self, epoch: int, wanted: int) -> Sample:
        index, image = self._readable(wanted)
        record = self.split.records[index]
        flipped = self.flip and bool(keyed_rng(AUGMENTATION, self.seed, epoch, index).random() < 0.5)
        height, width = image.shape[-2:]
        geometry = ResizeGeometry.fit(width, height, self.size, self.resize, flipped=flipped)
        target = Target(
            boxes=geometry.to_output(torch.from_numpy(record.boxes)),
            labels=torch.from_numpy(record.labels).clone(),
            ignored=geometry.to_output(torch.from_numpy(record.ignored)),
            image_id=record.image_id,
            index=index,
            geometry=geometry,
        )
        return Sample(resize_image(image, geometry), target)

    def _readable(self, wanted: int) -> tuple[int, Tensor]:
        """The image at `wanted`, or the next one that can be decoded, with its index."""
        for offset in range(len(self)):
            index = (wanted + offset) % len(self)
            if self._unreadable[index]:
                continue
            try:
                return index, self._load(self.split.records[index])
            except DataError as error:
                if self.strict:
                    raise
                self._unreadable[index] = True
                logger.warning("image left out, the next one takes its place: %s", error)
        raise DataError(f"split '{self.split.name}': none of its {len(self)} images can be decoded")

    def _load(self, record: ImageRecord) -> Tensor:
        if record.path is None:
            if self.split.render is None:
                raise ValueError(
                    f"image {record.image_id} of split '{self.split.name}' has neither a path nor a renderer"
                )
            return self.split.render(record)
        image = decode_image(record.path)
        height, width = image.shape[-2:]
        if (width, height) != (record.width, record.height):
            raise ImageError(
                f"{record.path}: is {width}x{height} px now, was {record.width}x{record.height} when the annotations "
                f"were read; start again to read them anew"
            )
        return image


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples to a batch."""
    return Batch(torch.stack([sample.image for sample in samples]), [sample.target for sample in samples])


def make_loader(
    dataset: DetectionDataset,
    batches: Iterable[list[Key]] | Iterable[list[int]],
    *,
    workers: int = 0,
    timeout: float = 300.0,
) -> DataLoader[Sample]:
    """A stock DataLoader that yields one `Batch` for each list of keys in `batches`.

    The samples do not depend on the number of workers, and neither the order nor PyTorch's global random state is
    touched.

    Args:
        batches: `BatchPlan.epoch_batches(...)` in training, `shard_batches(...)` in evaluation.
        workers: processes that load; 0 loads in this one.
        timeout: seconds to wait for a worker's batch before giving up with an error, over 0; without workers unused.
    """
    if workers and timeout <= 0:
        raise ValueError(
            f"make_loader: timeout must be over 0 seconds, or a worker that hangs stops the run, got {timeout}"
        )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        timeout=timeout if workers else 0,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws a number from it; without it, from the global generator
    )


def _start_worker(worker_id: int) -> None:
    """One thread each; in a group of its own, which neither Ctrl-C nor torchrun's signals to a process' group reach: it
    is the main process that decides what to do, and a step may need its workers to the end."""
    torch.set_num_threads(1)
    os.setpgrp()
