"""COCO json files of objects, as many tools write them. Format: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoominnet.data.annotations import BOX_AROUND_A_POLYGON, BoxCollector, RecordList, box_around, finite_number
from zoominnet.data.images import OUTSIDE, ImageError, ImageHeader, inspect_images
from zoominnet.data.lookup import OF_ANOTHER_MACHINE, FileIndex, has_upload_hash, leads_elsewhere, plain_name
from zoominnet.data.records import ANY_CLASS, DataError, DataReport, ReadOptions, Split, SplitSource, split_kind

ANY_CLASS_KEY = "any_class"
"""COCO knows no region that holds for every class: such a region is written once a class, each copy with this key."""
_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"
_KEYS = ("images", "annotations", "categories")
_MAX_JSONS = 16  # a folder of more has one for each image, which is not COCO's way
_INT64_MAX = 2**63 - 1
_NAMES_TRIED = 64
_QUOTED_CHARACTERS = 120

Id = int | str
Box = tuple[float, float, float, float]


def find(path: Path) -> list[SplitSource]:
    """The json file at `path` itself, or each `instances_<split>.json` in the folder or in its `annotations/`, or
    each `_annotations.coco.json` (Roboflow) in the folder or one below."""
    if path.is_file():
        path = path.absolute()  # so that a json in the current folder still has its parent
        if path.name == _ROBOFLOW:
            return [SplitSource(path.parent.name, "coco", path.parent, path)]
        root = path.parents[1] if path.parent.name == "annotations" else path.parent
        return [SplitSource(path.stem.removeprefix(_PREFIX), "coco", root, path)]
    files = [file for folder in (path, path / "annotations") for file in sorted(folder.glob(f"{_PREFIX}*.json"))]
    files = [file for file in files if file.is_file()]  # a named pipe would be waited for
    sources = [SplitSource(file.stem.removeprefix(_PREFIX), "coco", path, file) for file in files]
    exports = [file for pattern in (_ROBOFLOW, f"*/{_ROBOFLOW}") for file in sorted(path.glob(pattern))]
    exports = [file for file in exports if file.is_file()]
    return sources + [SplitSource(file.parent.resolve().name, "coco", path, file) for file in exports]


def find_by_content(path: Path) -> list[SplitSource]:
    """The jsons of any name in the folder, its `annotations/` and its subfolders (one in each) that read as COCO's.

    For folders in which nothing else was found: what a json holds is a weaker sign than how a file is called.
    """
    sources = []
    for folder in (path, path / "annotations", path / "labels"):
        files = sorted(folder.glob("*.json"))
        if len(files) <= _MAX_JSONS:
            sources += [SplitSource(file.stem, "coco", path, file) for file in files if _reads_as_coco(file)]
    for folder in sorted(
        each for each in path.iterdir() if each.is_dir() and each.name not in ("annotations", "labels")
    ):
        files = list(folder.glob("*.json"))
        if len(files) == 1 and _reads_as_coco(files[0]):
            sources.append(SplitSource(folder.name, "coco", path, files[0]))
    return sources


def _reads_as_coco(path: Path) -> bool:
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return False
    return content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") and all(
        f'"{key}"'.encode() in content for key in _KEYS
    )


def read(source: SplitSource, report: DataReport, options: ReadOptions) -> Split:
    """Reads one split. Labels are the categories in the order of their ids, whatever these are.

    Crowds (`iscrowd`, or `ignore`) are ignored regions of their class. Image ids are the file's own. An annotation
    without a box gets the one around its polygons or its mask (RLE).

    Images are read upright, unless the json gives an image the size of its stored pixels and not of its upright ones:
    then its annotations were made on those, and it is read so.

    Raises:
        DataError: not such a json, or none of its images was found.
    """
    document = _load(source.annotations)
    categories = _without_unused_root(source, document, report)
    names, labels = _classes(source.annotations, categories, report)
    entries = _usable_images(source.annotations, document["images"], report)
    paths, image_root = _find_images(source, entries, report)
    annotations = _annotations_by_image(source.annotations, document, report)
    numbers = _image_numbers(source.annotations, document["images"], report)
    used = [name for name in entries if name in paths]
    headers = inspect_images(
        [paths[name] for name in used], source.root, decode=options.decode, max_pixels=options.max_pixels
    )
    records = RecordList(report, options)
    for name, header in zip(used, headers, strict=True):
        entry, path = entries[name], paths[name]
        if isinstance(header, ImageError):
            report.drop("image", header.verdict, str(header))
            continue
        as_stored = _was_labelled_as_stored(entry, header)
        if as_stored is None:
            found = f"{header.width}x{header.height} px, in {source.annotations.name} {_size_text(entry)}"
            report.drop("image", "image size differs from the json", f"{path}: {found}")
            continue
        width, height = header.stored_size if as_stored else header[:2]
        boxes = BoxCollector(width, height, report)
        key = _id(entry["id"])
        assert key is not None
        _add_annotations(boxes, annotations[key], labels)
        records.add(path, numbers[key], header, boxes, as_stored=as_stored)
    return Split(source.name, records.records, tuple(names.values()), tuple(names), report, image_root=image_root)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from error
    for key in _KEYS:
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{path}: not a COCO json of objects: it has no list named {key!r}")
    return document


def _quote(value: object) -> str:
    return json.dumps(value)[:_QUOTED_CHARACTERS]


# ids and numbers, as different writers put them


def _id(value: object) -> Id | None:
    """An id, the same for 7, 7.0 (pandas), "7" and "007"; other texts stay as they are. None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, str):
        text = value.strip()
        whole = re.fullmatch(r"(-?[0-9]{1,19})(\.0+)?", text)
        value = int(whole[1]) if whole else text or None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64_MAX <= value <= _INT64_MAX:
        return value
    return None


