"""Caches of decoded, resized images: in shared memory, in a file that outlives the run, or on the training device."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from zoominnet.data.records import ImageRecord, Split
from zoominnet.data.transforms import ResizeMode
from zoominnet.errors import EXIT_IO_ERROR, UserError

logger = logging.getLogger("zoominnet.data")

CacheKind = Literal["none", "ram", "disk", "device"]
"""Where decoded images are kept: nowhere, in memory that processes share, in a file, or on the training device."""
Make = Callable[[int], Tensor]
"""Decodes and resizes the image at an index: uint8[3, size, size]."""

_SHARED_MEMORY = "/dev/shm"
_CGROUP = Path("/sys/fs/cgroup")
_PAGE = 4096
_DIGEST = 16
_ENTRY = 2 * _DIGEST
_RECORD, _RECORD_HEAD, _RECORD_ROW = 1 << 14, _DIGEST + 4 * 8, 6 * 4
_FORMAT = "zoominnet images 1"


class CacheError(UserError):
    """A cache that has no room or cannot be used. The message is one line naming the option and the remedy."""


class CacheFileError(CacheError):
    """The file of a cache cannot be read or written any more; the run can be resumed, with this cache or another."""

    exit_status = EXIT_IO_ERROR


@dataclass(frozen=True)
class CacheOptions:
    """Which cache a dataset has.

    Attributes:
        kind: see `CacheKind`.
        folder: of "disk"; None is `default_cache_folder()`.
        device: of "device".
        copies: processes of this machine that share its memory and have a "device" each.
    """

    kind: CacheKind = "none"
    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    copies: int = 1


class ImageCache:
    """Keeps nothing; what a cache is to a dataset.

    Args:
        split: whose images, by their index.
        size, resize: of the images, see `ResizeGeometry.fit`.
    """

    def __init__(self, split: Split, size: int, resize: ResizeMode) -> None:
        self.split, self.size, self.resize = split, size, resize
        self.shape = (len(split.records), 3, size, size)

    def image(self, index: int, make: Make) -> Tensor:
        """uint8[3, size, size], not to be changed and good until the next call; what `make` raises is raised."""
        return make(index)

    def record(self, index: int) -> ImageRecord | None:
        """The record of a generated image, where the cache has it: to make one takes about as long as the image."""
        return None

    @property
    def there(self) -> Tensor:
        """bool[N]: which images it has, as far as this process and its workers have looked."""
        return torch.zeros(self.shape[0], dtype=torch.bool)

    def describe(self) -> str:
        """For people: what it is, how large, and where."""
        return "none"

    def _refuse(self, kind: CacheKind, room: str, remedy: str, copies: int = 1) -> NoReturn:
        count, each = self.shape[0], f" for each of {copies} processes" if copies > 1 else ""
        raise CacheError(
            f"--cache {kind}: {count} images of {self.size} px take {_gib(self._bytes)} GiB{each}, {room}; {remedy}"
        )

    @property
    def _bytes(self) -> int:
        return math.prod(self.shape)


class RamCache(ImageCache):
    """In memory that the loader's workers share, from when an image is first read to the end of the process."""

    def __init__(self, split: Split, size: int, resize: ResizeMode) -> None:
        super().__init__(split, size, resize)
        shared, memory = free_shared_memory(), available_memory()
        place, free, remedy = "the machine", memory, "give --cache disk, or leave --cache out"
        if shared < memory:
            place, free, remedy = _SHARED_MEMORY, shared, f"{remedy}, or make it larger (a container's --shm-size)"
        if self._bytes > free:
            self._refuse("ram", f"{place} has {_gib(free)} GiB free", remedy)
        try:
            self._images = torch.empty(self.shape, dtype=torch.uint8).share_memory_()
        except RuntimeError:  # another process took the room meanwhile
            self._refuse("ram", f"{place} has no room for them", remedy)
        self._there = torch.zeros(self.shape[0], dtype=torch.bool).share_memory_()

    @property
    def there(self) -> Tensor:
        return self._there

    def image(self, index: int, make: Make) -> Tensor:
        if not self._there[index]:
            self._images[index] = make(index)
            self._there[index] = True
        return self._images[index]

    def describe(self) -> str:
        return f"ram: {self.shape[0]} images of {self.size} px, {_gib(self._bytes)} GiB of shared memory"


