"""COCO json files of objects, read and written. Format: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoominnet.data.annotations import BoxCollector, note_orientation
from zoominnet.data.images import OUTSIDE, ImageError, inspect_images
from zoominnet.data.records import ANY_CLASS, DataError, DataReport, ImageRecord, Split, SplitSource

_PREFIX = "instances_"
_INT64_MAX = 2**63 - 1
_NAMES_TRIED = 64
_QUOTED_CHARACTERS = 120
# COCO knows no region that holds for every class: such a region is written once a class, each copy with this key.
_ANY_CLASS_KEY = "any_class"


def find(path: Path) -> list[SplitSource]:
    """The json file at `path` itself, or each `instances_<split>.json` in the folder or in its `annotations/`."""
    if path.is_file():
        path = path.absolute()  # so that a json in the current folder still has its parent
        root = path.parents[1] if path.parent.name == "annotations" else path.parent
        return [SplitSource(path.stem.removeprefix(_PREFIX), "coco", root, path)]
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob(f"{_PREFIX}*.json"))]
    return [SplitSource(file.stem.removeprefix(_PREFIX), "coco", path, file) for file in files]


def read(source: SplitSource, report: DataReport, *, decode: bool, max_pixels: int) -> Split:
    """Reads one split. Labels are the categories in the order of their ids, whatever these are.

    Crowds (`iscrowd`, or `ignore`) are ignored regions of their class. Image ids are the file's own.

    Raises:
        DataError: not such a json, or none of its images was found.
    """
    document = _load(source.annotations)
    names = _category_names(source.annotations, document["categories"])
    labels = {category: label for label, category in enumerate(names)}
    entries = _usable_images(source.annotations, document["images"], report)
    images = source.images or _image_folder(source, list(entries))
    known_ids = {entry["id"] for entry in document["images"] if isinstance(entry, dict) and _is_id(entry.get("id"))}
    annotations = _annotations_by_image(source.annotations, document["annotations"], known_ids, report)
    paths = [images / name for name in entries]
    headers = inspect_images(paths, source.root, decode=decode, max_pixels=max_pixels)
    records = []
    for entry, path, header in zip(entries.values(), paths, headers, strict=True):
        if isinstance(header, ImageError):
            report.add(header.verdict, str(header))
            continue
        width, height = entry.get("width"), entry.get("height")
        if width not in (None, header.width) or height not in (None, header.height):
            found = f"{header.width}x{header.height} px, in {source.annotations.name} {width}x{height}"
            report.add("image size differs from the json", f"{path}: {found}")
            continue
        note_orientation(path, header.orientation, report)
        boxes = BoxCollector(header.width, header.height, report)
        _add_annotations(boxes, annotations[entry["id"]], labels)
        records.append(boxes.record(path, entry["id"]))
    return Split(source.name, records, tuple(names.values()), tuple(names), report, image_root=images)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path}: not a COCO json of objects: it has no list named {key!r}")
    return document


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_INT64_MAX <= value <= _INT64_MAX


def _quote(value: object) -> str:
    return json.dumps(value)[:_QUOTED_CHARACTERS]


def _category_names(path: Path, categories: list[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        if not (isinstance(category, dict) and _is_id(category.get("id")) and isinstance(category.get("name"), str)):
            raise DataError(f"{path}: categories: {_quote(category)} needs an integer id and a name")
        if category["id"] in names:
            raise DataError(f"{path}: categories: the id {category['id']} is there twice: number them apart")
        if category["name"] in names.values():
            raise DataError(
                f"{path}: categories: the name {category['name']!r} is there twice: rename one, or merge them"
            )
        names[category["id"]] = category["name"]
    if not names:
        raise DataError(f"{path}: categories: the list is empty: name the classes")
    return dict(sorted(names.items()))


def _usable_images(path: Path, entries: list[Any], report: DataReport) -> dict[str, dict[str, Any]]:
    """The entries that name one image each, by file name, sorted."""
    by_name: dict[str, dict[str, Any]] = {}
    names_by_id: dict[int, set[str]] = defaultdict(set)
    for index, entry in enumerate(entries):
        place = f"{path}: images[{index}]: {_quote(entry)}"
        file_name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(file_name, str) or "\0" in file_name or not _is_id(entry.get("id")):
            report.add("malformed image entry", place)
            continue
        file = Path(file_name)
        if file.is_absolute() or ".." in file.parts:
            report.add(OUTSIDE, place)
            continue
        name = file.as_posix()
        names_by_id[entry["id"]].add(name)
        if name in by_name:
            report.add("duplicate image entry", place)
        else:
            by_name[name] = entry
    usable = {}
    for name, entry in sorted(by_name.items()):
        if len(names_by_id[entry["id"]]) > 1:  # whose the annotations are cannot be known
            report.add("image id of several images", f"{path}: id {entry['id']}: {name}")
        else:
            usable[name] = entry
    return usable


def _image_folder(source: SplitSource, names: list[str]) -> Path:
    """The folder in which most of the images are, of all where they may be expected."""
    root, split = source.root, source.name
    folders = [root / "images" / split, root / "images", root / split / "images", root / split]
    folders += [source.annotations.parent, root]
    tried = names[:_NAMES_TRIED]
    hits = {folder: sum(os.path.lexists(folder / name) for name in tried) for folder in folders}
    best = max(folders, key=hits.__getitem__)
    if names and not hits[best]:
        searched = ", ".join(dict.fromkeys(folder.relative_to(root).as_posix() for folder in folders))
        raise DataError(
            f"{source.annotations}: its images, such as {names[0]!r}, were not found in {searched} of {root}: "
            "put them there, or name their folder (images=, --images)"
        )
    return best


def _annotations_by_image(
    path: Path, annotations: list[Any], known_ids: set[int], report: DataReport
) -> defaultdict[int, list[tuple[dict[str, Any], str]]]:
    by_image: defaultdict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for index, annotation in enumerate(annotations):
        place = f"{path}: annotations[{index}]"
        if not isinstance(annotation, dict):
            report.add("malformed annotation", f"{place}: {_quote(annotation)}")
            continue
        image_id, category, box = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
        place += f": image_id {image_id!r}, category_id {category!r}, bbox {box!r}"[:_QUOTED_CHARACTERS]
        if not _is_id(image_id) or image_id not in known_ids:
            report.add("annotation of an unknown image", place)
        else:
            by_image[image_id].append((annotation, place))
    return by_image


def _add_annotations(
    boxes: BoxCollector, annotations: list[tuple[dict[str, Any], str]], labels: dict[int, int]
) -> None:
    any_class_regions = set()
    for annotation, place in annotations:
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            boxes.report.add("malformed annotation", place)
            continue
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in box):
            boxes.report.add("not a finite number", place)
            continue
        category = annotation.get("category_id")
        if not _is_id(category) or category not in labels:
            boxes.report.add("unknown class", place)
            continue
        label = labels[category]
        ignored = bool(annotation.get("iscrowd") or annotation.get("ignore"))
        if ignored and annotation.get(_ANY_CLASS_KEY):
            if tuple(box) in any_class_regions:
                continue
            any_class_regions.add(tuple(box))
            label = ANY_CLASS
        try:
            x, y, width, height = map(float, box)
        except OverflowError:
            boxes.report.add("not a finite number", place)
            continue
        boxes.add(x, y, width, height, label, place, ignored=ignored)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raises DataError if there is something at `path` that must not be overwritten."""
    if path.exists() and not overwrite:
        raise DataError(f"{path}: exists already: name another file, or pass --overwrite")


def write(split: Split, path: Path, *, overwrite: bool = False) -> None:
    """Writes a split as a COCO json that `read` reads back to the same records; no other file is touched.

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
        if record.path is None or split.image_root is None:
            raise DataError(f"split {split.name!r} has generated images: only images in files can be named in a json")
        name = record.path.relative_to(split.image_root).as_posix()
        images.append({"id": record.image_id, "file_name": name, "width": record.width, "height": record.height})
        for box, label in zip(record.boxes, record.labels, strict=True):
            add(record, box, int(label), iscrowd=0)
        for box, label in zip(record.ignored, record.ignored_labels, strict=True):
            if label == ANY_CLASS:
                for each in range(len(split.category_ids)):
                    add(record, box, each, iscrowd=1, **{_ANY_CLASS_KEY: 1})
            else:
                add(record, box, int(label), iscrowd=1)
    categories = [
        {"id": category, "name": name} for category, name in zip(split.category_ids, split.class_names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