def _note_id(value: object, report: DataReport, place: str) -> None:
    if isinstance(value, float | str):
        report.note("id written as a float or a string", place)


def _number(value: object) -> float | None:
    """A finite number, also where it is written as a string; None for anything else."""
    if isinstance(value, str):
        return finite_number(value.strip())
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if abs(value) < float("inf") else None
    except OverflowError:
        return None


def _flag(value: object) -> bool | None:
    """A flag that is 0 or 1, true or false, or missing; None for anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", ""):
        return value.strip().lower() == "true"
    if isinstance(value, float) and math.isnan(value):  # pandas' way to leave it out
        return False
    number = _number(value)
    return None if number is None else number != 0


# categories


def _without_unused_root(source: SplitSource, document: dict[str, list[Any]], report: DataReport) -> list[Any]:
    """The categories without the root that Roboflow puts above them, where none of the export's splits uses it."""
    categories = [category for category in document["categories"] if isinstance(category, dict)]
    if source.annotations.name != _ROBOFLOW or len(categories) < len(document["categories"]):
        return document["categories"]
    parents = {
        category.get("supercategory") for category in categories if isinstance(category.get("supercategory"), str)
    }
    roots = [
        category
        for category in categories
        if category.get("supercategory") in (None, "", "none") and category.get("name") in parents - {"none", ""}
    ]
    used = _categories_with_boxes(document)
    if roots and any(_id(root.get("id")) not in used for root in roots):
        for sibling in source.annotations.parents[1].glob(f"*/{_ROBOFLOW}"):
            if sibling.resolve() != source.annotations.resolve():
                try:
                    used |= _categories_with_boxes(_load(sibling))
                except (DataError, OSError):  # told where that split is read
                    continue
    unused = [root for root in roots if _id(root.get("id")) not in used]
    for root in unused:
        place = f"{source.annotations}: categories: {_quote(root)}"
        report.note("root category left out: no box has it in any split", place)
    return [category for category in categories if category not in unused]


def _categories_with_boxes(document: dict[str, list[Any]]) -> set[Id | None]:
    return {_id(each.get("category_id")) for each in document["annotations"] if isinstance(each, dict)}


