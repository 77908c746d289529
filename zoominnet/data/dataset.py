"""One dataset class in front of every reader, and its loader: stateless, so that resumed runs see the same samples."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import resource
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import active_children
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from zoominnet.data.augment import AUGMENTATIONS
from zoominnet.data.batch import Batch, Sample, Target, pack
from zoominnet.data.cache import CacheOptions, DeviceCache, open_cache
from zoominnet.data.images import ImageError, decode_image
from zoominnet.data.plan import AUGMENTATION, COMPOSITION, Key, keyed_rng
from zoominnet.data.records import DataError, ImageRecord, Split
from zoominnet.data.synthetic import SyntheticScenes
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, resize_image
from zoominnet.errors import EXIT_IO_ERROR, UserError

logger = logging.getLogger("zoominnet.data")


MAX_UNREADABLE_IN_A_ROW = 100
"""So many neighbouring images that cannot be decoded end a run."""

_NOTHING = -1
_loaded: weakref.WeakSet[DetectionDataset] = weakref.WeakSet()  # those that a loader was made for


class LoaderError(UserError):
    """A sample could not be made, or a process that makes them died or hangs. The message is one line."""

    exit_status = EXIT_IO_ERROR


class DetectionDataset(Dataset[Sample]):
    """The images of a split as square uint8 tensors with boxes; holds no state that changes a sample.

    A key (epoch, index) gives a training sample, whose random flip and augmentation depend on (seed, epoch, index) only; a
    plain index is the same as (0, index).

    An image that can no longer be decoded (cut off, gone, of another size) is replaced by the next one that can, logged
    once and kept in `unreadable`; in evaluation its `image_id` therefore never appears, and its replacement's may
    appear twice. So the same files always give the same samples, however many workers read them and wherever a run is
    resumed. `MAX_UNREADABLE_IN_A_ROW` images in a row are an error: the folder has gone, not an image.

    Args:
        split: as a reader, or `SyntheticScenes.split()`, gives it.
        size: side of the square output image, px (2S in training).
        flip: mirror one half of the samples, drawn at random, left to right.
        seed: of flip and augmentation, 0 or greater.
        resize: "squash" to the square, or "letterbox" to keep the aspect ratio.
        strict: raise on an image that cannot be decoded, instead of replacing it.
        cache: where each image is kept, decoded and resized, from when it is first asked for: 3 * size**2 bytes an image.
            The samples are the same. None: nowhere.
        augment: names in `AUGMENTATIONS`, each done to what comes of the one before. Not with a cache on the device, where
            images are neither cut nor resized.

    Attributes:
        cache: the cache itself.
        reading: int64[workers, 2], shared: each loader worker's process id and the index it reads, -1 for none.

    Raises:
        DataError: the split has no images; too many of them in a row, or all, cannot be decoded; or one cannot and
            `strict` is set.
        CacheError: there is no room for the cache, or it cannot be used.
        LoaderError: anything else went wrong with a sample; names its file.
        ValueError: `size` is not positive or too small to augment, `seed` is negative, `resize` or an augmentation is
            unknown, or the cache does not go with it.
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
        cache: CacheOptions | None = None,
        augment: Sequence[str] = (),
    ) -> None:
        if size < 1:
            raise ValueError(f"DetectionDataset: size must be at least 1 px, got {size}")
        if seed < 0:
            raise ValueError(f"DetectionDataset: seed must be 0 or greater, got {seed}")
        if resize not in ("squash", "letterbox"):
            raise ValueError(f"DetectionDataset: resize must be 'squash' or 'letterbox', got {resize!r}")
        if unknown := set(augment) - AUGMENTATIONS.keys():
            raise ValueError(f"DetectionDataset: augment must be of {', '.join(AUGMENTATIONS)}, got {min(unknown)!r}")
        if augment and size < 4:
            raise ValueError(f"DetectionDataset: size must be at least 4 px to be augmented, got {size}")
        if augment and cache is not None and cache.kind == "device":
            raise ValueError("DetectionDataset: a cache on the device does not go with augment; choose ram or disk")
        if not len(split.records):
            raise DataError(f"split '{split.name}' has no usable image; `python -m zoominnet.data check` tells why")
        self.split = split
        self.size = size
        self.flip = flip
        self.seed = seed
        self.resize: ResizeMode = resize
        self.strict = strict
        self.augment = tuple(augment)
        # In shared memory, so that worker processes report each file once and the main process can count.
        self._unreadable = torch.zeros(len(split.records), dtype=torch.bool).share_memory_()
        self.cache = open_cache(split, size, resize, cache or CacheOptions())
        self.reading = torch.zeros(0, 2, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.split.records)

    @property
    def unreadable(self) -> list[int]:
        """Indices of the images that could not be decoded so far, in this process or in its loader's workers."""
        return [int(index) for index in self._unreadable.nonzero()]

    @property
    def all_kept(self) -> bool:
        """Whether the cache has every image that can be decoded."""
        return bool((self.cache.there | self._unreadable).all())

    def __getitem__(self, key: Key | int) -> Sample:
        target, image = self._load_sample(key)
        assert image is not None
        return Sample(image.clone(), target)

    def __getitems__(self, keys: Sequence[Key] | Sequence[int]) -> Batch:
        """The samples of several keys as a batch, each image copied once; the DataLoader calls it."""
        on_device = self.cache if isinstance(self.cache, DeviceCache) else None
        images = torch.empty(len(keys), 3, self.size, self.size, dtype=torch.uint8)
        targets: list[Target] = []
        sent: list[int] = []
        for key in keys:
            target, image = self._load_sample(key, on_device)
            targets.append(target)
            if image is not None:
                images[len(sent)] = image
                sent.append(target["index"])
        if len(sent) < len(keys):
            images = images[: len(sent)].clone()  # else all of it goes to the device
        batch = pack(images, targets, sent)
        records = self.split.records
        return replace(batch, records=records.take_new()) if isinstance(records, SyntheticScenes) else batch

    def _load_sample(self, key: Key | int, on_device: DeviceCache | None = None) -> tuple[Target, Tensor | None]:
        """The target and the image, not to be changed; for a cache on the device before flipping, or None if it is there
        already."""
        epoch, index = (0, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            index_read, image = self._readable(index, on_device)
            target = self._make_target(epoch, index_read)
            if image is None or on_device is not None:
                return target, image
            sample = self._augmented(epoch, _flipped(image, target))
            return sample.target, sample.image
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

    def _recall_record(self, index: int) -> None:
        records = self.split.records
        if isinstance(records, SyntheticScenes) and not records.has_made(index):
            recalled = self.cache.record(index)
            if recalled is not None:
                records.keep({index: recalled})

    def _make_target(self, epoch: int, index: int) -> Target:
        record = self.split.records[index]
        flipped = self.flip and bool(keyed_rng(AUGMENTATION, self.seed, epoch, index).random() < 0.5)
        geometry = dataclasses.replace(self._geometry(record), flipped=flipped)
        return Target(
            boxes=geometry.to_output(torch.from_numpy(record.boxes)),
            labels=torch.from_numpy(record.labels).clone(),
            ignored=geometry.to_output(torch.from_numpy(record.ignored)),
            image_id=record.image_id,
            index=index,
            geometry=geometry,
        )

    def _augmented(self, epoch: int, sample: Sample) -> Sample:
        if not self.augment:
            return sample
        rng = keyed_rng(COMPOSITION, self.seed, epoch, sample.target["index"])

        def another() -> Sample:
            index, image = self._readable(int(rng.integers(len(self))), None)
            assert image is not None
            return _flipped(image, self._make_target(epoch, index))

        for name in self.augment:
            sample = AUGMENTATIONS[name](sample, rng, another)
        return sample

    def _geometry(self, record: ImageRecord) -> ResizeGeometry:
        return ResizeGeometry.fit(record.width, record.height, self.size, self.resize)

    def _readable(self, wanted: int, on_device: DeviceCache | None) -> tuple[int, Tensor | None]:
        """The index `wanted`, or of the next image that can be decoded, and the image, resized and not flipped, or None if
        it is on the device."""
        tried = min(len(self), MAX_UNREADABLE_IN_A_ROW)
        for offset in range(tried):
            index = (wanted + offset) % len(self)
            if self._unreadable[index]:
                continue
            if on_device is not None and index in on_device:
                return index, None
            self._note_reading(index)
            self._recall_record(index)
            try:
                return index, self.cache.image(index, self._resized)
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
        record = self.split.records[index]
        return resize_image(self._load(record), self._geometry(record))

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
        workers: processes that load; 0 loads in this one. None are started where they would take more time than they save:
            when every image is on the device, or kept elsewhere and bound for the CPU. More than there are cores take
            turns; unlike PyTorch's, this loader does not warn of it.
        timeout: seconds to wait for a worker's batch before giving up with an error, over 0; without workers unused.
        pin_memory: for batches that go to a GPU.
    """
    if workers and timeout <= 0:
        raise ValueError(
            f"make_loader: timeout must be over 0 seconds, or a worker that hangs stops the run, got {timeout}"
        )
    if dataset.all_kept and (isinstance(dataset.cache, DeviceCache) or not pin_memory):
        workers = 0
    if workers:
        _raise_limit_of_open_files()
    dataset.reading = torch.tensor([[0, _NOTHING]] * workers, dtype=torch.int64).reshape(-1, 2).share_memory_()
    _loaded.add(dataset)
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        timeout=timeout if workers else 0,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws a number from it; without it, from the global generator
    )


def _flipped(image: Tensor, target: Target) -> Sample:
    """`image` as its target says: mirrored, or as it is."""
    return Sample(image.flip(-1) if target["geometry"].flipped else image, target)


def _as_it_is(batch: Any) -> Any:
    """`DetectionDataset.__getitems__` has made a batch of the samples already."""
    return batch


def _raise_limit_of_open_files() -> None:
    """As far as this process may: each worker takes several, and so does each batch on its way from one; where they are
    used up the workers hang."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Loader(DataLoader[Sample]):
    """A DataLoader whose errors name files, and whose workers end with the iteration, however it ends."""

    def check_worker_number_rationality(self) -> None:
        """PyTorch's warning at each iteration of more workers than cores, which the commands tell once."""

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
                yield self._received(batch)
        finally:
            # Else they live for as long as somebody keeps a traceback, and PyTorch raises wherever this process stands
            # when one of them dies.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()

    def _received(self, batch: Batch) -> Batch:
        """With what the process that trains keeps: the images on its device, and the records that a worker has made, for
        the workers of the next epoch."""
        dataset = self.dataset
        assert isinstance(dataset, DetectionDataset)
        if isinstance(dataset.split.records, SyntheticScenes):
            dataset.split.records.keep(batch.records)
        return replace(batch, kept=dataset.cache) if isinstance(dataset.cache, DeviceCache) else batch


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
        remedy = "if memory ran out, give fewer --workers, or a container more --shm-size; --workers 0 shows more"
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
