"""Data sets written: COCO json, YOLO folders and VisDrone folders, each read back to the same boxes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml  # type: ignore[import-untyped]

from zoominnet.data.coco import ANY_CLASS_KEY
from zoominnet.data.images import read_image_header, turn_boxes_upright
from zoominnet.data.records import ANY_CLASS, VISDRONE_CLASSES, DataError, ImageRecord, Split, split_kind
from zoominnet.data.visdrone import CATEGORY_IDS

ImageFiles = Literal["copy", "link", "none"]
"""What becomes of the images: copied beside the labels, linked there (hard links: the same file twice), or neither."""


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Raises DataError if there is something at `path` that must not be overwritten; an empty folder may be."""
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if path.exists() and not overwrite and not empty:
        raise DataError(f"{path}: exists already: name another file or folder, or for a json pass --overwrite")


def write_coco(split: Split, path: Path, *, overwrite: bool = False) -> None:
    """Writes a split as a COCO json that `coco.read` reads back to the same records; no other file is touched.

    File names are relative to `split.image_root`. Ignored regions become crowds of their class, and of each class
    where they hold for any. The file appears whole or not at all.

    Raises:
        DataError: the file is there and `overwrite` is not set, or it cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    text = json.dumps(_document(split), allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _document(split: Split) -> dict[str, list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(record: ImageRecord, box: Any, label: int, **flags: int) -> None:
        x1, y1, x2, y2 = map(float, box)
        annotations.append(
            {
                "id": len(annotations) + 1,  # pycocotools takes an annotation with the id 0 for no match
                "image_id": record.image_id,
                "category_id": split.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                **flags,
            }
        )

    for record in split.records:
        name = _image_name(split, record).as_posix()
        images.append({"id": record.image_id, "file_name": name, "width": record.width, "height": record.height})
        for box, label in zip(record.boxes, record.labels, strict=True):
            add(record, box, int(label), iscrowd=0)
        for box, label in zip(record.ignored, record.ignored_labels, strict=True):
            if label == ANY_CLASS:
                for each in range(len(split.category_ids)):
                    add(record, box, each, iscrowd=1, **{ANY_CLASS_KEY: 1})
            else:
                add(record, box, int(label), iscrowd=1)
    categories = [
        {"id": category, "name": name} for category, name in zip(split.category_ids, split.class_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _image_name(split: Split, record: ImageRecord) -> Path:
    """The name of an image file relative to the folder that holds all of its split's."""
    if record.path is None or split.image_root is None:
        raise DataError(f"split {split.name!r} has generated images: only images in files can be converted")
    return record.path.relative_to(split.image_root)


def write_yolo(splits: Sequence[Split], folder: Path, *, image_files: ImageFiles = "copy") -> None:
    """Writes splits as `images/SPLIT`, `labels/SPLIT` and a data.yaml, which `yolo.read` reads back to the same boxes.

    Labels are of the upright images. Ignored regions are left out: YOLO's format has none. The folder appears whole or
    not at all; no image is changed.

    Args:
        splits: of the same classes.
        folder: new, or empty.
        image_files: as `ImageFiles` says.

    Raises:
        DataError: the folder holds something or cannot be written, or two images would share a txt file.
    """
    names = _folder_names(splits)
    kinds = [split_kind(split.name) for split in splits]
    if twice := [kind for kind in kinds if kind is not None and kinds.count(kind) > 1]:
        raise DataError(f"{folder}: two splits are called {twice[0]}: choose one by --split")
    if None in kinds and any(kinds):  # a data.yaml can name no such split, so that it would not be found again
        other = splits[kinds.index(None)].name
        raise DataError(f"{folder}: split {other!r} is neither train, val nor test: choose one by --split")

    def fill(root: Path) -> None:
        for split, name in zip(splits, names, strict=True):
            _write_text_split(split, root / "images" / name, root / "labels" / name, _yolo_lines, image_files)
        document: dict[str, Any] = {"path": "."}
        document |= {kind: f"images/{name}" for kind, name in zip(kinds, names, strict=True) if kind is not None}
        document["names"] = dict(enumerate(splits[0].class_names))
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        (root / "data.yaml").write_text(text, encoding="utf-8")

    _write_folder(folder, fill)


