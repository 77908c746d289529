"""One dataset class in front of every reader, and its loader: stateless, so that resumed runs see the same samples."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import resource
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from zoominnet.data.images import ImageError, decode_image
from zoominnet.data.plan import AUGMENTATION, Key, keyed_rng
from zoominnet.data.records import DataError, ImageRecord, Split
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, resize_image
from zoominnet.errors import EXIT_IO_ERROR, UserError

logger = logging.getLogger("zoominnet.data")


MAX_UNREADABLE_IN_A_ROW = 100
"""So many neighbouring images that cannot be decoded end a run."""

_NOTHING = -1
_SHARED_MEMORY = "/dev/shm"
_loaded: weakref.WeakSet[DetectionDataset] = weakref.WeakSet()  # those that a loader was made for


class LoaderError(UserError):
    """A sample could not be made, or a process that makes them died or hangs. The message is one line."""

    exit_status = EXIT_IO_ERROR


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

    An image that can no longer be decoded (cut off, gone, of another size) is replaced by the next one that can, logged
    once and kept in `unreadable`; in evaluation its `image_id` therefore never appears, and its replacement's may
    appear twice. So the same files always give the same samples, however many workers read them and wherever a run is
    resumed. `MAX_UNREADABLE_IN_A_ROW` images in a row are an error: the folder has gone, not an image.

    Args:
        split: as a reader, or `SyntheticScenes.split()`, gives it.
        size: side of the square output image, px (2S in training).
        flip: mirror one half of the samples, drawn at random, left to right.
        seed: of the augmentation, 0 or greater.
        resize: "squash" to the square, or "letterbox" to keep the aspect ratio.
        strict: raise on an image that cannot be decoded, instead of replacing it.
        cache: keep each image, decoded and resized, from when it is first asked for, in memory that the loader's workers
            share: 3 * size**2 bytes an image. The samples are the same.

    Attributes:
        reading: int64[workers, 2], shared: each loader worker's process id and the index it reads, -1 for none.

    Raises:
        DataError: the split has no images; too many of them in a row, or all, cannot be decoded; or one cannot and
            `strict` is set; there is no room for the cache.
        LoaderError: anything else went wrong with a sample; names its file.
        ValueError: `size` is not positive, `seed` is negative, `resize` is unknown.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        flip: bool,
        seed: int,
        resize: ResizeMode = "squash",
        strict: bool = False,
        cache: bool = False,
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
        self._cache = _Cache(len(split.records), size) if cache else None
        self.reading = torch.zeros(0, 2, dtype=torch.int64)

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
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise LoaderError(f"{self.name_of(index)} (epoch {epoch}): cannot be loaded: {reason}") from error
        finally:
            self._note_reading(_NOTHING)

    def name_of(self, index: int) -> str:
        """What to call a sample in a message: its file, or its number where it is generated."""
        record = self.split.records[index]
        return str(record.path) if record.path is not None else f"image {record.image_id} of split '{self.split.name}'"

    def _note_reading(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None and worker.id < len(self.reading):
            self.reading[worker.id, 0], self.reading[worker.id, 1] = os.getpid(), index

    def _make_sample(self, epoch: int, wanted: int) -> Sample:
        index, image = self._readable(wanted)
        record = self.split.records[index]
        flipped = self.flip and bool(keyed_rng(AUGMENTATION, self.seed, epoch, index).random() < 0.5)
        geometry = dataclasses.replace(self._geometry(record), flipped=flipped)
        target = Target(
            boxes=geometry.to_output(torch.from_numpy(record.boxes)),
            labels=torch.from_numpy(record.labels).clone(),
            ignored=geometry.to_output(torch.from_numpy(record.ignored)),
            image_id=record.image_id,
            index=index,
            geometry=geometry,
        )
        return Sample(image.flip(-1) if flipped else image, target)

    def _geometry(self, record: ImageRecord) -> ResizeGeometry:
        return ResizeGeometry.fit(record.width, record.height, self.size, self.resize)

    def _readable(self, wanted: int) -> tuple[int, Tensor]:
        """The image at `wanted`, or the next one that can be decoded, resized and not flipped, with its index."""
        tried = min(len(self), MAX_UNREADABLE_IN_A_ROW)
        for offset in range(tried):
            index = (wanted + offset) % len(self)
            if self._unreadable[index]:
                continue
            self._note_reading(index)
            try:
                return index, self._resized(index)
            except DataError as error:
                if self.strict:
                    raise
                self._unreadable[index] = True
                logger.warning("image cannot be decoded, the next one takes its place: %s", error)
        raise DataError(
            f"split '{self.split.name}': {tried} images in a row of its {len(self)} cannot be decoded, the last "
            f"{self.name_of((wanted + tried - 1) % len(self))}: is the data folder still there? "
            "`python -m zoominnet.data check` lists them"
        )

    def _resized(self, index: int) -> Tensor:
        if self._cache is not None and (kept := self._cache.get(index)) is not None:
            return kept
        record = self.split.records[index]
        image = resize_image(self._load(record), self._geometry(record))
        if self._cache is not None:
            self._cache.put(index, image)
        return image

    def _load(self, record: ImageRecord) -> Tensor:
        if record.path is None:
            if self.split.render is None:
                raise ValueError(
                    f"image {record.image_id} of split '{self.split.name}' has neither a path nor a renderer"
                )
            return self.split.render(record)
        image = decode_image(record.path, as_stored=record.as_stored, max_pixels=self.split.max_pixels)
        height, width = image.shape[-2:]
        if (width, height) != (record.width, record.height):
            raise ImageError(
                f"{record.path}: is {width}x{height} px now, was {record.width}x{record.height} when the annotations "
                f"were read; start again to read them anew"
            )
        return image


def free_shared_memory() -> float:
    """Bytes that processes can share as yet; infinite where the system sets no limit of its own (macOS)."""
    return shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else math.inf


class _Cache:
    """`count` uint8 images [3, size, size] that processes share; each is there once it was put in.

    Raises:
        DataError: there is no room.
    """

    def __init__(self, count: int, size: int) -> None:
        needed, free = 3 * count * size**2, free_shared_memory()
        if needed > free:
            raise DataError(
                f"--cache: {count} images of {size} px take {needed / 2**30:.1f} GiB, {_SHARED_MEMORY} has "
                f"{free / 2**30:.1f} GiB free; leave --cache out, or make it larger (a container's --shm-size)"
            )
        self._images = torch.empty(count, 3, size, size, dtype=torch.uint8).share_memory_()
        self._there = torch.zeros(count, dtype=torch.bool).share_memory_()

    def get(self, index: int) -> Tensor | None:
        return self._images[index].clone() if self._there[index] else None

    def put(self, index: int, image: Tensor) -> None:
        self._images[index] = image
        self._there[index] = True


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples to a batch."""
    return Batch(torch.stack([sample.image for sample in samples]), [sample.target for sample in samples])


