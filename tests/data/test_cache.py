"""The caches change no sample, whatever they are, however many processes use them and whatever becomes of their files."""

from __future__ import annotations

import errno
import logging
import math
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from data_sets import assert_same_batch, noise_split
from PIL import Image
from torch import Tensor

from zoominnet.data import cache as cache_module
from zoominnet.data.batch import Batch, to_device
from zoominnet.data.cache import (
    CacheError,
    CacheFileError,
    CacheKind,
    CacheOptions,
    DiskCache,
    ImageCache,
    available_memory,
    default_cache_folder,
    open_cache,
)
from zoominnet.data.dataset import DetectionDataset, make_loader
from zoominnet.data.plan import BatchPlan
from zoominnet.data.records import Split
from zoominnet.data.synthetic import SyntheticScenes
from zoominnet.data.transforms import ResizeMode

CPU = torch.device("cpu")
KINDS = [kind for kind in get_args(CacheKind) if kind != "none"]
Targets = list[dict[str, Tensor]]


@pytest.fixture
def options(tmp_path: Path) -> Callable[[CacheKind], CacheOptions]:
    return lambda kind: CacheOptions(kind, tmp_path / "cache", CPU)


def dataset_of(split: Split, cache: CacheOptions | None = None, size: int = 32, **more: Any) -> DetectionDataset:
    return DetectionDataset(split, size, **({"flip": True, "seed": 1, "cache": cache} | more))


def fail(index: int) -> Tensor:
    raise AssertionError(f"image {index} was to come from the cache")


def damage(split: Split, index: int) -> None:
    path = split.records[index].path
    assert path is not None
    path.write_bytes(path.read_bytes()[:60])


