"""Augmented samples: boxes by hand and by torchvision, objects found under their boxes, the same wherever they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import assert_same_batch, noise_split
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from zoominnet.data import augment
from zoominnet.data.augment import AUGMENTATIONS, cut
from zoominnet.data.batch import Sample
from zoominnet.data.cache import CacheKind, CacheOptions
from zoominnet.data.dataset import DetectionDataset, make_loader
from zoominnet.data.plan import BatchPlan
from zoominnet.data.records import DataError, DataReport, ImageRecord, Split
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, student_images

CHOICES = [("crop",), ("mosaic",), ("mosaic", "crop")]
each_choice = pytest.mark.parametrize("choice", CHOICES, ids=" ".join)


def dataset_of(split: Split, size: int = 32, **options: Any) -> DetectionDataset:
    return DetectionDataset(split, size, **({"flip": True, "seed": 1} | options))


def sample_of(image: Tensor, boxes: list[list[float]], ignored: list[list[float]] | None = None) -> Sample:
    size = image.shape[-1]
    return Sample(
        image,
        {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.arange(len(boxes)),
            "ignored": torch.tensor(ignored or []).reshape(-1, 4),
            "image_id": 7,
            "index": 3,
            "geometry": ResizeGeometry.fit(size, size, size, "squash"),
        },
    )


def plain(size: int, value: int = 0) -> Tensor:
    return torch.full((3, size, size), value, dtype=torch.uint8)


class Scripted:
    """Draws what it is told, in turn, and notes between which bounds."""

    def __init__(self, *draws: Any) -> None:
        self.draws, self.asked = list(draws), []

    def random(self) -> float:
        return self.draws.pop(0)

    def uniform(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return self.draws.pop(0)

    def integers(self, *bounds: int, size: int | None = None) -> Any:
        self.asked.append(bounds)
        return np.array(self.draws.pop(0))


class TestBoxes:
    def test_a_window_by_hand(self) -> None:
        """Columns 3 to 7 and rows 0 to 4 of an image of 8 px, twice as large, at (10, 20)."""
        boxes = [
            [4.0, 1.0, 6.0, 3.0],  # inside
            [0.0, 0.0, 5.0, 4.0],  # 2 of 5 columns are left: just enough
            [0.0, 0.0, 4.5, 4.0],  # 1.5 of 4.5 are not
            [4.0, 2.0, 5.0, 8.0],  # 2 of 6 rows
            [0.0, 0.0, 3.0, 8.0],  # it touches the window only
            [5.0, 5.0, 5.0, 7.0],  # without area
        ]
        found = cut(sample_of(plain(8), boxes, [[0.0, 0, 8, 1], [0.0, 5, 8, 8]]), (3, 0, 4, 4), (10, 20, 8, 8))
        assert found.image.shape == (3, 8, 8)
        assert found.target["boxes"].tolist() == [[12, 22, 16, 26], [10, 20, 14, 28]]
        assert found.target["labels"].tolist() == [0, 1]
        assert found.target["ignored"].tolist() == [[10, 20, 18, 22], [10, 20, 13, 28], [12, 24, 14, 28]]
        assert found.target["image_id"] == 7

    def test_sides_that_are_scaled_apart(self) -> None:
        found = cut(sample_of(plain(8), [[1.0, 2.0, 3.0, 6.0]]), (0, 0, 4, 8), (0, 0, 6, 4))
        assert found.image.shape == (3, 4, 6)
        assert found.target["boxes"].tolist() == [[1.5, 1, 4.5, 3]]

    def test_as_torchvision_has_it(self) -> None:
        """Clipped boxes as by its transform of boxes, and which stay by their areas in float64."""
        rng = np.random.default_rng(0)
        corners = np.sort(rng.uniform(0, 64, (300, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        window, shape = (13, 6, 40, 25), (24, 30)
        sample = sample_of(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), corners.tolist())
        found = cut(sample, window, (0, 0, *shape))
        left, top, width, height = window
        options = (top, left, height, width, [shape[1], shape[0]])
        theirs = TF.resized_crop(
            tv_tensors.BoundingBoxes(torch.from_numpy(corners), format="XYXY", canvas_size=(64, 64)), *options
        )  # type: ignore[call-overload]
        assert torch.equal(found.image, TF.resized_crop(sample.image, *options, antialias=True))
        x1, y1, x2, y2 = corners.astype(np.float64).T
        inside = np.clip(np.minimum(x2, left + width) - np.maximum(x1, left), 0, None)
        inside *= np.clip(np.minimum(y2, top + height) - np.maximum(y1, top), 0, None)
        share = inside / ((x2 - x1) * (y2 - y1))
        kept, rest = share >= 0.4, (share > 0) & (share < 0.4)
        assert 50 < kept.sum() < 250
        assert rest.sum() > 50
        assert np.abs(share - 0.4).min() > 1e-4  # none is a matter of rounding
        assert found.target["labels"].tolist() == np.flatnonzero(kept).tolist()
        torch.testing.assert_close(found.target["boxes"], theirs[kept].as_subclass(Tensor), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(found.target["ignored"], theirs[rest].as_subclass(Tensor), rtol=1e-6, atol=1e-5)

    def test_a_crop_by_hand(self) -> None:
        image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).repeat(3, 1, 1)
        sample = sample_of(image, [[2.0, 4.0, 4.0, 6.0]])
        rng = Scripted(0.49, 0.55, [1, 3])  # 0.55 of 8 px: 4 px
        found = AUGMENTATIONS["crop"](sample, rng, unused)  # type: ignore[arg-type]
        assert rng.asked == [(0.5, 1), (5,)]
        assert found.target["boxes"].tolist() == [[2, 2, 6, 6]]
        assert torch.equal(found.image, TF.resize(image[:, 3:7, 1:5], [8, 8], antialias=True))
        assert AUGMENTATIONS["crop"](sample, Scripted(0.5), unused) is sample  # type: ignore[arg-type]

    def test_a_mosaic_by_hand(self) -> None:
        """Around (8, 4) of 16 px: quarters of 8 x 4, 8 x 12, 8 x 4 and 8 x 12 px; the first column's come first."""
        boxes = [[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 16.0, 16.0]]
        images = [sample_of(plain(16, 50 * i), boxes, [[0.0, 0.0, 4.0, 4.0]]) for i in range(4)]
        others = iter(images[1:])
        draws = (0.5, 0, 0), (0.75, 0, 0), (1.0, 8, 12), (1.0, 2, 1)
        rng = Scripted(0.49, [4, 2], *(draw for quarter in draws for draw in quarter))
        found = AUGMENTATIONS["mosaic"](images[0], rng, lambda: next(others))  # type: ignore[arg-type]
        assert rng.asked[:2] == [(2, 7), (0.5, 1)]
        assert rng.asked[4:6] == [(0.75, 1), (6,)]  # a quarter of 12 px; a window of round(8 / 0.75) px
        quarters = [found.image[:, :4, :8], found.image[:, 4:, :8], found.image[:, :4, 8:], found.image[:, 4:, 8:]]
        assert [sorted(set(quarter.flatten().tolist())) for quarter in quarters] == [[0], [50], [100], [150]]
        # windows: 16 x 8 halved; 11 x 16 by 8/11 and 3/4; 8 x 4 at (8, 12); 8 x 12 at (2, 1). Of the large boxes these
        # keep 128, 176, 32 and 96 of 256 px
        kept = [[1, 1, 3, 3], [0, 0, 8, 4], [16 / 11, 5.5, 48 / 11, 8.5], [0, 4, 8, 16], [8, 5, 12, 9]]
        torch.testing.assert_close(found.target["boxes"], torch.tensor(kept))
        assert found.target["labels"].tolist() == [0, 1, 0, 1, 0]
        ignored = [[0, 0, 2, 2], [0, 4, 32 / 11, 7], [8, 0, 16, 4], [8, 4, 10, 7], [8, 4, 16, 16]]
        torch.testing.assert_close(found.target["ignored"], torch.tensor(ignored))
        assert AUGMENTATIONS["mosaic"](images[0], Scripted(0.5), unused) is images[0]  # type: ignore[arg-type]