class DeviceCache(ImageCache):
    """On the training device, once a batch has brought an image there; workers then send no pixels of it.

    The images are kept as they are before flipping. At most half of the memory that is free when the cache is made is
    taken, so that the training has the rest.
    """

    def __init__(self, split: Split, size: int, resize: ResizeMode, device: torch.device, copies: int = 1) -> None:
        super().__init__(split, size, resize)
        self.device = device
        if device.type == "cuda":
            copies = 1  # each process has a GPU of its own
            free: float = torch.cuda.mem_get_info(device)[0]
        else:
            free = available_memory()
        if copies * self._bytes > free / 2:
            self._refuse(
                "device",
                f"{device} has {_gib(free)} GiB free, of which half is left to the training",
                "give --cache disk or --cache ram, or a smaller --image-size",
                copies,
            )
        self._images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        self._there = torch.zeros(self.shape[0], dtype=torch.bool).share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        """Without the images, for a worker that is no fork."""
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    @property
    def there(self) -> Tensor:
        return self._there

    def __contains__(self, index: int) -> bool:
        return bool(self._there[index])

    def put(self, index: int, image: Tensor) -> None:
        """Copies uint8[3, size, size], on the device, to its place; in the process that trains."""
        if index not in self:
            self._images[index] = image
            self._there[index] = True

    def gather(self, indices: list[int], flipped: list[bool]) -> Tensor:
        """uint8[B, 3, size, size] on the device: images that are there, each mirrored left to right or not."""
        return torch.stack(
            [
                self._images[i].flip(-1) if mirror else self._images[i]
                for i, mirror in zip(indices, flipped, strict=True)
            ]
        )

    def describe(self) -> str:
        return f"device: {self.shape[0]} images of {self.size} px, {_gib(self._bytes)} GiB on {self.device}"


