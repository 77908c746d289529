"""Dividing one split into a part to train on and one to validate on, with whole scenes on one side."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from zoominnet.data.records import DataError, DataReport, ImageRecord, Split

# VisDrone-DET: 0000006_00159_d_0000001 is frame 159 of scene 6.
_VISDRONE_NAME = re.compile(r"^(\d{7})_\d+_d_\d+$")
# Roboflow writes several versions of one photograph: street_jpg.rf.3f2a...jpg.
_ROBOFLOW_VERSION = re.compile(r"_(?:jpe?g|png|bmp|webp)\.rf\.[0-9A-Za-z]+$", re.IGNORECASE)
_FRAME_NUMBER = re.compile(r"\d+$")


def divide_split(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divides `split` into "train" and "val" by a seeded draw; images of one scene or video fall on one side.

    A scene is what the names say: a folder of numbered frames, or what stands before the frame's number. Where the names
    tell no scenes the images are drawn one by one, and a note in the report says so.

    Args:
        split: of at least two images.
        fraction: share of the images wanted in "val", over 0 and below 1; whole scenes come near it.
        seed: 0 or greater; the same one gives the same parts.

    Returns:
        The part to train on, with the split's report, and the one to validate on, whose report is empty. Each keeps the
        order of its records.

    Raises:
        DataError: there are fewer than two images or scenes to divide, or `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise DataError(f"val fraction (--val-fraction): {fraction} is not over 0 and below 1")
    if len(split.records) < 2:
        raise DataError(f"split {split.name!r} has one image: nothing to divide by --val-fraction")
    scenes: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, record in enumerate(split.records):
        scenes[scene_of(record, split.image_root)].append(index)
    groups = list(scenes.values())
    if len(groups) == 1:
        groups = [[index] for index in range(len(split.records))]
    if len(groups) == len(split.records):
        place = f"{split.name}: {len(groups)} images; frames of one video may fall on both sides"
        split.report.note("divided image by image: the names tell no scenes", place)
    held_out = _draw(groups, fraction, seed)

    def part(name: str, *, held: bool, report: DataReport) -> Split:
        records = [record for index, record in enumerate(split.records) if (index in held_out) == held]
        return dataclasses.replace(split, name=name, records=records, report=report)

    train, val = part("train", held=False, report=split.report), part("val", held=True, report=DataReport())
    return train, val


def _draw(groups: list[list[int]], fraction: float, seed: int) -> set[int]:
    """Groups in a random order, each taken if that brings the number of images nearer to the one wanted."""
    wanted = fraction * sum(map(len, groups))
    held_out: set[int] = set()
    order = np.random.default_rng(seed).permutation(len(groups))
    for group in (groups[index] for index in order):
        if abs(len(held_out) + len(group) - wanted) < abs(len(held_out) - wanted):
            held_out.update(group)
    if not held_out:  # all of them are more than twice the number wanted
        held_out.update(sorted(groups, key=len)[0])
    if len(held_out) == sum(map(len, groups)):
        held_out.difference_update(groups[order[0]])
    return held_out


def scene_of(record: ImageRecord, image_root: Path | None) -> tuple[str, ...]:
    """What the name of an image says of its scene or video: equal for images that belong together."""
    if record.path is None or image_root is None:
        return (str(record.image_id),)
    name = record.path.relative_to(image_root)
    stem = _ROBOFLOW_VERSION.sub("", name.stem)
    folder = name.parent.parts
    if (visdrone := _VISDRONE_NAME.match(stem)) is not None:
        return (*folder, visdrone[1])
    before = _FRAME_NUMBER.sub("", stem)
    if before != stem and (before.strip("_-. ") or folder):
        return (*folder, before)
    return (*folder, stem)
