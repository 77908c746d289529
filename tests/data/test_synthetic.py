"""The synthetic scenes: same everywhere, annotated as they are painted, and of the promised make-up."""

from __future__ import annotations

import copy
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from zoominnet.data.dataset import DetectionDataset, make_loader
from zoominnet.data.plan import BatchPlan, keyed_rng
from zoominnet.data.records import ANY_CLASS, VISDRONE_CLASSES, ImageRecord
from zoominnet.data.synthetic import SyntheticScenes
from zoominnet.data.synthetic.geometry import (
    Arrays,
    Camera,
    Objects,
    Polygons,
    extents,
    pixel_lists,
    place_polygons,
    visible_shares,
)
from zoominnet.data.synthetic.layout import CLUTTER, MAX_HIDDEN, MIN_INSIDE, OTHER, Scene, make_scene
from zoominnet.data.synthetic.models import MODELS, Role
from zoominnet.data.synthetic.render import _paint_ground, render


@pytest.fixture(scope="module")
def scenes() -> SyntheticScenes:
    return SyntheticScenes(100, size=512, seed=3)


@pytest.fixture(scope="module")
def records(scenes: SyntheticScenes) -> list[ImageRecord]:
    return list(scenes)


@pytest.fixture(scope="module")
def some_scenes() -> list[Scene]:
    return [make_scene(keyed_rng(99, index), density=1, empty=False) for index in range(8)]


def same(one: ImageRecord, other: ImageRecord) -> bool:
    arrays = ("boxes", "labels", "ignored", "ignored_labels")
    return one.image_id == other.image_id and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