def unused() -> Sample:
    raise AssertionError("no other image was to be drawn")


def painted_split(folder: Path, count: int = 5, width: int = 160, height: int = 120) -> Split:
    """Black images with four white rectangles each, one in each quarter; the last of these is an ignored region. The second
    image has none."""
    folder.mkdir(exist_ok=True)
    rng, records = np.random.default_rng(4), []
    for index in range(count):
        corners = rng.integers([4, 4], [width // 2 - 44, height // 2 - 34], (4, 2))
        corners += [[0, 0], [width // 2, 0], [0, height // 2], [width // 2, height // 2]]
        boxes = np.hstack((corners, corners + rng.integers(16, [41, 31], (4, 2)))).astype(np.float32)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        boxes = boxes[: 0 if index == 1 else 4]
        for x1, y1, x2, y2 in boxes.astype(int):
            pixels[y1:y2, x1:x2] = 255
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        labels = np.zeros(len(boxes), dtype=np.int64)
        records.append(
            ImageRecord(path, index, width, height, boxes[:3], labels[:3], boxes[3:], np.full(len(boxes[3:]), -1))
        )
    return Split("train", records, ("thing",), (1,), DataReport())


class TestPixels:
    @pytest.mark.parametrize("resize", ["squash", "letterbox"])
    @each_choice
    def test_boxes_lie_on_what_is_painted(self, tmp_path: Path, choice: tuple[str, ...], resize: ResizeMode) -> None:
        """White is where boxes and ignored regions are, and nowhere else, but for the pixel at their edges."""
        dataset = dataset_of(painted_split(tmp_path), 128, resize=resize, augment=choice)
        counts = {"boxes": 0, "ignored": 0}
        row, column = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        for key in ((epoch, index) for epoch in range(12) for index in range(5)):
            sample = dataset[key]
            bright = sample.image[1] > 150  # the padding has 116
            near = torch.zeros_like(bright)
            for name in counts:
                for x1, y1, x2, y2 in sample.target[name].tolist():  # type: ignore[literal-required]
                    counts[name] += 1
                    assert bright[(column > x1 + 1) & (column < x2 - 1) & (row > y1 + 1) & (row < y2 - 1)].all()
                    near |= (column > x1 - 1) & (column < x2 + 1) & (row > y1 - 1) & (row < y2 + 1)
            assert not (bright & ~near).any()
        assert counts["boxes"] > 100
        assert counts["ignored"] > 40

    def test_no_pixel_of_the_students_has_parts_of_two_images(self, tmp_path: Path) -> None:
        """And its image is the 2x2 mean of the teacher's, in float64."""
        colours = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 0, 0]])
        folder, records = tmp_path / "images", []
        folder.mkdir()
        for index, colour in enumerate(colours.tolist()):
            path = folder / f"{index}.png"
            Image.new("RGB", (40, 30), tuple(colour)).save(path)
            records.append(ImageRecord(path, index, 40, 30))
        split = Split("train", records, ("thing",), (1,), DataReport())
        dataset = dataset_of(split, 64, augment=("mosaic",))
        mixed = 0
        for epoch in range(8):
            images = dataset.__getitems__([(epoch, index) for index in range(5)]).images
            found = student_images(images)
            blocks = images.double().unfold(2, 2, 2).unfold(3, 2, 2)
            assert torch.equal(found.double(), blocks.mean(dim=(-2, -1)))
            for image in found:
                shades = image.flatten(1).T.unique(dim=0)
                assert (shades[:, None] == colours).all(-1).any(-1).all()
                mixed += len(shades) > 1
        assert 8 < mixed < 32  # 40 fair coins, some four of them of one colour, 3.8 deviations


class TestDraws:
    @each_choice
    def test_how_many_and_how_much(
        self, tmp_path: Path, choice: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half of the samples, zoomed in at most twice and out at most twice, evenly."""
        windows: list[tuple[str, float]] = []
        real = cut

        def noted(sample: Sample, window: Any, place: Any) -> Sample:
            kind = "crop" if place[2:] == (128, 128) else "mosaic"
            windows.append((kind, place[2] / window[2]))
            assert all(first >= 0 and first + side <= 128 for first, side in zip(window, window[2:], strict=False))
            return real(sample, window, place)

        monkeypatch.setattr(augment, "cut", noted)
        dataset = dataset_of(noise_split(tmp_path, 3, 8, 8), 128, augment=choice)
        keys = [(epoch, index) for epoch in range(100) for index in range(3)]
        for key in keys:
            _ = dataset[key]
        for kind, parts in (("crop", 1), ("mosaic", 4)):
            factors = [factor for name, factor in windows if name == kind]
            assert len(factors) % parts == 0
            samples = len(factors) / parts
            assert (kind in choice) == (samples > 0)
            if kind in choice:
                assert 115 < samples < 185  # 300 fair coins, 4 deviations
                least, most = (1, 2) if kind == "crop" else (0.48, 1.02)  # sides are rounded to the pixel
                assert least <= min(factors) < least + 0.05
                assert most - 0.1 < max(factors) <= most
        sides = [1 / factor for name, factor in windows if name == "crop"]
        if sides:
            assert abs(np.mean(sides) - 0.75) < 0.05  # uniform: 4 deviations of the mean of 115

    def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)

        def images(seed: int, epoch: int, order: list[int]) -> list[Tensor]:
            dataset = dataset_of(split, seed=seed, augment=("mosaic", "crop"), flip=False)
            found = {index: dataset[epoch, index].image for index in order}
            return [found[index] for index in range(6)]

        first = images(0, 0, [0, 1, 2, 3, 4, 5])
        torch.manual_seed(5)
        assert all(torch.equal(a, b) for a, b in zip(first, images(0, 0, [3, 5, 1, 0, 2, 4]), strict=True))
        for seed, epoch in ((0, 1), (1, 0)):
            other = images(seed, epoch, [0, 1, 2, 3, 4, 5])
            assert sum(not torch.equal(a, b) for a, b in zip(first, other, strict=True)) >= 3
        flips = [
            dataset_of(split, augment=names)[0, i].target["geometry"].flipped
            for names in ((), ("crop",))
            for i in range(6)
        ]
        assert flips[:6] == flips[6:]


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
@each_choice
def test_samples_are_the_same_wherever_they_are_made(tmp_path: Path, choice: tuple[str, ...], kind: CacheKind) -> None:
    """By workers and without, from a cache and not, from the middle of an epoch on, on two ranks, and one by one; with an
    image that cannot be decoded among the neighbours."""
    split = noise_split(tmp_path / "images", 7)
    broken = split.records[2].path
    assert broken is not None
    broken.write_bytes(broken.read_bytes()[:60])
    cache = CacheOptions(kind, tmp_path / "cache", torch.device("cpu"))
    alone = dataset_of(split, augment=choice)
    plan = BatchPlan(7, 4, seed=5)

    def batches(
        dataset: DetectionDataset, of: BatchPlan, epoch: int, start: int = 0, workers: int = 0
    ) -> Iterator[Any]:
        yield from make_loader(dataset, of.epoch_batches(epoch, start), workers=workers, timeout=60)

    kept = dataset_of(split, augment=choice, cache=cache)
    ranks = [dataset_of(split, augment=choice, cache=cache) for _ in range(2)]
    for epoch in range(2):
        expected = list(batches(alone, plan, epoch))
        for batch, keys in zip(expected, plan.epoch_batches(epoch), strict=True):
            for image, target, key in zip(batch.images, batch.targets, keys, strict=True):
                single = alone[key]
                assert torch.equal(single.image, image)
                assert torch.equal(single.target["boxes"], target["boxes"])
                assert target["image_id"] == single.target["image_id"]
                assert target["index"] == (3 if key[1] == 2 else key[1])
        for batch, other in zip(batches(kept, plan, epoch, workers=2), expected, strict=True):
            assert_same_batch(batch, other)
        for batch, other in zip(batches(kept, plan, epoch, start=1), expected[1:], strict=True):
            assert_same_batch(batch, other)
        shares = [
            list(batches(dataset, replace(plan, world_size=2, rank=rank), epoch)) for rank, dataset in enumerate(ranks)
        ]
        for one, two, other in zip(*shares, expected, strict=True):
            assert torch.equal(torch.cat([one.images, two.images]), other.images)
    assert kept.unreadable == alone.unreadable == [2]


def test_a_broken_neighbour_is_replaced_by_the_next_image(tmp_path: Path) -> None:
    split, whole = noise_split(tmp_path), noise_split(tmp_path)
    records = list(whole.records)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    damaged = replace(split, records=[*records[:2], replace(records[2], path=broken), *records[3:]])
    instead = replace(split, records=[*records[:2], records[3], *records[3:]])
    found, expected = (dataset_of(each, flip=False, augment=("mosaic",)) for each in (damaged, instead))
    for key in ((epoch, index) for epoch in range(10) for index in (0, 1, 3, 4, 5)):
        one, other = found[key], expected[key]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.target["boxes"], other.target["boxes"])
    assert found.unreadable == [2]
    strict = dataset_of(damaged, flip=False, augment=("mosaic",), strict=True)
    with pytest.raises(DataError, match=r"broken\.png"):
        [strict[epoch, 0] for epoch in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("zoom",)}, "augment must be of crop, mosaic, got 'zoom'"),
        ({"augment": ("crop",), "size": 3}, "size must be at least 4 px to be augmented, got 3"),
        ({"augment": ("crop",), "cache": CacheOptions("device")}, "a cache on the device does not go with augment"),
    ],
)
def test_what_cannot_be_augmented(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_of(noise_split(tmp_path), **options)


@pytest.mark.parametrize("size", range(4, 13))
@each_choice
def test_every_size_from_4_px_on(tmp_path: Path, choice: tuple[str, ...], size: int) -> None:
    dataset = dataset_of(noise_split(tmp_path), size, augment=choice)
    for key in ((epoch, 0) for epoch in range(20)):
        sample = dataset[key]
        assert sample.image.shape == (3, size, size)
        for name in ("boxes", "ignored"):
            boxes = sample.target[name]  # type: ignore[literal-required]
            assert ((boxes >= 0) & (boxes <= size)).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