def write_visdrone(splits: Sequence[Split], folder: Path, *, image_files: ImageFiles = "copy") -> None:
    """Writes splits as `SPLIT/images` and `SPLIT/annotations`, which `visdrone.read` reads back to the same boxes.

    Labels are of the upright images. Ignored regions have a score of 0, and the category 0 where they hold for any class.

    Args:
        splits: whose boxes are all of classes that are VisDrone's.
        folder, image_files: as `write_yolo`.

    Raises:
        DataError: as `write_yolo`, or a box is of a class that is not VisDrone's.
    """
    used = {split.class_names[label] for split in splits for label in _labels_of(split) if label != ANY_CLASS}
    unknown = sorted(used - set(VISDRONE_CLASSES))
    if unknown:
        raise DataError(f"{folder}: VisDrone's format has no class {unknown[0]!r}, only {', '.join(VISDRONE_CLASSES)}")
    names = _folder_names(splits)

    def fill(root: Path) -> None:
        for split, name in zip(splits, names, strict=True):
            _write_text_split(split, root / name / "images", root / name / "annotations", _visdrone_lines, image_files)

    _write_folder(folder, fill)


def _labels_of(split: Split) -> set[int]:
    return {int(label) for record in split.records for label in (*record.labels, *record.ignored_labels)}


def _folder_names(splits: Sequence[Split]) -> list[str]:
    return [split.name.replace("/", "-") for split in splits]


def _write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside `folder`, then gives it that name."""
    refuse_existing(folder)
    if not folder.parent.is_dir():
        raise DataError(f"{folder}: cannot be written: there is no folder {folder.parent}; make it, or name another")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            fill(made)
            made.replace(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error


def _write_text_split(
    split: Split,
    images: Path,
    labels: Path,
    lines: Callable[[Split, ImageRecord], Iterable[str]],
    image_files: ImageFiles,
) -> None:
    written: dict[Path, Path] = {}
    labels.mkdir(parents=True)
    images.mkdir(parents=True)
    for record in split.records:
        name = _image_name(split, record)
        assert record.path is not None
        label = labels / name.with_suffix(".txt")
        if label in written:
            raise DataError(
                f"{record.path}: has the name of {written[label]} but for the suffix, so that both would have "
                "one txt file: rename one of them"
            )
        written[label] = record.path
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(f"{line}\n" for line in lines(split, _as_seen(record))), encoding="ascii")
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        if image_files == "copy":
            shutil.copyfile(record.path, images / name)
        elif image_files == "link":
            os.link(record.path.resolve(), images / name)  # of a symbolic link, what it leads to


def _as_seen(record: ImageRecord) -> ImageRecord:
    """The record with sizes and boxes of the upright image: txt files have no size to tell those of the stored one."""
    if not record.as_stored:
        return record
    assert record.path is not None
    header = read_image_header(record.path)
    boxes, ignored = (
        turn_boxes_upright(boxes, header.orientation, header.stored_size) for boxes in (record.boxes, record.ignored)
    )
    return dataclasses.replace(
        record, width=header.width, height=header.height, boxes=boxes, ignored=ignored, as_stored=False
    )


def _yolo_lines(split: Split, record: ImageRecord) -> Iterable[str]:
    size = np.array([record.width, record.height], dtype=np.float64)
    for box, label in zip(record.boxes.astype(np.float64), record.labels, strict=True):
        center, sides = (box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size
        yield " ".join([str(int(label)), *map(repr, (*center.tolist(), *sides.tolist()))])


def _visdrone_lines(split: Split, record: ImageRecord) -> Iterable[str]:
    category_of = dict(zip(VISDRONE_CLASSES, CATEGORY_IDS, strict=True))
    for boxes, labels, score in ((record.boxes, record.labels, 1), (record.ignored, record.ignored_labels, 0)):
        for box, label in zip(boxes.astype(np.float64), labels, strict=True):
            category = 0 if label == ANY_CLASS else category_of[split.class_names[label]]
            corner_and_sides = (*box[:2].tolist(), *(box[2:] - box[:2]).tolist())
            yield ",".join(
                [
                    *(f"{value:.0f}" if value.is_integer() else repr(value) for value in corner_and_sides),
                    str(score),
                    str(category),
                    "0",
                    "0",
                ]
            )