class TestDeterminism:
    @pytest.mark.slow
    def test_the_order_of_asking_does_not_matter(self, scenes: SyntheticScenes, records: list[ImageRecord]) -> None:
        fresh = SyntheticScenes(500, size=512, seed=3)
        for index in (17, 4, 17, 0):
            image = fresh.render(records[index])  # before its record was asked for
            assert torch.equal(image, scenes.render(records[index]))
            assert same(fresh[index], records[index])

    @pytest.mark.slow
    def test_other_processes_see_the_same(self, scenes: SyntheticScenes, records: list[ImageRecord]) -> None:
        code = (
            "import zlib; from zoominnet.data.synthetic import SyntheticScenes as S; s = S(9, size=512, seed=3);"
            "print(zlib.crc32(s.render(s[5]).numpy().tobytes()), zlib.crc32(s[5].boxes.tobytes()))"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        image, boxes = scenes.render(records[5]).numpy(), records[5].boxes
        assert found.stdout.split() == [str(zlib.crc32(image.tobytes())), str(zlib.crc32(boxes.tobytes()))]

    def test_seed_split_and_index_each_matter(self) -> None:
        base = SyntheticScenes(3, size=64, seed=0)
        images = [
            base.render(base[0]),
            base.render(base[1]),
            SyntheticScenes(3, size=64, seed=1).render(base[0]),
            SyntheticScenes(3, size=64, seed=0, split="val").render(base[0]),
        ]
        for first in range(4):
            for second in range(first):
                assert not torch.equal(images[first], images[second])

    def test_global_random_state_is_left_alone(self) -> None:
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        scenes = SyntheticScenes(1, size=64)
        scenes.render(scenes[0])
        assert torch.equal(torch.get_rng_state(), torch_before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002

    def test_annotations_scale_with_the_image(self, records: list[ImageRecord]) -> None:
        large = SyntheticScenes(3, size=1024, seed=3)
        for index in range(3):
            assert np.array_equal(large[index].labels, records[index].labels)
            np.testing.assert_array_equal(large[index].boxes, 2 * records[index].boxes)
        small = SyntheticScenes(3, size=64, seed=3)[2]
        sides = small.boxes[:, 2:] - small.boxes[:, :2]
        assert (sides >= 1).all()
        at_512 = records[2].boxes[:, 2:] - records[2].boxes[:, :2]
        assert 0 < len(small.boxes) == (at_512 >= 8).all(axis=1).sum() < len(records[2].boxes)

    def test_the_picture_is_the_same_scene_at_another_size(self, scenes: SyntheticScenes) -> None:
        large = SyntheticScenes(3, size=1024, seed=3)
        halved = large.render(large[0]).float().view(3, 512, 2, 512, 2).mean((2, 4))
        correlation = torch.corrcoef(torch.stack([halved.flatten(), scenes.render(scenes[0]).float().flatten()]))[0, 1]
        assert correlation > 0.9


class TestContents:
    def test_counts(self, records: list[ImageRecord]) -> None:
        counts = np.array([len(record.labels) for record in records])
        assert (counts == 0).sum() in range(1, 10)  # 3 % of 100: binomial, over 99.9 %
        assert counts[counts > 0].min() >= 20
        assert counts.max() <= 500
        assert counts.max() > 150
        assert np.median(counts) > 35

    def test_classes(self, records: list[ImageRecord]) -> None:
        labels = np.concatenate([record.labels for record in records])
        shares = np.bincount(labels, minlength=10) / len(labels)
        by_name = dict(zip(VISDRONE_CLASSES, shares, strict=True))
        assert len(shares) == 10
        assert min(shares) > 0.003  # all there, unbalanced as in VisDrone
        assert by_name["pedestrian"] + by_name["car"] > 0.4
        assert max(by_name["bus"], by_name["truck"], by_name["tricycle"], by_name["awning-tricycle"]) < 0.06

    def test_sizes(self, records: list[ImageRecord]) -> None:
        boxes = np.concatenate([record.boxes for record in records])
        sides = boxes[:, 2:] - boxes[:, :2]
        # 3 to 60 px; the bounds are met before the multiplication by 512
        assert sides.min() >= 3 - 1e-4
        assert sides.max() <= 60 + 1e-4
        assert boxes.min() >= 0
        assert boxes.max() <= 512
        areas = sides.prod(axis=1)
        assert (areas < 16**2).mean() > 0.5  # mostly small
        assert (areas > 32**2).mean() > 0.02

    def test_form_of_the_records(self, scenes: SyntheticScenes, records: list[ImageRecord]) -> None:
        assert [record.image_id for record in records] == list(range(100))
        for record in records:
            assert record.path is None
            assert (record.width, record.height) == (512, 512)
            assert (record.boxes.dtype, record.labels.dtype) == (np.float32, np.int64)
            assert record.boxes.shape == (len(record.labels), 4)
            assert record.ignored.shape == (len(record.ignored_labels), 4)
            assert record.ignored.dtype == np.float32
            assert (record.ignored_labels == ANY_CLASS).all()
            assert (record.ignored[:, 2:] - record.ignored[:, :2] >= 1).all()
        split = scenes.split()
        assert split.class_names == VISDRONE_CLASSES
        assert split.category_ids == tuple(range(1, 11))
        assert not split.report
        assert scenes[-1].image_id == 99
        assert [record.image_id for record in scenes[5:8]] == [5, 6, 7]
        with pytest.raises(IndexError):
            scenes[100]

    def test_ignored_regions_hold_objects_that_are_not_annotated(self, some_scenes: list[Scene]) -> None:
        hidden = 0
        for scene in some_scenes:
            assert len(scene.ignored) - (scene.objects.labels == OTHER).sum() <= 3
            unannotated = (scene.objects.labels >= 0).sum() - len(scene.labels)
            hidden += unannotated
            if not len(scene.ignored):
                assert unannotated == 0
        assert hidden > 20

    def test_images_without_objects_show_none(self) -> None:
        for index in range(4):
            scene = make_scene(keyed_rng(98, index), density=1, empty=True)
            assert (scene.objects.labels == CLUTTER).all()
            assert len(scene.boxes) == len(scene.ignored) == 0

    def test_density_thins_the_objects(self) -> None:
        counts = [len(record.labels) for record in SyntheticScenes(20, size=128, density=0.25)]
        assert all(count == 0 or count >= 5 for count in counts)
        assert max(counts) <= 125
        assert np.median(counts) < 40

    @pytest.mark.parametrize("zoom", [2.0, 4.0, 6.0])
    def test_zoom_makes_objects_larger(self, zoom: float) -> None:
        records = list(SyntheticScenes(40, size=256, seed=3, zoom=zoom))
        boxes = np.concatenate([record.boxes for record in records])
        sides = boxes[:, 2:] - boxes[:, :2]
        # 3 to 60 px at 512 px, times zoom, at half that size
        assert sides.min() >= 1.5 * zoom - 1e-4
        assert sides.max() <= 30 * zoom + 1e-4
        counts = np.array([len(record.labels) for record in records])
        assert counts[counts > 0].min() >= max(1, round(20 / zoom**2))
        assert (counts == 0).sum() <= 6

    def test_a_zoomed_camera_sees_the_middle_of_the_same_world(self) -> None:
        """From the same place: the ground of the zoomed image is the middle of the wide one's, in more detail."""
        for index in range(3):
            wide = make_scene(keyed_rng(97, index), density=1, empty=True)
            near = make_scene(keyed_rng(97, index), density=1, empty=True, zoom=2)
            large, small = _paint_ground(wide, 512)[:, 128:384, 128:384], _paint_ground(near, 256)
            correlation = np.corrcoef(large.ravel(), small.ravel())[0, 1]
            assert correlation > 0.95

    def test_grouped_classes_are_the_ten_in_four(self) -> None:
        ten, four = SyntheticScenes(6, size=128, seed=1), SyntheticScenes(6, size=128, seed=1, classes="grouped")
        assert four.split().class_names == ("person", "cycle", "car", "truck or bus")
        assert four.split().category_ids == (1, 2, 3, 4)
        expected = [0, 0, 1, 2, 2, 3, 1, 1, 3, 1]  # by VisDrone's order: pedestrian, people, bicycle, car, ...
        for one, other in zip(ten, four, strict=True):
            assert np.array_equal(one.boxes, other.boxes)
            assert [expected[label] for label in one.labels] == other.labels.tolist()
        assert torch.equal(ten.render(ten[0]), four.render(four[0]))

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="classes are visdrone or grouped, got 'coarse'"):
            SyntheticScenes(3, classes="coarse")  # type: ignore[arg-type]
        for arguments in (
            *({"num_images": 0}, {"size": 31}, {"seed": -1}, {"density": 0.0}, {"density": 1.5}),
            *({"zoom": 0.5}, {"zoom": 7.0}),
        ):
            with pytest.raises(ValueError, match="SyntheticScenes: needs num_images >= 1"):
                SyntheticScenes(**({"num_images": 3} | arguments))  # type: ignore[arg-type]


def objects_of(model: str, x: float, y: float, yaw: float = 0.4, label: int = 0) -> Objects:
    return Objects(
        models=np.array([list(MODELS).index(model)]),
        positions=np.array([[x, y, 0]], dtype=np.float32),
        yaws=np.array([yaw], dtype=np.float32),
        scales=np.ones((1, 3), dtype=np.float32),
        labels=np.array([label]),
        colours=np.full((1, len(Role), 3), 128, dtype=np.float32),
    )


def joined(*objects: Objects) -> Objects:
    names = ("models", "positions", "yaws", "scales", "labels", "colours")
    return Objects(*(np.concatenate([getattr(one, name) for one in objects]) for name in names))


def camera_at(pitch: float, distance: float = 60.0) -> Camera:
    forward = np.array([0, np.cos(pitch), -np.sin(pitch)], dtype=np.float32)
    up = np.array([0, np.sin(pitch), np.cos(pitch)], dtype=np.float32)
    return Camera(-distance * forward, np.array([1, 0, 0], dtype=np.float32), up, forward, focal=1.0)


def paint(polygons: Polygons, size_px: int) -> np.ndarray:
    canvas = Image.new("L", (size_px, size_px), 0)
    draw = ImageDraw.Draw(canvas)
    for points, corners in zip(pixel_lists(polygons.image, size_px), polygons.corners.tolist(), strict=True):
        draw.polygon(points[: 2 * corners], fill=255)
    return np.asarray(canvas)


class TestGeometry:
    def test_camera_by_hand(self) -> None:
        camera = camera_at(np.pi / 2, distance=50)  # straight down from 50 m
        image, depth = camera.project(np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [10, 0, 25]]))
        np.testing.assert_allclose(image, [[0.5, 0.5], [0.7, 0.5], [0.5, 0.3], [0.9, 0.5]], atol=1e-6)
        np.testing.assert_allclose(depth, [50, 50, 50, 25], rtol=1e-6)

    def test_ground_is_where_it_is_seen(self) -> None:
        camera = camera_at(0.7)
        x, y, depth = camera.ground_at(np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.5, 0.8]))
        image, again = camera.project_ground(x, y)
        np.testing.assert_allclose(image, [[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]], atol=1e-5)
        np.testing.assert_allclose(again, depth, rtol=1e-5)

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("pitch", [0.6, 1.3])
    def test_boxes_are_tight(self, model: str, pitch: float) -> None:
        """The object alone, painted, reaches its box on all four sides and not beyond."""
        polygons = place_polygons(camera_at(pitch), objects_of(model, 3, -2))
        size_px = 4096
        rows, columns = np.nonzero(paint(polygons, size_px))
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        box = extents(polygons, 1)[0] * size_px
        assert (box[2:] - box[:2] > 3).all()
        # Pillow paints every pixel that the outline touches; 0.01 px for the rounding of float32
        over = np.concatenate((box[:2] - found[:2], found[2:] - box[2:]))
        assert (over > -0.01).all()
        assert (over < 1.01).all()

    @pytest.mark.parametrize("model", MODELS)
    def test_solids_face_outwards(self, model: str) -> None:
        """Leaving out the polygons that face away uncovers nothing: they are at the back of closed solids."""
        camera, objects = camera_at(0.8), objects_of(model, 0, 0)
        corners = MODELS[model].anchors + objects.positions[0]
        cos, sin = np.cos(objects.yaws[0]), np.sin(objects.yaws[0])
        turned = corners @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        turned += MODELS[model].billboard @ np.stack((camera.right, camera.up))
        image, _ = camera.project(turned)
        count = len(image)
        everything = Polygons(
            turned,
            image,
            turned[:, 0],
            MODELS[model].corners,
            MODELS[model].roles,
            MODELS[model].outline,
            np.zeros(count),
        )
        whole = paint(everything, 2048)
        front = paint(place_polygons(camera, objects), 2048)
        assert ((whole > 0) & (front == 0)).sum() <= 0.02 * (whole > 0).sum()

    @pytest.mark.parametrize("model", MODELS)
    def test_details_are_on_the_outside(self, model: str) -> None:
        """Windows, lamps and the like face away from the middle of what they are on, or upwards."""
        solid = MODELS[model]
        points = solid.anchors[~solid.outline & solid.one_sided]
        normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 1])
        level = np.abs(normals[:, 2]) < 1e-6
        assert (normals[~level, 2] > 0).all()
        assert ((normals * points.mean(axis=1))[level, :2].sum(axis=1) > 0).all()

    def test_hidden_shares_by_hand(self) -> None:
        camera = camera_at(np.pi / 2, distance=60)
        behind, car, beside = objects_of("bollard", 0, 0, 0), objects_of("bus", 0, 0, 0), objects_of("sedan", 15, 0, 0)
        objects = joined(behind, car, beside)
        polygons = place_polygons(camera, objects)
        np.testing.assert_allclose(visible_shares(polygons, np.array([True] * 3)), [0, 1, 1])
        assert visible_shares(polygons, np.array([False, False, True])).tolist() == [0, 0, 1]
        # A bus across one half of a container that is as wide: the container ends at x = 2.9, the bus at y = 1.25.
        half = joined(objects_of("container", 0, 0, 0), objects_of("bus", 4.5, 0, 0))
        share = visible_shares(place_polygons(camera, half), np.array([True, True]))
        np.testing.assert_allclose(share, [0.5, 1], atol=0.08)  # the bus is higher, and looms a little larger

    def test_no_annotated_object_is_mostly_hidden_or_outside(self, some_scenes: list[Scene]) -> None:
        cut = 0
        for scene in some_scenes:
            shares = visible_shares(scene.polygons, scene.objects.labels >= 0)
            boxes = extents(scene.polygons, len(scene.objects))
            annotated = {tuple(box) for box in scene.boxes.tolist()}
            for box, share, label in zip(boxes, shares, scene.objects.labels, strict=True):
                inside = np.clip(box, 0, 1)
                if label >= 0 and tuple(inside.tolist()) in annotated:
                    assert share >= 1 - MAX_HIDDEN
                    kept = np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
                    assert kept >= MIN_INSIDE - 1e-5
                    cut += kept < 0.99
        assert cut > 0

    def test_near_objects_are_painted_last(self, some_scenes: list[Scene]) -> None:
        for scene in some_scenes:
            distances = np.linalg.norm(scene.objects.positions[:, :2] - scene.camera.position[:2], axis=1)
            assert (np.diff(distances) <= 1e-4).all()  # rounding of float32 at 100 m
            assert (np.diff(scene.polygons.owners) >= 0).all()

    def test_no_two_objects_stand_in_one_place(self, some_scenes: list[Scene]) -> None:
        vehicles = [list(MODELS).index(name) for name in ("sedan", "hatchback", "van", "bus", "box truck")]
        for scene in some_scenes:
            spots = scene.objects.positions[np.isin(scene.objects.models, vehicles), :2]
            distances = np.linalg.norm(spots[:, None] - spots[None], axis=2) + 1e3 * np.eye(len(spots))
            assert distances.min(initial=1e3) > 1.5  # metres between middles, vehicles being 1.8 m wide

    def test_arrays_take(self) -> None:
        objects = joined(objects_of("sedan", 0, 0), objects_of("van", 1, 1))
        assert isinstance(objects, Arrays)
        assert objects.take(np.array([1])).models.tolist() == [list(MODELS).index("van")]
        assert len(objects.take(np.array([False, False]))) == 0