def _classes(path: Path, categories: list[Any], report: DataReport) -> tuple[dict[int, str], dict[Id, int]]:
    """The names by category number, ascending, and the label of each category as the file calls it."""
    names: dict[Id, str] = {}
    for category in categories:
        key = _id(category.get("id")) if isinstance(category, dict) else None
        if key is None or not isinstance(category.get("name"), str):
            raise DataError(f"{path}: categories: {_quote(category)} needs an id and a name")
        if key in names:
            raise DataError(f"{path}: categories: the id {key} is there twice: number them apart")
        if category["name"] in names.values():
            raise DataError(
                f"{path}: categories: the name {category['name']!r} is there twice: rename one, or merge them"
            )
        names[key] = category["name"]
        _note_id(category["id"], report, f"{path}: categories: {_quote(category)}")
    if not names:
        raise DataError(f"{path}: categories: the list is empty: name the classes")
    numbers: dict[Id, int] = {key: key for key in names if isinstance(key, int)}
    if len(numbers) < len(names):
        report.note("category ids that are no numbers: numbered in their order", str(path))
        numbers = {key: place for place, key in enumerate(sorted(names, key=str), start=1)}
    in_order = sorted(names, key=numbers.__getitem__)
    return {numbers[key]: names[key] for key in in_order}, {key: label for label, key in enumerate(in_order)}


# images


def _usable_images(path: Path, entries: list[Any], report: DataReport) -> dict[str, dict[str, Any]]:
    """The entries that name one image each, by file name (with slashes), sorted."""
    by_name: dict[str, dict[str, Any]] = {}
    names_by_id: dict[Id, set[str]] = defaultdict(set)
    for index, entry in enumerate(entries):
        file_name = entry.get("file_name") if isinstance(entry, dict) else None
        key = _id(entry.get("id")) if isinstance(entry, dict) else None
        if not isinstance(file_name, str) or "\0" in file_name or key is None:
            report.drop("image", "malformed image entry", f"{path}: images[{index}]: {_quote(entry)}")
            continue
        name = Path(plain_name(file_name)).as_posix()
        names_by_id[key].add(name)
        if name in by_name:
            report.drop("file", "duplicate image entry", f"{path}: images[{index}]: {_quote(entry)}")
            continue
        by_name[name] = entry
        _note_id(entry["id"], report, f"{path}: images[{index}]: {_quote(entry)}")
    usable = {}
    for name, entry in sorted(by_name.items()):
        if len(names_by_id[_id(entry["id"]) or 0]) > 1:  # whose the annotations are cannot be known
            report.drop("image", "image id of several images", f"{path}: id {entry['id']}: {name}")
        else:
            usable[name] = entry
    return usable


def _image_numbers(path: Path, entries: list[Any], report: DataReport) -> dict[Id, int]:
    """The number of each image: its id, or where not all ids are numbers its place in the json, from 1."""
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _id(entry.get("id"))) is not None]
    if all(isinstance(key, int) for key in keys):
        return {key: key for key in keys if isinstance(key, int)}
    report.note("image ids that are no numbers: numbered by their place", str(path))
    return {key: place for place, key in enumerate(dict.fromkeys(keys), start=1)}


