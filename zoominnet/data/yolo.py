"""YOLO folders: `images/` and `labels/` with one txt file an image, and the `data.yaml` that names the classes.

A line is `class x y w h`: a class number from 0, then the box's centre and sides as fractions of the image's width
and height. Format: https://docs.ultralytics.com/datasets/detect.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from zoominnet.data.annotations import BoxCollector, number_lines, read_text_file, read_text_records
from zoominnet.data.images import ImageError
from zoominnet.data.records import DataError, DataReport, Split, SplitSource

_COLUMNS = 5
_MAX_CLASSES = 10_000  # without a data.yaml one slip of a pen must not make a million classes


def find(path: Path) -> list[SplitSource]:
    """The splits that `data.yaml` names (`path` is it, or holds it), or else those that the folders show.

    Without a data.yaml these are `images/<split>` with `labels/<split>`, or `<split>/images` with `<split>/labels`;
    `path` may also be one split's folder, holding `images/` and `labels/`, or an `images/<split>` itself.

    Everything lies below the data.yaml's own folder, or, where the data.yaml itself is given and its `path:` names
    another folder, below that one: who gives a data set's folder would not expect it to send them elsewhere.

    Raises:
        DataError: the data.yaml cannot be read, or names a folder that does not exist there.
    """
    if path.is_file():
        return _find_by_yaml(path, may_lead_elsewhere=True)
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file():
            return _find_by_yaml(path / name, may_lead_elsewhere=False)
    return _find_by_folders(path, None)


def _find_by_folders(path: Path, classes: Path | None) -> list[SplitSource]:
    images, labels = path / "images", path / "labels"
    absolute = path.resolve()
    pairs = [(folder, labels / folder.name) for folder in _subfolders(images)]
    pairs += [(folder / "images", folder / "labels") for folder in _subfolders(path)]
    if not any(split_labels.is_dir() for _, split_labels in pairs):
        pairs = [(images, labels)]
        if absolute.parent.name == "images":
            pairs.append((path, absolute.parents[1] / "labels" / absolute.name))
    return [
        SplitSource(
            name=(folder.parent if folder.name == "images" else folder).resolve().name,
            format="yolo",
            root=absolute.parents[1] if folder == path else path,
            annotations=split_labels,
            images=folder,
            classes=classes,
        )
        for folder, split_labels in pairs
        if folder.is_dir() and split_labels.is_dir()
    ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _find_by_yaml(path: Path, *, may_lead_elsewhere: bool) -> list[SplitSource]:
    document = _load_yaml(path)
    base = Path(str(document.get("path") or "."))
    root = path.parent
    elsewhere = not (root / base).resolve().is_relative_to(root.resolve()) and (root / base).is_dir()
    if elsewhere and may_lead_elsewhere:
        root, base = root / base, Path(".")
    named = {split: document[split] for split in ("train", "val", "test") if document.get(split)}
    if not named:
        return _find_by_folders(root, path)
    sources = []
    for split, value in named.items():
        if not isinstance(value, str) or value.endswith(".txt"):
            raise DataError(f"{path}: {split}: {value!r} is not a folder of images: name one folder")
        try:
            images = _images_folder(path, root, base, value)
            sources.append(SplitSource(split, "yolo", root, _labels_folder(path, root, images), images, path))
        except DataError:
            if split != "test":  # often not handed on, though the data.yaml names it
                raise
    return sources


def _images_folder(path: Path, root: Path, base: Path, value: str) -> Path:
    # Exports name "../train/images" for the train/images beside the data.yaml: hence the name without "../" as well.
    for candidate in (root / base / value, root / value, root / value.removeprefix("../")):
        if candidate.is_dir() and candidate.resolve().is_relative_to(root.resolve()):
            return root / candidate.resolve().relative_to(root.resolve())
    if (root / base / value).is_dir():
        raise DataError(
            f"{path}: {root / base / value} lies outside {root}: give the data.yaml itself to follow its path:"
        )
    raise DataError(f"{path}: no folder {value!r} below {root}: correct it, relative to the data.yaml")


def _labels_folder(path: Path, root: Path, images: Path) -> Path:
    parts = list(images.relative_to(root).parts)
    if "images" not in parts:
        raise DataError(f"{path}: {images} has no folder named images in it: its labels belong in labels/ beside that")
    last = len(parts) - 1 - parts[::-1].index("images")
    labels = root.joinpath(*parts[:last], "labels", *parts[last + 1 :])
    if not labels.is_dir():
        raise DataError(f"{labels}: no such folder: the labels of {images} belong there")
    return labels


def read(source: SplitSource, report: DataReport, *, decode: bool, max_pixels: int) -> Split:
    """Reads one split. Without class names there are as many classes as the data set's labels show.

    Raises:
        DataError: there are no images, none of the txt files belongs to one, or the classes cannot be known.
    """
    names = _class_names(source.classes) if source.classes is not None else None
    if names is None:
        names = tuple(f"class{index}" for index in range(_largest_class(source) + 1))
        report.note("no class names", f"{source.annotations}: {len(names)} classes, from the largest number seen")
    add_line = partial(_add_line, len(names))
    if source.classes is not None and not source.classes.resolve().is_relative_to(source.root.resolve()):
        report.note("data folder named by the data.yaml", f"{source.classes}: path: {source.root}")
    records = read_text_records(
        source,
        report,
        decode=decode,
        max_pixels=max_pixels,
        separator=None,
        columns=_COLUMNS,
        add_line=add_line,
    )
    return Split(source.name, records, names, tuple(range(len(names))), report, image_root=source.images)


def _add_line(num_classes: int, boxes: BoxCollector, numbers: list[float], place: str) -> None:
    label, x_center, y_center, width, height = numbers
    if label not in range(num_classes):
        boxes.report.add("unknown class", place)
        return
    width, height = width * boxes.width, height * boxes.height
    x, y = x_center * boxes.width - width / 2, y_center * boxes.height - height / 2
    boxes.add(x, y, width, height, int(label), place, ignored=False)


def _largest_class(source: SplitSource) -> int:
    # All splits are looked through, for train and val must agree on the classes.
    labels, real_root = source.annotations, source.root.resolve()
    folder = labels.parent if labels.parent.name == "labels" else labels
    largest = -1
    for path in folder.rglob("*.txt"):
        try:
            content = read_text_file(path, real_root)
        except (ImageError, OSError):  # counted where its split is read
            continue
        for numbers, _ in number_lines(content, path, DataReport(), separator=None, columns=_COLUMNS):
            if numbers[0] in range(_MAX_CLASSES):
                largest = max(largest, int(numbers[0]))
    if largest < 0:
        raise DataError(f"{folder}: no labelled object and no data.yaml, so the classes are unknown: add a data.yaml")
    return largest


def _class_names(path: Path) -> tuple[str, ...] | None:
    document = _load_yaml(path)
    names = document.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{path}: names: the class numbers must be 0 to {len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    count = document.get("nc", len(names) if isinstance(names, list) else None)
    if names is None and count is None:
        return None
    if not isinstance(count, int) or not 0 < count <= _MAX_CLASSES:
        raise DataError(f"{path}: nc: {count!r} is not a number of classes from 1 to {_MAX_CLASSES}")
    if names is None:
        return tuple(f"class{index}" for index in range(count))
    if not isinstance(names, list) or len(names) != count:
        raise DataError(f"{path}: names: not a list of {count} names (nc)")
    texts = tuple(str(name) for name in names)
    if twice := [name for name in texts if texts.count(name) > 1]:
        raise DataError(f"{path}: names: {twice[0]!r} is there twice: rename one, or merge them")
    return texts


def _load_yaml(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a YAML file: {reason}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: not a YAML mapping: it needs train, val and names")
    return document
