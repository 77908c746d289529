"""Dividing one split into a part to train on and one to validate on."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from zoominnet.data import DataError, DataReport, ImageRecord, Split, divide_split, open_split
from zoominnet.data.holdout import scene_of

ROOT = Path("data")
NO_SCENES = "divided image by image: the names tell no scenes"


def split_of(names: list[str]) -> Split:
    records = [ImageRecord(ROOT / name, index, 10, 10) for index, name in enumerate(names, start=1)]
    return Split("all", records, ("car",), (0,), DataReport(), image_root=ROOT)


def ids(split: Split) -> list[int]:
    return [record.image_id for record in split.records]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0000006_00159_d_0000001.jpg", "0000006_00611_d_0000002.jpg", True),  # VisDrone-DET
        ("0000006_00159_d_0000001.jpg", "0000007_00159_d_0000001.jpg", False),
        ("uav01/0000001.jpg", "uav01/0000777.jpg", True),
        ("uav01/0000001.jpg", "uav02/0000001.jpg", False),
        ("M0101/img000001.jpg", "M0101/img000002.jpg", True),
        ("park_frame12.png", "park_frame13.png", True),
        ("park_frame12.png", "lake_frame12.png", False),
        ("0_100_30_0_03306.jpg", "0_100_30_0_08087.jpg", True),  # HIT-UAV
        ("0_100_30_0_03306.jpg", "0_100_40_0_03306.jpg", False),
        ("street_jpg.rf.0a1b.jpg", "street_jpg.rf.9c8d.jpg", True),  # Roboflow's versions of one photograph
        ("street_jpg.rf.0a1b.jpg", "road_jpg.rf.0a1b.jpg", False),
        ("000000000139.jpg", "000000000285.jpg", False),  # COCO
        ("a.jpg", "b.jpg", False),
    ],
)
def test_what_names_say_of_scenes(one: str, other: str, same: bool) -> None:
    scenes = [scene_of(ImageRecord(ROOT / name, 1, 10, 10), ROOT) for name in (one, other)]
    assert (scenes[0] == scenes[1]) == same


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_scenes_are_whole_and_both_parts_hold_something(sizes: list[int], fraction: float, seed: int) -> None:
    names = [f"scene{chr(97 + scene)}_{frame:03d}.jpg" for scene, size in enumerate(sizes) for frame in range(size)]
    train, val = divide_split(split_of(names), fraction, seed)
    assert (train.name, val.name) == ("train", "val")
    assert sorted(ids(train) + ids(val)) == list(range(1, len(names) + 1))
    assert ids(train) == sorted(ids(train))
    assert ids(val) == sorted(ids(val))
    assert train.records
    assert val.records
    if max(sizes) > 1:
        scenes = [{record.path.name[:6] for record in part.records if record.path} for part in (train, val)]
        assert not scenes[0] & scenes[1]
    # no scene added or taken away would bring the share nearer, by more than one scene
    assert abs(len(val.records) - fraction * len(names)) <= max(sizes)
    assert [ids(part) for part in divide_split(split_of(names), fraction, seed)] == [ids(train), ids(val)]


def test_another_seed_gives_other_parts_of_the_same_size() -> None:
    names = [f"{index:05d}.jpg" for index in range(100)]
    parts = [divide_split(split_of(names), 0.2, seed)[1] for seed in range(5)]
    assert {len(part.records) for part in parts} == {20}
    assert len({tuple(ids(part)) for part in parts}) == 5


def test_names_that_tell_no_scenes_are_said(tmp_path: Path) -> None:
    for names in ([f"DJI_{index:04d}.jpg" for index in range(10)], [f"{index}.jpg" for index in range(10)]):
        train, val = divide_split(split_of(names), 0.2, 0)
        assert (len(train.records), len(val.records)) == (8, 2)
        assert train.report.counts == {NO_SCENES: 1}
        assert not val.report
    assert not divide_split(split_of(["a_1.jpg", "a_2.jpg", "b_1.jpg"]), 0.4, 0)[0].report


def test_what_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"'all' has one image: nothing to divide"):
        divide_split(split_of(["a.jpg"]), 0.5, 0)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match=r"--val-fraction\): .* is not over 0 and below 1"):
            divide_split(split_of(["a.jpg", "b.jpg"]), fraction, 0)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "split", "scenes"), [("hit-uav", "val", True), ("coco128", "val", False)])
def test_the_real_data_sets_of_one_split(name: str, split: str, scenes: bool) -> None:
    whole = open_split(shared(name), split)
    train, val = divide_split(whole, 0.2, 0)
    assert abs(len(val.records) / len(whole.records) - 0.2) < 0.02
    assert (NO_SCENES in train.report.counts) == (not scenes)
    if scenes:
        # weather_altitude_angle_object_number.jpg
        flights = [
            {record.path.stem.rpartition("_")[0] for record in part.records if record.path} for part in (train, val)
        ]
        assert not flights[0] & flights[1]