class TestPictures:
    def test_form(self, scenes: SyntheticScenes, records: list[ImageRecord]) -> None:
        image = scenes.render(records[0])
        assert image.shape == (3, 512, 512)
        assert image.dtype == torch.uint8

    def test_neither_dark_nor_flat(self) -> None:
        scenes = SyntheticScenes(12, size=128, seed=5)
        for record in scenes:
            image = scenes.render(record).float()
            assert 8 < image.mean() < 235
            assert image.std() > 5

    def test_ground_has_texture(self, some_scenes: list[Scene]) -> None:
        for scene in some_scenes[:4]:
            blocks = _paint_ground(scene, 256).mean(axis=0).reshape(16, 16, 16, 16)
            assert blocks.std(axis=(1, 3)).min() > 0.5  # grey levels

    def test_objects_cast_shadows(self, some_scenes: list[Scene]) -> None:
        """Some of the ground outside of all objects' boxes is darker than without them, and none of it brighter."""
        darker = []
        for scene in some_scenes[:4]:
            bare, full = (
                render(replace(scene, polygons=polygons), 512, np.random.default_rng(1)).astype(int)
                for polygons in (scene.polygons.take(np.zeros(0, dtype=np.int64)), scene.polygons)
            )
            outside = np.ones((512, 512), dtype=bool)
            for box in extents(scene.polygons, len(scene.objects)) * 512:
                x1, y1, x2, y2 = np.clip([*np.floor(box[:2] - 2), *np.ceil(box[2:] + 2)], 0, 512).astype(int)
                outside[y1:y2, x1:x2] = False
            change = (full - bare).mean(axis=0)[outside]
            assert change.max() <= 0
            darker.append((change < -5).mean())
        assert np.mean(darker) > 0.005

    def test_objects_are_painted_in_their_boxes(self, some_scenes: list[Scene]) -> None:
        """Without its objects a scene differs inside their boxes, and hardly elsewhere."""
        scene = some_scenes[0]
        nothing = scene.polygons.take(np.zeros(0, dtype=np.int64))
        unlit = [
            render(replace(scene, polygons=polygons), 512, np.random.default_rng(0)).astype(int)
            for polygons in (scene.polygons.take(scene.objects.labels[scene.polygons.owners] >= 0), nothing)
        ]
        changed = np.abs(unlit[0] - unlit[1]).max(axis=0) > 12
        for box in scene.boxes * 512:
            x1, y1 = np.floor(box[:2]).astype(int)
            x2, y2 = np.ceil(box[2:]).astype(int)
            assert changed[y1:y2, x1:x2].mean() > 0.2

    def test_resolution_matters(self) -> None:
        """Look-alike classes differ less once the image is halved: the detail that tells them apart is small."""
        scenes = SyntheticScenes(6, size=512, seed=2)
        lost = []
        for record in scenes:
            image = scenes.render(record).float().mean(0)
            coarse = torch.nn.functional.interpolate(
                torch.nn.functional.avg_pool2d(image[None, None], 2), scale_factor=2, mode="bilinear"
            )[0, 0]
            for x1, y1, x2, y2 in record.boxes.round().astype(int).tolist():
                patch = image[y1:y2, x1:x2]
                lost.append(float((patch - coarse[y1:y2, x1:x2]).var() / patch.var(correction=0).clamp(min=1)))
        assert np.median(lost) > 0.1