class DiskCache(ImageCache):
    """One file, which outlives the run and may serve several runs and processes at once.

    Its name follows from the images' paths, or from what generates them, from size and resize mode, and from the versions
    of whatever makes the pixels. It holds a header, an entry an image, the records of generated images, and the images. An
    entry is a digest of what the image was made from (path, size and time of the file) and one of its pixels, and is
    written after these. So an image whose file has changed is made anew, and so is one that was torn by a crash, or by a
    disk: a run compares both digests when it first reads an image. Later it compares the entry alone, which a writer clears
    before it touches the pixels. Two writers of one image take turns by a lock.

    Images are read and written by calls, not by a mapping: a disk that is full or fails is an error, not a SIGBUS.
    """

    def __init__(self, split: Split, size: int, resize: ResizeMode, folder: Path) -> None:
        super().__init__(split, size, resize)
        self._description = _describe_images(split, size, resize)
        name = hashlib.sha256(self._description).hexdigest()[: 2 * _DIGEST]
        self.path = folder / f"{name}.images"
        self._records = -(-(_PAGE + _ENTRY * self.shape[0]) // _PAGE) * _PAGE
        self._first = self._records + (0 if split.generator is None else _RECORD * self.shape[0])
        self._seen = torch.zeros(self.shape[0], _ENTRY, dtype=torch.uint8).share_memory_()
        self._file = -1
        with self._explained("--cache-folder", CacheError):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._file = self._open() if self._is_whole() else self._create()

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is no fork: it opens the file itself."""
        return {**self.__dict__, "_file": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with self._explained():
            self._file = self._open()

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            with suppress(OSError):
                os.close(self._file)

    @property
    def there(self) -> Tensor:
        return self._seen.any(dim=1)

    def image(self, index: int, make: Make) -> Tensor:
        with self._explained():
            if (kept := self._read(index)) is not None:
                return kept
        source = self._digest_source(index)  # before it is read: a file that changes meanwhile must not look known
        image = make(index)
        with self._explained():
            self._write(index, source, image)
        return image

    def record(self, index: int) -> ImageRecord | None:
        if self.split.generator is None:
            return None
        with self._explained():
            block = os.pread(self._file, _RECORD, self._records + index * _RECORD)
        return _decode_record(block)

    def describe(self) -> str:
        entries = np.frombuffer(os.pread(self._file, _ENTRY * self.shape[0], _PAGE), dtype=np.uint8)
        kept = int(entries.reshape(-1, _ENTRY).any(axis=1).sum())
        return f"disk: {self.shape[0]} images of {self.size} px, {_gib(self._bytes)} GiB in {self.path}, {kept} of them there"

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR)

    @property
    def _header(self) -> bytes:
        return self._description.ljust(_PAGE, b"\n")

    def _is_whole(self) -> bool:
        """Whether the file is there and is what its name says; where it is not, it goes."""
        try:
            with self.path.open("rb") as file:
                whole = (
                    file.read(_PAGE) == self._header and os.fstat(file.fileno()).st_size == self._first + self._bytes
                )
        except FileNotFoundError:
            return False
        if not whole:
            logger.warning("--cache disk: %s is damaged or another program's: it is made anew", self.path)
            self.path.unlink()
        return whole

    def _create(self) -> int:
        """The file under its name only when it is whole and has all its room on the disk."""
        total, free = self._first + self._bytes, shutil.disk_usage(self.path.parent).free
        remedy = "make room, name another --cache-folder, or leave --cache out"
        if total > free:
            self._refuse("disk", f"{self.path.parent} has {_gib(free)} GiB free", remedy)
        writing = self.path.with_suffix(".writing")
        file = os.open(writing, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            if sys.platform == "darwin":  # which reserves nothing by this name
                os.truncate(file, total)
            else:
                os.posix_fallocate(file, 0, total)
            os.pwrite(file, self._header, 0)
            os.fsync(file)
            writing.rename(self.path)
        except BaseException:
            os.close(file)
            writing.unlink(missing_ok=True)
            raise
        return file

    def _digest_source(self, index: int) -> bytes:
        """Of what the image at `index` is made from as it is now; empty where there is no such file."""
        record = self.split.records[index]
        found: tuple[object, ...] = (record.image_id,)
        if record.path is not None:
            try:
                stat = record.path.stat()
            except OSError:
                return b""
            found = (os.path.abspath(record.path), stat.st_size, stat.st_mtime_ns)
        return hashlib.sha256(repr((*found, record.width, record.height)).encode()).digest()[:_DIGEST]

    def _read(self, index: int) -> Tensor | None:
        """The image at `index`, if it is there, whole, and of the file as it is."""
        pixels = _scratch(self.size)
        read = os.preadv(self._file, [pixels.numpy().data], self._first + index * pixels.numel())
        entry = os.pread(self._file, _ENTRY, _PAGE + index * _ENTRY)
        if not any(entry):
            return None
        if entry != self._seen[index].numpy().tobytes():
            if entry[:_DIGEST] != self._digest_source(index):
                return None
            if read != pixels.numel() or entry[_DIGEST:] != _digest_pixels(pixels):
                logger.warning("--cache disk: image %d of %s is damaged: it is made anew", index, self.path)
                return None
            self._see(index, entry)
        return pixels if read == pixels.numel() else None

    def _see(self, index: int, entry: bytes) -> None:
        self._seen[index] = torch.frombuffer(bytearray(entry), dtype=torch.uint8)

    def _write(self, index: int, source: bytes, image: Tensor) -> None:
        if not source:  # gone since it was read
            return
        pixels, place = image.contiguous().numpy(), _PAGE + index * _ENTRY
        entry = source + _digest_pixels(image)
        with self._locked(place):
            _write_all(self._file, bytes(_ENTRY), place)
            if self.split.generator is not None:
                _write_all(self._file, _encode_record(self.split.records[index]), self._records + index * _RECORD)
            _write_all(self._file, pixels.data, self._first + index * image.numel())
            _write_all(self._file, entry, place)
        self._see(index, entry)

    @contextmanager
    def _locked(self, place: int) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX, _ENTRY, place)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _ENTRY, place)

    @contextmanager
    def _explained(self, option: str = "--cache disk", kind: type[CacheError] = CacheFileError) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise kind(
                f"{option}: {self.path} cannot be used ({error.strerror}); make room, name another --cache-folder, or "
                "leave --cache out"
            ) from error


def open_cache(split: Split, size: int, resize: ResizeMode, options: CacheOptions) -> ImageCache:
    """The cache of a split's images.

    Args:
        split: whose images.
        size, resize: of the images.
        options: which cache.

    Raises:
        CacheError: there is no room, or the folder cannot be used.
        ValueError: `options.kind` is unknown.
    """
    if options.kind not in get_args(CacheKind):
        raise ValueError(f"cache must be one of {', '.join(get_args(CacheKind))}, got {options.kind!r}")
    if options.kind == "ram":
        return RamCache(split, size, resize)
    if options.kind == "disk":
        return DiskCache(split, size, resize, options.folder or default_cache_folder())
    if options.kind == "device":
        return DeviceCache(split, size, resize, options.device, options.copies)
    return ImageCache(split, size, resize)


def default_cache_folder() -> Path:
    """`zoominnet/images` in the user's cache folder: $XDG_CACHE_HOME where that is an absolute path, else ~/.cache.

    Source: XDG Base Directory Specification.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "zoominnet" / "images"


def free_shared_memory() -> float:
    """Bytes that processes can share as yet; infinite where the system sets no limit of its own (macOS)."""
    return shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else math.inf


def available_memory() -> float:
    """Bytes of memory that this machine, and the control group (v2) of a container, still have; infinite where the system
    does not tell (macOS)."""
    found = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(counts["active_file"]) + int(counts["inactive_file"]))  # files can be dropped
    return min(found)