def assert_same_on_device(one: Batch, other: Batch) -> None:
    """Bit for bit what the training gets, and what else it knows of the images."""
    (images, targets), (expected_images, expected_targets) = (to_device(b, CPU, ignored=True) for b in (one, other))
    assert torch.equal(images, expected_images)
    for target, expected in zip(targets, expected_targets, strict=True):
        assert target.keys() == expected.keys() == {"boxes", "labels", "ignored"}
        assert all(torch.equal(target[name], expected[name]) for name in expected)
    for a, b in zip(one.targets, other.targets, strict=True):
        assert [a[name] for name in ("image_id", "index", "geometry")] == [
            b[name] for name in ("image_id", "index", "geometry")
        ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_no_sample(
    tmp_path: Path, kind: CacheKind, resize: ResizeMode, workers: int, options: Callable[[CacheKind], CacheOptions]
) -> None:
    """Over three epochs, of which the first is cut short and gone on with, as on --resume, by a new dataset."""
    split = noise_split(tmp_path / "images", 7)
    damage(split, 2)
    plan = BatchPlan(7, 3, seed=5)
    plain = dataset_of(split, resize=resize)
    kept = dataset_of(split, options(kind), resize=resize)
    flips = 0
    for epoch, start, stop in ((0, 0, 1), (0, 1, 3), (1, 0, 3), (2, 0, 3)):
        if start:
            kept = dataset_of(split, options(kind), resize=resize)
        expected = list(make_loader(plain, plan.epoch_batches(epoch, start)))[: stop - start]
        batches = make_loader(kept, plan.epoch_batches(epoch, start), workers=workers, timeout=60)
        for batch, other in zip(batches, expected, strict=stop == 3):
            assert_same_on_device(batch, other)
            if kind != "device":
                assert_same_batch(batch, other)
            flips += sum(target["geometry"].flipped for target in batch.targets)
    assert 5 < flips < 28
    assert kept.unreadable == plain.unreadable == [2]
    assert kept.all_kept


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_scenes(kind: CacheKind, workers: int, options: Callable[[CacheKind], CacheOptions]) -> None:
    def scenes() -> Split:
        return SyntheticScenes(5, size=64, seed=3, density=0.2).split()

    plan = BatchPlan(5, 2, seed=5)
    kept, plain = dataset_of(scenes(), options(kind), size=64), dataset_of(scenes(), size=64)
    for epoch in range(2):
        batches = make_loader(kept, plan.epoch_batches(epoch), workers=workers, timeout=60)
        for batch, other in zip(batches, make_loader(plain, plan.epoch_batches(epoch)), strict=True):
            assert_same_on_device(batch, other)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_not_made_again(
    tmp_path: Path, kind: CacheKind, options: Callable[[CacheKind], CacheOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor sent again, where it is on the device; and nothing is left for workers to do."""
    kept = dataset_of(noise_split(tmp_path / "images", 6), options(kind))
    plan = BatchPlan(6, 3, seed=5)
    assert not kept.all_kept
    assert make_loader(kept, plan.epoch_batches(0), workers=2).num_workers == 2
    sent = []
    for epoch in range(2):
        for batch in make_loader(kept, plan.epoch_batches(epoch), workers=2 if epoch == 0 else 0, timeout=60):
            to_device(batch, CPU, ignored=True)
            sent.append(len(batch.images))
        monkeypatch.setattr(DetectionDataset, "_load", fail)
    assert sent == ([3, 3, 0, 0] if kind == "device" else [3, 3, 3, 3])
    assert kept.all_kept
    assert make_loader(kept, plan.epoch_batches(0), workers=2).num_workers == 0
    assert make_loader(kept, plan.epoch_batches(0), workers=2, pin_memory=True).num_workers == 2 * (kind != "device")


def test_records_of_drawn_scenes_come_back_from_the_workers() -> None:
    """They take as long as the image; the next epoch's workers would make each of them again."""
    scenes = SyntheticScenes(4, size=64, seed=3, density=0.2)
    expected = SyntheticScenes(4, size=64, seed=3, density=0.2)
    dataset = dataset_of(scenes.split(), size=64)
    for _ in make_loader(dataset, [[(0, 0), (0, 3)], [(0, 1)]], workers=2, timeout=60):
        pass
    assert sorted(scenes._records) == [0, 1, 3]
    for index, record in scenes._records.items():
        for name in ("boxes", "labels", "ignored", "ignored_labels"):
            assert np.array_equal(getattr(record, name), getattr(expected[index], name))
    dataset = dataset_of(scenes.split(), size=64)
    (batch,) = make_loader(dataset, [[(1, 0)]], workers=1, timeout=60)
    assert batch.records == {}


@pytest.mark.slow
def test_a_cache_goes_to_a_worker_that_is_no_fork(tmp_path: Path, options: Callable[[CacheKind], CacheOptions]) -> None:
    split = noise_split(tmp_path / "images", 2)
    image = dataset_of(split)._resized(0)
    caches = {kind: open_cache(split, 32, "squash", options(kind)) for kind in KINDS}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for cache in caches.values():
            assert torch.equal(pool.apply(_image_of, (cache, image)), image)
    for kind in ("ram", "disk"):
        assert torch.equal(caches[kind].image(0, fail), image)


def _image_of(cache: ImageCache, image: Tensor) -> Tensor:
    return cache.image(0, lambda index: image).clone()


class TestRefused:
    def test_ram_by_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache_module, "available_memory", lambda: math.inf)
        expected = (
            r"^--cache ram: 6 images of 1000000 px take 16763\.8 GiB, /dev/shm has [\d.]+ GiB free; give --cache disk, "
            r"or leave --cache out, or make it larger \(a container's --shm-size\)$"
        )
        with pytest.raises(CacheError, match=expected):
            open_cache(noise_split(tmp_path, 6), 1_000_000, "squash", CacheOptions("ram"))

    def test_ram_by_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        split = noise_split(tmp_path, 6)
        monkeypatch.setattr(cache_module, "_SHARED_MEMORY", str(tmp_path / "none"))  # as on macOS
        monkeypatch.setattr(cache_module, "available_memory", lambda: 6 * 3 * 32**2 - 1)
        with pytest.raises(
            CacheError, match=r"the machine has 0\.0 GiB free; give --cache disk, or leave --cache out$"
        ):
            open_cache(split, 32, "squash", CacheOptions("ram"))
        monkeypatch.setattr(cache_module, "available_memory", lambda: 6 * 3 * 32**2)
        image = dataset_of(split)._resized(0)
        cache = open_cache(split, 32, "squash", CacheOptions("ram"))
        assert torch.equal(cache.image(0, lambda index: image), cache.image(0, fail))

    def test_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half of what is free is left to the training; on the CPU several processes share it."""
        split, needed = noise_split(tmp_path, 6), 6 * 3 * 32**2
        monkeypatch.setattr(cache_module, "available_memory", lambda: 4 * needed)
        for copies in (1, 2):
            open_cache(split, 32, "squash", CacheOptions("device", None, CPU, copies))
        expected = (
            r"^--cache device: 6 images of 32 px take 0\.0 GiB for each of 3 processes, cpu has 0\.0 GiB free, of which "
            r"half is left to the training; give --cache disk or --cache ram, or a smaller --image-size$"
        )
        with pytest.raises(CacheError, match=expected):
            open_cache(split, 32, "squash", CacheOptions("device", None, CPU, 3))

    def test_device_by_the_memory_of_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**32))
        gpu = torch.device("cuda", 1)
        expected = r"cuda:1 has 1\.0 GiB free"
        with pytest.raises(
            CacheError, match=f"take 0.5 GiB, {expected}"
        ):  # 513 MiB, of each process on a GPU of its own
            open_cache(noise_split(tmp_path, 171), 1024, "squash", CacheOptions("device", None, gpu, 8))

    def test_disk(self, tmp_path: Path) -> None:
        expected = (
            rf"^--cache disk: 6 images of 1000000 px take 16763\.8 GiB, {tmp_path}/cache has [\d.]+ GiB free; make room, "
            r"name another --cache-folder, or leave --cache out$"
        )
        with pytest.raises(CacheError, match=expected):
            open_cache(noise_split(tmp_path, 6), 1_000_000, "squash", CacheOptions("disk", tmp_path / "cache"))
        assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_disk_that_gives_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        def refuse(*arguments: object) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(
            CacheError, match=rf"^--cache-folder: .* cannot be used \({os.strerror(error)}\); make room"
        ):
            open_cache(noise_split(tmp_path, 6), 32, "squash", CacheOptions("disk", tmp_path / "cache"))
        assert [file.name for file in (tmp_path / "cache").iterdir()] == [".lock"]

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(
            CacheError, match=rf"^--cache-folder: {tmp_path}/file/.*\.images cannot be used \(.*\); make"
        ):
            open_cache(noise_split(tmp_path, 6), 32, "squash", CacheOptions("disk", tmp_path / "file"))

    def test_images_generated_from_nobody_knows_what(self, tmp_path: Path) -> None:
        split = replace(noise_split(tmp_path, 6), render=lambda record: torch.zeros(3, 8, 8, dtype=torch.uint8))
        with pytest.raises(
            CacheError, match=r"^--cache disk: the images of split 'train' are generated, .*; give --cache ram"
        ):
            open_cache(split, 32, "squash", CacheOptions("disk", tmp_path))

    def test_a_kind_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cache must be one of none, ram, disk, device, got 'disc'"):
            dataset_of(noise_split(tmp_path, 6), CacheOptions("disc"))  # type: ignore[arg-type]


class TestAvailableMemory:
    def test_of_this_machine(self) -> None:
        assert 2**20 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @pytest.mark.parametrize(("limit", "expected"), [("5000\n", 5000 - 3000 + 300 + 20), ("max\n", None)])
    def test_of_a_container(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
    ) -> None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("3000\n")
        (tmp_path / "memory.stat").write_text("anon 2000\nactive_file 300\ninactive_file 20\n")
        monkeypatch.setattr(cache_module, "_CGROUP", tmp_path)
        assert available_memory() == expected if expected is not None else available_memory() > 2**20


class TestDisk:
    """What only the cache that outlives a run can meet."""

    @pytest.fixture
    def split(self, tmp_path: Path) -> Split:
        return noise_split(tmp_path / "images", 4)

    @staticmethod
    def opened(split: Split, folder: Path, size: int = 32, resize: ResizeMode = "squash") -> DiskCache:
        cache = open_cache(split, size, resize, CacheOptions("disk", folder))
        assert isinstance(cache, DiskCache)
        return cache

    def filled(self, split: Split, folder: Path) -> tuple[DiskCache, list[Tensor]]:
        cache, dataset = self.opened(split, folder), dataset_of(split)
        return cache, [cache.image(index, dataset._resized).clone() for index in range(len(split.records))]

    def test_drawn_scenes_are_neither_laid_out_nor_painted_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By another run; the file also has their records, as they were."""

        def scenes() -> SyntheticScenes:
            return SyntheticScenes(6, size=64, seed=2, density=0.2)

        options, batches = CacheOptions("disk", tmp_path), [[(0, index)] for index in range(6)]
        expected = list(make_loader(dataset_of(scenes().split(), options, size=64), batches))
        assert {0, 1} <= {min(len(target["ignored"]), 1) for batch in expected for target in batch.targets}
        assert 0 in {len(target["boxes"]) for batch in expected for target in batch.targets}
        monkeypatch.setattr(SyntheticScenes, "_make_scene", fail)
        again = scenes()
        for batch, other in zip(
            make_loader(dataset_of(again.split(), options, size=64), batches), expected, strict=True
        ):
            assert_same_batch(batch, other)
        monkeypatch.undo()
        for index, record in enumerate(scenes()):
            for name, value in vars(record).items():
                kept = getattr(again[index], name)
                assert type(kept) is type(value)
                if isinstance(value, np.ndarray):
                    assert kept.dtype == value.dtype
                    assert kept.shape == value.shape
                    assert (kept == value).all()
                else:
                    assert kept == value

    @pytest.mark.parametrize("what", ["damaged", "too many boxes", "not there"])
    def test_a_record_that_is_not_there_is_made(
        self, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if what == "too many boxes":
            monkeypatch.setattr(cache_module, "_RECORD", 100)
        scenes = SyntheticScenes(1, size=64, seed=3, density=0.2)
        cache = self.opened(scenes.split(), tmp_path, 64)
        assert cache.record(0) is None
        if what != "not there":
            cache.image(0, lambda index: scenes.render(scenes[index]))
        if what == "damaged":
            record = cache.record(0)
            assert record is not None
            assert len(record.boxes)
            os.pwrite(cache._file, b"\x01", 8192 + 60)
            assert cache._records == 8192
        assert cache.record(0) is None
        again = SyntheticScenes(1, size=64, seed=3, density=0.2)
        sample = dataset_of(again.split(), CacheOptions("disk", tmp_path), size=64, flip=False)[0]
        assert np.array_equal(sample.target["boxes"].numpy(), scenes[0].boxes)
        assert torch.equal(sample.image, scenes.render(scenes[0]))

    def test_it_outlives_the_run(self, split: Split, tmp_path: Path) -> None:
        first, images = self.filled(split, tmp_path)
        assert first.describe() == (f"disk: 4 images of 32 px, 0.0 GiB in {first.path}, 4 of them there")
        again = self.opened(split, tmp_path)
        assert again.path == first.path
        assert not again.there.any()
        stat = first.path.stat()
        assert stat.st_blocks * 512 >= stat.st_size  # all of its room is taken: it is no file with holes
        assert all(torch.equal(again.image(index, fail), image) for index, image in enumerate(images))
        assert again.there.all()

    def test_other_images_have_another_file(
        self, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def path_of(split: Split, size: int = 32, resize: ResizeMode = "squash") -> Path:
            return self.opened(split, tmp_path / "cache", size, resize).path

        stored = replace(split, records=[replace(record, as_stored=True) for record in split.records])
        paths = [
            path_of(split),
            path_of(split, 64),
            path_of(split, resize="letterbox"),
            path_of(split.first(3)),
            path_of(replace(split, records=split.records[::-1])),
            path_of(stored),
            path_of(replace(split, max_pixels=10_000)),
            *(
                path_of(SyntheticScenes(4, **arguments).split())
                for arguments in ({}, {"seed": 1}, {"split": "val"}, {"size": 64}, {"density": 0.5}, {"zoom": 2.0})
            ),
        ]
        for name in ("torch", "torchvision", "PIL", "np"):
            monkeypatch.setattr(getattr(cache_module, name), "__version__", "0")
            paths.append(path_of(split))
        assert len(set(paths)) == len(paths)
        assert path_of(split) == paths[-1]
        same_boxes = replace(
            split, name="all", records=[replace(record, boxes=record.boxes[:0]) for record in split.records]
        )
        assert path_of(same_boxes) == paths[-1]

    @pytest.mark.parametrize("how", ["time", "size", "gone"])
    def test_a_file_that_changes_is_decoded_anew(self, split: Split, tmp_path: Path, how: str) -> None:
        self.filled(split, tmp_path)
        path = split.records[1].path
        assert path is not None
        before = path.stat()
        new = np.full((20, 40, 3), 7, dtype=np.uint8)
        if how == "gone":
            path.unlink()
        else:
            Image.fromarray(new).save(path)
            if how == "size":
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            else:  # as long as before, and a moment later
                path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
                assert path.stat().st_size == before.st_size
        dataset = dataset_of(split, CacheOptions("disk", tmp_path), flip=False)
        if how == "gone":
            assert dataset[1].target["index"] == 2
            assert dataset.unreadable == [1]
            return
        assert (dataset[1].image == 7).all()
        assert (self.opened(split, tmp_path).image(1, fail) == 7).all()

    def test_one_that_changes_while_it_is_decoded_is_not_kept_as_the_new_one(
        self, split: Split, tmp_path: Path
    ) -> None:
        cache, path = self.opened(split, tmp_path), split.records[0].path
        assert path is not None
        old = dataset_of(split)._resized(0)

        def make(index: int) -> Tensor:
            Image.fromarray(np.full((20, 40, 3), 7, dtype=np.uint8)).save(path)
            return old

        cache.image(0, make)
        assert (self.opened(split, tmp_path).image(0, dataset_of(split)._resized) == 7).all()

    @pytest.mark.parametrize("what", ["pixels", "entry", "cut"])
    def test_damage_is_found_and_said(
        self, split: Split, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache, images = self.filled(split, tmp_path)
        data = bytearray(cache.path.read_bytes())
        if what == "cut":
            del data[-1000:]
        else:  # the last image's pixels, or the digest of them in its entry
            place = len(data) - 1000 if what == "pixels" else 4096 + 3 * 32 + 20
            data[place] ^= 1
        cache.path.write_bytes(data)
        with caplog.at_level(logging.WARNING, logger="zoominnet.data"):
            dataset = dataset_of(split, CacheOptions("disk", tmp_path), flip=False)
            assert torch.equal(dataset[3].image, images[3])
        expected = "is damaged or another program's: it is made anew" if what == "cut" else "image 3 of .* is damaged"
        assert len(caplog.records) == 1
        assert caplog.records[0].getMessage().startswith("--cache disk: ")
        assert re.search(expected, caplog.text)
        assert torch.equal(self.opened(split, tmp_path).image(3, fail), images[3])

    @pytest.mark.parametrize("content", [b"", b"foreign", b"zoominnet images 1"])
    def test_a_foreign_file_is_made_anew(
        self, split: Split, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache, images = self.filled(split, tmp_path)
        cache.path.write_bytes(content)
        with caplog.at_level(logging.WARNING, logger="zoominnet.data"):
            _, found = self.filled(split, tmp_path)
        assert "is damaged or another program's" in caplog.text
        assert all(map(torch.equal, found, images))
        # and the run that has the old file open goes on, whatever it finds there
        assert all(torch.equal(cache.image(i, dataset_of(split)._resized), image) for i, image in enumerate(images))

    def test_a_file_cut_short_under_a_run(self, split: Split, tmp_path: Path) -> None:
        """A mapping would end the process by SIGBUS."""
        cache, images = self.filled(split, tmp_path)
        os.truncate(cache.path, 0)
        assert all(torch.equal(cache.image(i, dataset_of(split)._resized), image) for i, image in enumerate(images))
        os.truncate(cache.path, cache.path.stat().st_size - 1)
        assert torch.equal(cache.image(3, dataset_of(split)._resized), images[3])

    def test_an_image_written_by_another_is_seen_at_once(self, split: Split, tmp_path: Path) -> None:
        """Not torn: its entry is no longer the one that this process has compared."""
        cache, _ = self.filled(split, tmp_path)
        path = split.records[0].path
        assert path is not None
        Image.fromarray(np.full((20, 40, 3), 7, dtype=np.uint8)).save(path)
        self.opened(split, tmp_path).image(0, dataset_of(split)._resized)
        assert (cache.image(0, fail) == 7).all()

    @pytest.mark.parametrize("writes", [1, 2])
    def test_a_process_killed_while_it_writes(self, split: Split, tmp_path: Path, writes: int) -> None:
        """In the middle of the pixels, or of the entry behind them: the image is made anew."""
        image = dataset_of(split)._resized(2)
        self.opened(split, tmp_path)
        process = multiprocessing.get_context("fork").Process(
            target=_write_and_die, args=(split, tmp_path, image, writes)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        cache = self.opened(split, tmp_path)
        made = []
        assert torch.equal(cache.image(2, lambda index: made.append(index) or image), image)  # type: ignore[func-returns-value]
        assert made == [2]
        assert torch.equal(self.opened(split, tmp_path).image(2, fail), image)

    def test_a_disk_that_fails_ends_the_run_in_a_line(
        self, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        dataset = dataset_of(split, CacheOptions("disk", tmp_path))
        monkeypatch.setattr(os, "pwrite", refuse)
        expected = r"^--cache disk: .*\.images cannot be used \(Input/output error\); make room"
        with pytest.raises(CacheFileError, match=expected) as caught:
            dataset[0]
        assert caught.value.exit_status == 74
        assert dataset.unreadable == []

    def test_several_processes_fill_one_file(self, split: Split, tmp_path: Path) -> None:
        """Four at once, each opening it for itself, all images in its own order, twice, and each sees what it must."""
        images = [dataset_of(split)._resized(index) for index in range(4)]
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_fill, args=(split, tmp_path, images, start)) for start in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4
        assert len(list(tmp_path.glob("*.images"))) == 1
        cache = self.opened(split, tmp_path)
        assert all(torch.equal(cache.image(index, fail), image) for index, image in enumerate(images))

    def test_pixels_that_another_writes_meanwhile_are_not_taken(
        self, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reader that comes when half of them are written makes the image itself."""
        reader, images = self.filled(split, tmp_path)
        path = split.records[1].path
        assert path is not None
        Image.fromarray(np.full((20, 40, 3), 7, dtype=np.uint8)).save(path)
        found, write = [], os.pwrite

        def pwrite(file: int, data: Any, place: int) -> int:
            if len(data) < 3 * 32**2:
                return write(file, data, place)
            half = write(file, data[: len(data) // 2], place)
            found.append(reader.image(1, images.__getitem__).clone())
            return half

        monkeypatch.setattr(reader, "_write", lambda *arguments: None)
        monkeypatch.setattr(os, "pwrite", pwrite)
        self.opened(split, tmp_path).image(1, dataset_of(split)._resized)
        monkeypatch.undo()
        assert torch.equal(found[0], images[1])
        assert (self.opened(split, tmp_path).image(1, fail) == 7).all()

    def test_pixels_that_another_wrote_meanwhile_are_not_taken(
        self, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A reader that has part of them when the writer ends finds another entry than it knew, and other pixels."""
        reader, _ = self.filled(split, tmp_path)
        path = split.records[1].path
        assert path is not None
        Image.fromarray(np.full((20, 40, 3), 7, dtype=np.uint8)).save(path)
        read = os.preadv

        def preadv(file: int, buffers: list[memoryview], place: int) -> int:
            count = read(file, buffers, place)
            monkeypatch.undo()
            self.opened(split, tmp_path).image(1, dataset_of(split)._resized)
            return count

        monkeypatch.setattr(os, "preadv", preadv)
        assert (reader.image(1, dataset_of(split)._resized) == 7).all()


def _write_and_die(split: Split, folder: Path, image: Tensor, writes: int) -> None:
    cache, done, write = TestDisk.opened(split, folder), 0, os.pwrite

    def pwrite(file: int, data: Any, place: int) -> int:
        nonlocal done
        if done == writes:
            write(file, data[:10], place)
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return write(file, data, place)

    os.pwrite = pwrite
    cache.image(2, lambda index: image)


def _fill(split: Split, folder: Path, images: list[Tensor], start: int) -> None:
    cache = TestDisk.opened(split, folder)
    for turn in range(2 * len(images)):
        index = (start + turn) % len(images)
        assert torch.equal(cache.image(index, images.__getitem__), images[index])


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification has it: a relative path is no folder."""
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_folder() == Path.home() / ".cache" / "zoominnet" / "images"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache_folder() == Path("/elsewhere/zoominnet/images")