class TestInTheDataset:
    def test_batches_with_and_without_workers(self) -> None:
        split = SyntheticScenes(6, size=64, seed=1, density=0.2).split()
        dataset = DetectionDataset(split, 64, flip=True, seed=0)
        plan = BatchPlan(6, 3, seed=0)
        alone = list(make_loader(dataset, plan.epoch_batches(0)))
        fresh = DetectionDataset(SyntheticScenes(6, size=64, seed=1, density=0.2).split(), 64, flip=True, seed=0)
        with_workers = list(make_loader(fresh, plan.epoch_batches(0), workers=2, timeout=60))
        for one, other in zip(alone, with_workers, strict=True):
            assert torch.equal(one.images, other.images)
            for a, b in zip(one.targets, other.targets, strict=True):
                assert torch.equal(a["boxes"], b["boxes"])
                assert a["image_id"] == b["image_id"]

    def test_same_size_keeps_pixels_and_boxes(self) -> None:
        scenes = SyntheticScenes(3, size=64, seed=1)
        dataset = DetectionDataset(scenes.split(), 64, flip=False, seed=0)
        sample = dataset[2]
        assert torch.equal(sample.image, scenes.render(scenes[2]))
        assert torch.equal(sample.target["boxes"], torch.from_numpy(scenes[2].boxes))

    def test_survives_the_way_to_a_worker(self) -> None:
        scenes = SyntheticScenes(3, size=64, seed=1)
        sent = copy.deepcopy(scenes.split())  # by the same protocol
        assert torch.equal(sent.render(sent.records[1]), scenes.render(scenes[1]))