def _describe_images(split: Split, size: int, resize: ResizeMode) -> bytes:
    """What decides which images a file can hold, and whatever may decide about their pixels but the files themselves.

    Raises:
        CacheError: the images are generated by something that has no name.
    """
    if split.render is not None and split.generator is None:
        raise CacheError(
            f"--cache disk: the images of split '{split.name}' are generated, and it is not said from what (Split.generator); "
            "give --cache ram"
        )
    digest = hashlib.sha256()
    if split.generator is None:
        for record in split.records:
            path = None if record.path is None else os.path.abspath(record.path)
            digest.update(repr((path, record.as_stored)).encode())
    return json.dumps(
        {
            "format": _FORMAT,
            "count": len(split.records),
            "size": size,
            "resize": resize,
            "max_pixels": split.max_pixels,
            "files": digest.hexdigest(),
            "generator": split.generator,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),  # resizing rounds otherwise without AVX2
            "sources": _digest_sources(),
        },
        indent=1,
    ).encode()


@cache
def _digest_sources() -> str:
    """Of the modules here that make pixels."""
    folder = Path(__file__).parent
    files = [folder / "images.py", folder / "transforms.py", folder / "plan.py", *sorted(folder.glob("synthetic/*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _scratch(size: int) -> Tensor:
    """Where an image is read to, from where it is copied into its batch: memory that is warm."""
    return torch.empty(3, size, size, dtype=torch.uint8)


def _digest_pixels(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().data).digest()[:_DIGEST]


def _encode_record(record: ImageRecord) -> bytes:
    """At most `_RECORD` bytes, the first a digest of the rest; nothing of a record with more boxes than have room."""
    head = np.array([len(record.boxes) + len(record.ignored), record.width, record.height, record.image_id])
    rows = [
        np.column_stack((boxes, labels, np.full(len(boxes), ignored)))
        for boxes, labels, ignored in (
            (record.boxes, record.labels, 0),
            (record.ignored, record.ignored_labels, 1),
        )
    ]
    data = head.astype(np.int64).tobytes() + np.concatenate(rows).astype(np.float32).tobytes()
    return hashlib.sha256(data).digest()[:_DIGEST] + data if _DIGEST + len(data) <= _RECORD else b""


def _decode_record(block: bytes) -> ImageRecord | None:
    """The inverse of `_encode_record`; None where nothing was written, or not all of it."""
    count, width, height, image_id = np.frombuffer(block.ljust(_RECORD, b"\0"), np.int64, 4, _DIGEST).tolist()
    end = _RECORD_HEAD + count * _RECORD_ROW
    if (
        not _RECORD_HEAD <= end <= len(block)
        or hashlib.sha256(block[_DIGEST:end]).digest()[:_DIGEST] != block[:_DIGEST]
    ):
        return None
    rows = np.frombuffer(block, np.float32, 6 * count, _RECORD_HEAD).reshape(count, 6)
    boxes, ignored = rows[rows[:, 5] == 0], rows[rows[:, 5] == 1]
    return ImageRecord(
        path=None,
        image_id=image_id,
        width=width,
        height=height,
        boxes=boxes[:, :4].copy(),
        labels=boxes[:, 4].astype(np.int64),
        ignored=ignored[:, :4].copy(),
        ignored_labels=ignored[:, 4].astype(np.int64),
    )


def _write_all(file: int, data: bytes | memoryview, place: int) -> None:
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f}"
