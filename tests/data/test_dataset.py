"""Images, boxes and their geometry, against hand-worked numbers and plain PyTorch; loading with faults."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from data_sets import assert_same_batch, noise_split
from devices import each_device, on_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from zoominnet.data.batch import collate, to_device
from zoominnet.data.cache import CacheKind, CacheOptions
from zoominnet.data.dataset import DetectionDataset, LoaderError, make_loader
from zoominnet.data.plan import BatchPlan, shard_batches
from zoominnet.data.records import DataError, ImageRecord, Split
from zoominnet.data.transforms import ResizeGeometry, ResizeMode, flip_boxes, resize_image, student_images

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def dataset_of(split: Split, size: int = 16, **options: object) -> DetectionDataset:
    return DetectionDataset(split, size, **({"flip": False, "seed": 0} | options))  # type: ignore[arg-type]


class TestGeometry:
    def test_squash_by_hand(self) -> None:
        geometry = ResizeGeometry.fit(1360, 765, 1024, "squash")
        boxes = torch.tensor([[0.0, 0.0, 1360.0, 765.0], [340.0, 153.0, 680.0, 306.0]])
        expected = torch.tensor([[0.0, 0.0, 1024.0, 1024.0], [256.0, 204.8, 512.0, 409.6]])
        torch.testing.assert_close(geometry.to_output(boxes), expected)

    def test_letterbox_by_hand(self) -> None:
        geometry = ResizeGeometry.fit(200, 100, 64, "letterbox")
        assert geometry.inner_size == (32, 64)
        assert (geometry.pad_x, geometry.pad_y) == (0, 16)
        boxes = torch.tensor([[0.0, 0.0, 200.0, 100.0], [50.0, 25.0, 100.0, 50.0]])
        expected = torch.tensor([[0.0, 16.0, 64.0, 48.0], [16.0, 24.0, 32.0, 32.0]])
        torch.testing.assert_close(geometry.to_output(boxes), expected)

    def test_letterbox_of_a_tall_image_and_an_odd_rest(self) -> None:
        geometry = ResizeGeometry.fit(33, 100, 64, "letterbox")
        assert geometry.inner_size == (64, 21)
        assert (geometry.pad_x, geometry.pad_y) == (21, 0)
        torch.testing.assert_close(
            geometry.to_output(torch.tensor([[0.0, 0, 33, 100]])), torch.tensor([[21.0, 0, 42, 64]])
        )

    def test_the_inner_size_survives_the_rounding_of_the_scale(self) -> None:
        assert 49 * (1 / 49) < 1
        assert ResizeGeometry.fit(49, 49, 1, "squash").inner_size == (1, 1)

    def test_flipped_by_hand(self) -> None:
        geometry = ResizeGeometry.fit(40, 20, 16, "squash", flipped=True)
        torch.testing.assert_close(
            geometry.to_output(torch.tensor([[4.0, 2, 12, 10]])), torch.tensor([[11.2, 1.6, 14.4, 8.0]])
        )

    @given(
        width=st.integers(1, 8000),
        height=st.integers(1, 8000),
        size=st.integers(1, 2048),
        mode=st.sampled_from(["squash", "letterbox"]),
        flipped=st.booleans(),
        corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    )
    @settings(deadline=None)
    def test_round_trip(
        self, width: int, height: int, size: int, mode: ResizeMode, flipped: bool, corners: list[float]
    ) -> None:
        geometry = ResizeGeometry.fit(width, height, size, mode, flipped=flipped)
        boxes = torch.tensor([corners], dtype=torch.float64) * torch.tensor([width, height] * 2, dtype=torch.float64)
        output = geometry.to_output(boxes)
        assert ((output > -1e-9) & (output < size + 1e-9)).all()
        # float64: rounding at the output's scale, magnified by the way back
        torch.testing.assert_close(geometry.to_original(output), boxes, rtol=0, atol=1e-12 * max(width, height, size))

    @given(x1=st.integers(0, 500), width=st.integers(1, 500))
    def test_flipping_twice_is_exact(self, x1: int, width: int) -> None:
        boxes = torch.tensor([[x1, 7, x1 + width, 9]], dtype=torch.float32) / 4
        flipped = flip_boxes(boxes, 256)
        assert (flipped[:, 2] - flipped[:, 0] == boxes[:, 2] - boxes[:, 0]).all()
        assert torch.equal(flip_boxes(flipped, 256), boxes)


class TestImages:
    def test_boxes_follow_the_pixels(self) -> None:
        """A bright rectangle is found again where its box says, in all modes."""
        image = torch.zeros(3, 60, 90, dtype=torch.uint8)
        image[:, 12:36, 18:30] = 255
        box = torch.tensor([[18.0, 12.0, 30.0, 36.0]])
        for mode in ("squash", "letterbox"):
            for flipped in (False, True):
                geometry = ResizeGeometry.fit(90, 60, 180, mode, flipped=flipped)  # type: ignore[arg-type]
                output = resize_image(image, geometry)
                assert output.shape == (3, 180, 180)
                bright = (output[0] > 127) & (output[1] > 180)  # the padding is darker
                rows, columns = torch.where(bright)
                found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                expected = geometry.to_output(box)[0]
                torch.testing.assert_close(torch.stack(found).float(), expected, rtol=0, atol=1.0)  # whole pixels

    def test_flip_mirrors_the_resized_image(self) -> None:
        image = torch.randint(0, 256, (3, 31, 47), dtype=torch.uint8)
        plain = resize_image(image, ResizeGeometry.fit(47, 31, 24, "squash"))
        flipped = resize_image(image, ResizeGeometry.fit(47, 31, 24, "squash", flipped=True))
        assert torch.equal(flipped, plain.flip(-1))

    def test_same_size_is_the_same_image(self) -> None:
        image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
        assert torch.equal(resize_image(image, ResizeGeometry.fit(32, 32, 32, "squash")), image)

    def test_resize_equals_antialiased_interpolation(self) -> None:
        image = torch.randint(0, 256, (3, 57, 91), dtype=torch.uint8)
        expected = F.interpolate(image[None].double(), (32, 32), mode="bilinear", antialias=True)[0]
        found = resize_image(image, ResizeGeometry.fit(91, 57, 32, "squash"))
        # torchvision's byte path rounds after each of the two directions and uses 16-bit weights
        assert (found.double() - expected).abs().max() <= 1.0

    def test_letterbox_padding(self) -> None:
        output = resize_image(
            torch.full((3, 10, 20), 255, dtype=torch.uint8), ResizeGeometry.fit(20, 10, 8, "letterbox")
        )
        assert (output[:, 2:6] == 255).all()
        assert output[:, 0, 0].tolist() == [124, 116, 104]
        assert (output[:, :2] == output[:, :1, :1]).all()
        assert (output[:, 6:] == output[:, :1, :1]).all()
        # 4 of 7 columns are the image's: of the other three, one is left of it
        odd = resize_image(torch.full((3, 7, 4), 255, dtype=torch.uint8), ResizeGeometry.fit(4, 7, 7, "letterbox"))
        assert (odd == 255).all(dim=(0, 1)).tolist() == [False, True, True, True, True, False, False]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
    def test_student_image_is_the_half_size_bilinear_image(self, dtype: torch.dtype) -> None:
        images = torch.randint(0, 256, (2, 3, 10, 14), dtype=torch.uint8).to(dtype)
        found = student_images(images)
        assert found.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        expected = F.interpolate(images.to(found.dtype), scale_factor=0.5, mode="bilinear", antialias=False)
        assert torch.equal(found, expected)  # quarters of sums of bytes are exact
        assert found[0, 0, 0, 0] == images[0, 0, :2, :2].double().mean()

    def test_student_image_needs_even_sides(self) -> None:
        with pytest.raises(ValueError, match="even"):
            student_images(torch.zeros(1, 3, 7, 8))


class TestDataset:
    def test_sample(self, tmp_path: Path) -> None:
        sample = dataset_of(noise_split(tmp_path))[1]
        assert sample.image.shape == (3, 16, 16)
        assert sample.image.dtype == torch.uint8
        target = sample.target
        torch.testing.assert_close(target["boxes"], torch.tensor([[1.6, 1.6, 4.8, 8.0], [0.0, 0.0, 16.0, 16.0]]))
        assert target["boxes"].dtype == target["ignored"].dtype == torch.float32
        assert target["labels"].tolist() == [3, 1]
        torch.testing.assert_close(target["ignored"], torch.tensor([[8.0, 0.0, 16.0, 4.0]]))
        assert (target["image_id"], target["index"]) == (101, 1)
        assert (target["geometry"].width, target["geometry"].height) == (40, 20)
        torch.testing.assert_close(
            target["geometry"].to_original(target["boxes"]), torch.tensor([[4.0, 2, 12, 10], [0, 0, 40, 20]])
        )

    def test_letterbox_sample(self, tmp_path: Path) -> None:
        target = dataset_of(noise_split(tmp_path), resize="letterbox")[0].target
        torch.testing.assert_close(target["boxes"], torch.tensor([[1.6, 4.8, 4.8, 8.0], [0.0, 4.0, 16.0, 12.0]]))

    def test_image_without_objects(self, tmp_path: Path) -> None:
        target = dataset_of(noise_split(tmp_path))[5].target
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["ignored"].shape == (0, 4)

    def test_targets_do_not_share_memory_with_the_records(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        dataset = dataset_of(split, size=40)
        for name in ("boxes", "labels", "ignored"):
            dataset[0].target[name].zero_()  # type: ignore[literal-required]
        assert split.records[0].boxes[1].tolist() == [0, 0, 40, 20]
        assert split.records[0].labels.tolist() == [3, 0]

    def test_flips_depend_on_seed_epoch_and_index_alone(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        plain = dataset_of(split)

        def flips(seed: int, epoch: int) -> list[bool]:
            dataset = dataset_of(split, flip=True, seed=seed)
            found = []
            for index in range(6):
                sample, still = dataset[epoch, index], plain[index]
                flipped = sample.target["geometry"].flipped
                expected = still.image.flip(-1) if flipped else still.image
                assert torch.equal(sample.image, expected)
                boxes = flip_boxes(still.target["boxes"], 16) if flipped else still.target["boxes"]
                assert torch.equal(sample.target["boxes"], boxes)
                assert torch.equal(
                    sample.target["ignored"],
                    flip_boxes(still.target["ignored"], 16) if flipped else still.target["ignored"],
                )
                found.append(flipped)
            return found

        patterns = {(seed, epoch): flips(seed, epoch) for seed in range(3) for epoch in range(3)}
        assert flips(1, 2) == patterns[1, 2]
        assert len({tuple(pattern) for pattern in patterns.values()}) > 5
        assert 15 < sum(sum(pattern) for pattern in patterns.values()) < 39  # 54 fair coins, 3.3 deviations
        torch.manual_seed(5)
        torch.rand(3)
        assert flips(1, 2) == patterns[1, 2]  # no global random state is read

    def test_a_plain_index_is_epoch_zero(self, tmp_path: Path) -> None:
        dataset = dataset_of(noise_split(tmp_path), flip=True)
        for index in range(6):
            assert torch.equal(dataset[index].image, dataset[0, index].image)

    def test_bad_arguments(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        with pytest.raises(ValueError, match="size must be at least 1 px, got 0"):
            dataset_of(split, size=0)
        with pytest.raises(ValueError, match="seed must be 0 or greater"):
            dataset_of(split, seed=-1)
        with pytest.raises(ValueError, match="'squash' or 'letterbox', got 'crop'"):
            dataset_of(split, resize="crop")
        with pytest.raises(DataError, match="split 'train' has no usable image"):
            dataset_of(replace(split, records=[]))
        with pytest.raises(IndexError, match="sample 6 of 6"):
            dataset_of(split)[6]

    def test_generated_images_need_a_renderer(self, tmp_path: Path) -> None:
        record = ImageRecord(None, image_id=4, width=8, height=8)
        split = replace(noise_split(tmp_path), records=[record])
        with pytest.raises(ValueError, match="neither a path nor a renderer"):
            dataset_of(split)[0]
        white = replace(split, render=lambda record: torch.full((3, 8, 8), 255, dtype=torch.uint8))
        assert (dataset_of(white)[0].image == 255).all()


class TestUnreadable:
    def damage(self, split: Split, *indices: int) -> None:
        for index in indices:
            path = split.records[index].path
            assert path is not None
            path.write_bytes(path.read_bytes()[:60])

    def test_f07_the_next_readable_image_takes_its_place(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        split = noise_split(tmp_path)
        self.damage(split, 1, 2, 5)
        dataset = dataset_of(split)
        with caplog.at_level(logging.WARNING, logger="zoominnet.data"):
            found = [dataset[3, index].target["index"] for index in (*range(6), *range(6))]
        assert found == [0, 3, 3, 3, 4, 0] * 2
        assert dataset.unreadable == [1, 2, 5]
        assert len(caplog.records) == 3  # once a file
        assert [Path(str(split.records[i].path)).name in caplog.text for i in range(6)] == [
            i in (1, 2, 5) for i in range(6)
        ]
        assert torch.equal(dataset[1].image, dataset[3].image)

    def test_f07_a_replacement_is_flipped_as_itself(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        self.damage(split, 2)
        dataset = dataset_of(split, flip=True)
        for epoch in range(8):
            assert torch.equal(dataset[epoch, 2].image, dataset[epoch, 3].image)

    def test_f07_strict_names_the_file(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        self.damage(split, 1)
        with pytest.raises(DataError, match=r"1\.png"):
            dataset_of(split, strict=True)[1]

    def test_f07_none_left(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path, count=2)
        self.damage(split, 0, 1)
        with pytest.raises(DataError, match=r"2 images in a row of its 2 cannot be decoded, the last .*0\.png"):
            dataset_of(split)[1]

    def test_f07_a_folder_that_has_gone_ends_the_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a limit a lost disk would be tried once an image, of which there may be a million."""
        monkeypatch.setattr("zoominnet.data.dataset.MAX_UNREADABLE_IN_A_ROW", 3)
        split = noise_split(tmp_path / "images", count=8)
        dataset = dataset_of(split)
        self.damage(split, 2, 3)
        assert dataset[2].target["index"] == 4
        (tmp_path / "images").rename(tmp_path / "elsewhere")
        with pytest.raises(
            DataError, match=r"3 images in a row of its 8 .*the last .*7\.png: is the data folder still"
        ):
            dataset[5]
        assert dataset.unreadable == [2, 3, 5, 6, 7]

    def test_f07_never_a_black_image(self, tmp_path: Path) -> None:
        """Whatever is wrong with a file: what comes is the next image, pixel for pixel."""
        split = noise_split(tmp_path, count=8)
        whole = dataset_of(split)[7].image
        paths = [Path(str(record.path)) for record in split.records]
        paths[0].unlink()
        paths[1].write_bytes(b"")
        paths[2].write_bytes(b"text")
        paths[3].write_bytes(paths[3].read_bytes()[:-40])
        paths[4].unlink()
        paths[4].mkdir()
        paths[5].unlink()
        os.mkfifo(paths[5])
        Image.new("RGB", (9, 9)).save(paths[6])
        dataset = dataset_of(split)
        for index in range(8):
            assert torch.equal(dataset[index].image, whole)
        assert dataset.unreadable == list(range(7))

    def test_f08_the_limit_of_the_split_holds_while_training(self, tmp_path: Path) -> None:
        split = replace(noise_split(tmp_path), max_pixels=40 * 20 - 1)
        with pytest.raises(DataError, match="40x20 px is over the limit"):
            dataset_of(split, strict=True)[0]

    def test_f07_an_image_of_another_size_is_not_used(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        Image.new("RGB", (41, 20)).save(str(split.records[0].path))
        with pytest.raises(DataError, match="is 41x20 px now, was 40x20"):
            dataset_of(split, strict=True)[0]
        assert dataset_of(split)[0].target["index"] == 1

    def test_f15_errors_say_which_sample(self, tmp_path: Path) -> None:
        split = replace(noise_split(tmp_path), records=[ImageRecord(None, image_id=4, width=8, height=8)])

        def fail(record: ImageRecord) -> Tensor:
            raise RuntimeError("broken\nover lines")

        with pytest.raises(LoaderError) as caught:
            dataset_of(replace(split, render=fail))[2, 0]
        expected = "image 4 of split 'train' (epoch 2): cannot be loaded: RuntimeError: broken over lines"
        assert str(caught.value) == expected
        assert isinstance(caught.value.__cause__, RuntimeError)


class TestLoader:
    def test_batch(self, tmp_path: Path) -> None:
        dataset = dataset_of(noise_split(tmp_path))
        batch = collate([dataset[0], dataset[5]])
        assert batch.images.shape == (2, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert [target["image_id"] for target in batch.targets] == [100, 105]
        assert torch.equal(batch.images[1], dataset[5].image)

    def test_a_batch_has_few_tensors(self, tmp_path: Path) -> None:
        """Boxes, labels and ignored regions in one, whose rows follow from the records."""
        dataset = dataset_of(noise_split(tmp_path))
        batch = collate([dataset[5], dataset[1]])
        assert batch.objects.dtype == torch.float32
        expected = torch.full((2, 3, 5), -2.0)
        expected[1] = torch.tensor([[1.6, 1.6, 4.8, 8, 3], [0, 0, 16, 16, 1], [8, 0, 16, 4, -1]])
        torch.testing.assert_close(batch.objects, expected)
        assert len(batch) == 2
        for i, target in enumerate(batch.targets):
            for name, value in dataset[(5, 1)[i]].target.items():
                other = target[name]  # type: ignore[literal-required]
                assert torch.equal(value, other) if isinstance(value, Tensor) else value == other
        batch.targets[1]["boxes"][0] = 7  # views: what is changed there goes to the device
        assert to_device(batch, torch.device("cpu"), ignored=False)[1][1]["boxes"][0].tolist() == [7] * 4

    def test_a_batch_without_objects(self, tmp_path: Path) -> None:
        dataset = dataset_of(noise_split(tmp_path))
        images, (target,) = to_device(collate([dataset[5]]), torch.device("cpu"), ignored=True)
        assert images.shape == (1, 3, 16, 16)
        assert [tuple(tensor.shape) for tensor in target.values()] == [(0, 4), (0,), (0, 4)]

    @pytest.mark.parametrize("ignored", [True, False])
    @each_device
    def test_what_comes_to_the_device(self, tmp_path: Path, device: str, ignored: bool) -> None:
        dataset = dataset_of(noise_split(tmp_path), flip=True)
        batch = collate([dataset[index] for index in (0, 5, 3)])
        images, targets = to_device(batch, torch.device(device), ignored=ignored)
        assert torch.equal(images.cpu(), batch.images)
        assert len(targets) == 3
        names = ("boxes", "labels", "ignored") if ignored else ("boxes", "labels")
        for target, expected in zip(targets, batch.targets, strict=True):
            assert tuple(target) == names
            for name in names:
                tensor, own = target[name], expected[name]  # type: ignore[literal-required]
                assert (tensor.dtype, tensor.device.type) == (own.dtype, device)
                assert tensor.is_contiguous()
                assert torch.equal(tensor.cpu(), own)

    @pytest.mark.parametrize("kind", [on_gpu("none"), on_gpu("device")])
    def test_nothing_waits_for_a_gpu(self, tmp_path: Path, kind: CacheKind) -> None:
        split, device = noise_split(tmp_path), torch.device("cuda")
        dataset = dataset_of(split, flip=True, cache=CacheOptions(kind, None, device))
        plain = dataset_of(split, flip=True)
        plan = BatchPlan(6, 3, seed=1)
        for epoch in range(2):
            batches = make_loader(dataset, plan.epoch_batches(epoch), pin_memory=True)
            for batch, other in zip(batches, make_loader(plain, plan.epoch_batches(epoch)), strict=True):
                assert batch.images.is_pinned() or not len(batch.images)
                assert batch.objects.is_pinned()
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    images, targets = to_device(batch, device, ignored=True)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                assert torch.equal(images.cpu(), other.images)
                assert all(
                    torch.equal(a["boxes"].cpu(), b["boxes"]) for a, b in zip(targets, other.targets, strict=True)
                )

    def test_workers_change_nothing(self, tmp_path: Path) -> None:
        split = noise_split(tmp_path)
        TestUnreadable().damage(split, 2)
        plan = BatchPlan(len(split.records), 4, seed=3)
        before = torch.get_rng_state()
        here, there = dataset_of(split, flip=True), dataset_of(split, flip=True)
        alone = list(make_loader(here, plan.epoch_batches(1)))
        with_workers = list(make_loader(there, plan.epoch_batches(1), workers=2, timeout=60))
        assert torch.equal(torch.get_rng_state(), before)  # else resuming would change what follows
        assert len(alone) == len(with_workers) == 2
        for one, other in zip(alone, with_workers, strict=True):
            assert_same_batch(one, other)
        assert [target["index"] for batch in alone for target in batch.targets] == [
            3 if index == 2 else index for step in range(2) for index in plan.indices(1, step)
        ]
        assert here.unreadable == there.unreadable == [2]  # the main process knows what its workers met
        tail = list(make_loader(here, plan.epoch_batches(1, start_step=1)))
        assert len(tail) == 1
        assert_same_batch(tail[0], alone[1])

    def test_evaluation_batches(self, tmp_path: Path) -> None:
        dataset = dataset_of(noise_split(tmp_path))
        batches = list(make_loader(dataset, shard_batches(6, 4)))
        assert [len(batch.targets) for batch in batches] == [4, 2]
        assert [target["index"] for batch in batches for target in batch.targets] == list(range(6))

    def test_f15_a_hang_would_be_noticed(self, tmp_path: Path) -> None:
        dataset = dataset_of(noise_split(tmp_path))
        assert make_loader(dataset, shard_batches(6, 2), workers=1).timeout == 300
        assert make_loader(dataset, shard_batches(6, 2)).timeout == 0
        with pytest.raises(ValueError, match="timeout must be over 0 seconds"):
            make_loader(dataset, shard_batches(6, 2), workers=1, timeout=0)

    def test_only_batches_for_a_gpu_are_pinned(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = dataset_of(noise_split(tmp_path))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a run may stay on the CPU all the same
        assert not make_loader(dataset, shard_batches(6, 2)).pin_memory
        assert make_loader(dataset, shard_batches(6, 2), pin_memory=True).pin_memory


@pytest.mark.shared_data
def test_real_images_keep_their_boxes() -> None:
    from zoominnet.data.splits import open_split

    folder = SHARED / "data" / "visdrone-mini"
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    split = open_split(folder, "val")
    dataset = dataset_of(split, size=256, flip=True)
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        record, target = split.records[index], dataset[4, index].target
        assert target["image_id"] == record.image_id
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 256)).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        # a few roundings of float32 at 2000 px
        torch.testing.assert_close(
            target["geometry"].to_original(target["boxes"]), torch.from_numpy(record.boxes), rtol=0, atol=1e-3
        )