def _find_images(
    source: SplitSource, entries: dict[str, dict[str, Any]], report: DataReport
) -> tuple[dict[str, Path], Path]:
    """The path of each image by its name in `entries`, and a folder that holds them all.

    Names are relative to one folder, where most of the images are. Names that lead elsewhere (paths of another machine,
    addresses), and all names where none is found so, are looked for by their last parts below the data folder.

    Raises:
        DataError: not one of them was found.
    """
    names = list(entries)
    folder, searched = _image_folder(source, names)
    index = FileIndex(source.root, split_kind(source.name))
    paths: dict[str, Path] = {}
    guesses: defaultdict[Path, list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        hashed = has_upload_hash(name) and folder is not None and not os.path.lexists(folder / name)
        if folder is not None and not leads_elsewhere(name) and not hashed:
            paths[name] = folder / name
        elif (guess := index.find(name)) is not None:
            guesses[guess[0]].append((guess[1], name))
    taken = {path.resolve() for path in paths.values()} if guesses else set()
    for path, candidates in guesses.items():
        most = max(shared for shared, _ in candidates)
        best = [name for shared, name in candidates if shared == most]
        if len(best) == 1 and path.resolve() not in taken:  # else whose image it is cannot be known
            paths[best[0]] = path
            report.note(OF_ANOTHER_MACHINE, f"{source.annotations}: {best[0]} read as {path}")
    if names and not paths:
        shown = ", ".join(dict.fromkeys(each.relative_to(source.root).as_posix() for each in searched))
        raise DataError(
            f"{source.annotations}: its images, such as {names[0]!r}, were not found in {shown} of {source.root}, nor one "
            "file of that name below: put them there, or name their folder (images=, --images)"
        )
    for name in names:
        if name not in paths:
            verdict = OUTSIDE if leads_elsewhere(name) else "image file missing"
            report.drop(
                "image", verdict, f"{source.annotations}: {name}: not one file of that name below {source.root}"
            )
    inside = folder is not None and all(path.is_relative_to(folder) for path in paths.values())
    return paths, folder if inside and folder is not None else source.root


def _image_folder(source: SplitSource, names: list[str]) -> tuple[Path | None, list[Path]]:
    """The folder in which most of the images are, None where there are none; and where they were looked for."""
    if source.images:
        folders = list(source.images)
    else:
        root, beside = source.root, source.annotations.parent
        called = [name for name in dict.fromkeys((source.name, split_kind(source.name))) if name is not None]
        folders = [beside] if source.annotations.name == _ROBOFLOW else []
        for name in called:
            folders += [root / "images" / name, root / name / "images", root / name, root / name / "data"]
        folders += [root / "images", root / "data", beside, root]
    inside = [name for name in names if not leads_elsewhere(name)]
    inside = inside[:: max(1, len(inside) // _NAMES_TRIED)]
    hits = {folder: sum(os.path.lexists(folder / name) for name in inside) for folder in folders}
    best = max(folders, key=hits.__getitem__)
    return (best if hits[best] else None), folders


def _was_labelled_as_stored(entry: dict[str, Any], header: ImageHeader) -> bool | None:
    """Whether the json's size is that of the stored pixels alone; None where it is neither that nor the upright one."""
    given = [_side(entry.get(side)) for side in ("width", "height")]

    def fits(size: Sequence[int]) -> bool:
        return all(side in (None, actual) for side, actual in zip(given, size, strict=True))

    if fits(header[:2]):
        return False
    return True if fits(header.stored_size) else None


def _side(value: object) -> object:
    """A side as a json gives it; None where it says nothing, as by 0, -1 or NaN."""
    number = _number(value)
    if number is None:
        return None if isinstance(value, float) or not value else value
    return number if number > 0 else None


def _size_text(entry: dict[str, Any]) -> str:
    return f"{entry.get('width')}x{entry.get('height')}"[:_QUOTED_CHARACTERS]


# annotations


def _annotations_by_image(
    path: Path, document: dict[str, list[Any]], report: DataReport
) -> defaultdict[Id, list[tuple[dict[str, Any], str]]]:
    entries = [entry for entry in document["images"] if isinstance(entry, dict)]
    known_ids = {_id(entry.get("id")) for entry in entries}
    ids_by_name = {
        entry["file_name"]: _id(entry.get("id")) for entry in entries if isinstance(entry.get("file_name"), str)
    }
    by_image: defaultdict[Id, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for index, annotation in enumerate(document["annotations"]):
        place = f"{path}: annotations[{index}]"
        if not isinstance(annotation, dict):
            report.drop("label", "malformed annotation", f"{place}: {_quote(annotation)}")
            continue
        image_id, category, box = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
        place += f": image_id {image_id!r}, category_id {category!r}, bbox {box!r}"[:_QUOTED_CHARACTERS]
        key = _id(image_id)
        if key not in known_ids and isinstance(image_id, str) and image_id in ids_by_name:
            key = ids_by_name[image_id]
            report.note("image named by its file, not by its id", place)
        if key is None or key not in known_ids:
            report.drop("label", "annotation of an unknown image", place)
        else:
            by_image[key].append((annotation, place))
    if document["annotations"] and not by_image:
        raise DataError(f"{path}: none of its {len(document['annotations'])} annotations belongs to one of its images")
    return by_image


def _add_annotations(
    boxes: BoxCollector, annotations: Iterable[tuple[dict[str, Any], str]], labels: dict[Id, int]
) -> None:
    any_class_regions = set()
    for annotation, place in annotations:
        category = _id(annotation.get("category_id"))
        if category is None or category not in labels:
            boxes.leave_out("unknown class", place)
            continue
        label = labels[category]
        flags = [_flag(annotation.get(key)) for key in ("iscrowd", "ignore", ANY_CLASS_KEY)]
        if None in flags:
            boxes.leave_out("malformed annotation", place)
            continue
        box = _box(annotation, boxes, place)
        if box is None:
            continue
        for key in ("image_id", "category_id"):
            if not isinstance(annotation[key], int):
                _note_id(annotation[key], boxes.report, place)
                break
        ignored = bool(flags[0] or flags[1])
        if ignored and flags[2]:
            if box in any_class_regions:
                continue
            any_class_regions.add(box)
            label = ANY_CLASS
        boxes.add(*box, label, place, ignored=ignored)


def _box(annotation: dict[str, Any], boxes: BoxCollector, place: str) -> Box | None:
    """The box of an annotation (top left corner and sides, px): its own, or the one around its segmentation."""
    given = annotation.get("bbox")
    verdict = "malformed annotation"
    box: Box | None = None
    if isinstance(given, list) and len(given) == 4:
        numbers = [_number(number) for number in given]
        known = [number for number in numbers if number is not None]
        if len(known) == 4:
            x, y, width, height = known
            box = (x, y, width, height)
            if any(isinstance(number, str) for number in given):
                boxes.report.note("number written as a string", place)
        else:
            verdict = "not a finite number"
    if box is not None and box[2] > 0 and box[3] > 0:
        return box
    segmentation = annotation.get("segmentation")
    if segmentation:
        around, kind = _box_of_segmentation(segmentation, (boxes.width, boxes.height))
        if around is not None:
            boxes.report.note(kind, place)
            return around
        verdict = "segmentation that cannot be read"
    if box is None:
        boxes.leave_out(verdict, place)
    return box


def _box_of_segmentation(segmentation: object, size: tuple[int, int]) -> tuple[Box | None, str]:
    """The box around all polygons, or around the mask, of one object in an image of `size` (width, height) px; and the
    note on it. None where it is neither."""
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation, size), "box around a mask (RLE)"
    if not isinstance(segmentation, list):
        return None, ""
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points: list[float] = []
    for polygon in polygons:
        numbers = [_number(number) for number in polygon] if isinstance(polygon, list) else [None]
        finite = [number for number in numbers if number is not None]
        if len(finite) < len(numbers) or len(numbers) % 2:
            return None, ""
        points += finite
    return (box_around(np.array(points, dtype=np.float64).reshape(-1, 2)) if points else None), BOX_AROUND_A_POLYGON


def _box_of_mask(rle: dict[Any, Any], size: tuple[int, int]) -> Box | None:
    """The box around a mask in COCO's run-length encoding, plain or compressed; None where it is not one of this size."""
    from pycocotools import mask

    counts = rle.get("counts")
    if rle.get("size") != [size[1], size[0]]:
        return None
    if isinstance(counts, list):
        whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            return None
        encoded = mask.frPyObjects({"size": [size[1], size[0]], "counts": counts}, size[1], size[0])
    elif isinstance(counts, str) and counts and all("0" <= character <= "o" for character in counts):
        encoded = {"size": [size[1], size[0]], "counts": counts.encode()}
    else:
        return None
    x, y, width, height = map(float, mask.toBbox(encoded))
    inside = min(x, y) >= 0 and x + width <= size[0] and y + height <= size[1]
    return (x, y, width, height) if inside and int(mask.area(encoded)) <= size[0] * size[1] else None