def make_loader(
    dataset: DetectionDataset,
    batches: Iterable[list[Key]] | Iterable[list[int]],
    *,
    workers: int = 0,
    timeout: float = 300.0,
    pin_memory: bool = False,
) -> DataLoader[Sample]:
    """A DataLoader that yields one `Batch` for each list of keys in `batches`.

    The samples do not depend on the number of workers, and neither the order nor PyTorch's global random state is
    touched. A worker that dies or hangs ends the iteration with a `LoaderError`, or, when PyTorch notices the death
    while the batch is in use, with a RuntimeError that `loader_failure` explains.

    Args:
        batches: `BatchPlan.epoch_batches(...)` in training, `shard_batches(...)` in evaluation.
        workers: processes that load; 0 loads in this one.
        timeout: seconds to wait for a worker's batch before giving up with an error, over 0; without workers unused.
        pin_memory: for batches that go to a GPU.
    """
    if workers and timeout <= 0:
        raise ValueError(
            f"make_loader: timeout must be over 0 seconds, or a worker that hangs stops the run, got {timeout}"
        )
    if workers:
        _raise_limit_of_open_files()
    dataset.reading = torch.tensor([[0, _NOTHING]] * workers, dtype=torch.int64).reshape(-1, 2).share_memory_()
    _loaded.add(dataset)
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        timeout=timeout if workers else 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws a number from it; without it, from the global generator
    )


def _raise_limit_of_open_files() -> None:
    """As far as this process may: each tensor on its way from a worker is an open file, of which batches of about 170
    images use up the usual 1,024; the workers then hang."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Loader(DataLoader[Sample]):
    """A DataLoader whose errors name files, and whose workers end with the iteration, however it ends."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            while True:
                try:
                    batch = next(batches, None)
                except UserError:
                    raise
                except (RuntimeError, OSError, EOFError) as error:
                    # a worker that dies while it hands over a batch shows as a broken connection, not as its death
                    raise loader_failure(error, within_loader=True) or error from error
                if batch is None:
                    return
                yield batch
        finally:
            # Else they live for as long as somebody keeps a traceback, and PyTorch raises wherever this process stands
            # when one of them dies.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()


def loader_failure(error: Exception, *, within_loader: bool = False) -> LoaderError | None:
    """What PyTorch's loader says of a worker that died or hangs, with the files that were being read.

    When a worker dies the loader raises wherever the main process stands, so this is also for who reports errors.

    Args:
        error: a RuntimeError, or any error raised by a loader itself.
        within_loader: it was raised by a loader itself.

    Returns:
        None where `error` does not come from a loader's workers.
    """
    text = " ".join(str(error).split()).partition(" Details are lost")[0]
    timed_out = text.startswith("DataLoader timed out after")
    dead: set[int] = set()
    if within_loader and isinstance(error, OSError | EOFError):
        dead = _dead_workers()
        text = f"DataLoader worker (pid {', '.join(map(str, sorted(dead)))}) died" if dead else text
    elif named := re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text):
        dead = {int(number) for number in named[1].split(",")}
    if not timed_out and not dead:
        return None
    files = [
        dataset.name_of(index)
        for dataset in _loaded
        for pid, index in dataset.reading.tolist()
        if index != _NOTHING and (timed_out or pid in dead)
    ]
    where = f", while reading {', '.join(sorted(files))}" if files else ""
    if timed_out:
        remedy = "look at that file and its disk, or give a longer --loader-timeout"
    else:
        remedy = "if memory ran out, give fewer --workers; --workers 0 shows more"
    return LoaderError(f"{text.rstrip('. ')}{where}: {remedy}")


def _dead_workers() -> set[int]:
    """The process ids of workers that ended in the middle of a sample; waits a little, for a death takes time to show."""
    for _ in range(50):
        alive = {process.pid for process in active_children()}
        reading = {pid for dataset in _loaded for pid, index in dataset.reading.tolist() if index != _NOTHING}
        if dead := reading - alive:
            return dead
        time.sleep(0.02)
    return set()


def _start_worker(worker_id: int) -> None:
    """One thread each; in a group of its own, which neither Ctrl-C nor torchrun's signals to a process' group reach: it
    is the main process that decides what to do, and a step may need its workers to the end."""
    torch.set_num_threads(1)
    os.setpgrp()
