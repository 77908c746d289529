"""YOLO folders: images with one txt file each, and the `data.yaml` that names the classes and the splits.

A line is `class x y w h`: a class number from 0, then the box's centre and sides as fractions of the image's width
and height. `class x1 y1 x2 y2 ...` is a polygon, of which the box around it is taken; a confidence and a track id may
stand behind either. Formats: https://docs.ultralytics.com/datasets (detect, segment, obb, pose).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]

from zoominnet.data.annotations import (
    BOX_AROUND_A_POLYGON,
    BoxCollector,
    LabelledImage,
    Line,
    box_around,
    number_lines,
    pair_by_name,
    read_text_file,
    read_text_records,
)
from zoominnet.data.images import IMAGE_SUFFIXES, ImageError, list_images
from zoominnet.data.lookup import OF_ANOTHER_MACHINE, FileIndex, leads_elsewhere, plain_name
from zoominnet.data.records import DataError, DataReport, ReadOptions, Split, SplitSource, split_kind

YAML_NAMES = ("data.yaml", "data.yml")
_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_BOX_FIELDS = 5
# Nothing of an object is further from the image than the image is wide: such numbers are px, or an id, not fractions.
_LARGEST_FRACTION, _LARGEST_POLYGON = 2.0, 1.1
_MAX_CLASSES = 10_000  # without a data.yaml one slip of a pen must not make a million classes


def find(path: Path) -> list[SplitSource]:
    """The splits that `data.yaml` names (`path` is it, or holds it), or else those that the folders show.

    A data.yaml may name, for each split, a folder of images, a txt file with an image a line, or a list of either.
    Without one the splits are `images/<split>` with `labels/<split>`, or `<split>/images` with `<split>/labels`, or
    folders whose images have their txt files beside them; `path` may also be one split's folder, or an
    `images/<split>` itself.

    Everything lies below the data.yaml's own folder, or, where the data.yaml itself is given and its `path:` names
    another folder, below that one: who gives a data set's folder would not expect it to send them elsewhere.

    Raises:
        DataError: the data.yaml cannot be read, or names something that does not exist there.
    """
    if path.is_file():
        return _find_by_yaml(path, may_lead_elsewhere=True)
    for name in YAML_NAMES:
        if (path / name).is_file():
            return _find_by_yaml(path / name, may_lead_elsewhere=False)
    others = [file for file in sorted(path.glob("*.y*ml")) if _is_data_yaml(file)]
    if len(others) == 1:
        return _find_by_yaml(others[0], may_lead_elsewhere=False)
    sources = _find_by_folders(path, None)
    if others:
        place = f"{path}: {', '.join(file.name for file in others)}"
        note = ("several data.yaml, none of them read: give the right one", place)
        sources = [replace(source, notes=(note,)) for source in sources]
    return sources


def _is_data_yaml(path: Path) -> bool:
    try:
        document = _load_yaml(path)
    except (DataError, OSError):
        return False
    return "names" in document and bool(document.keys() & set(_SPLIT_KEYS))


def _find_by_folders(path: Path, classes: Path | None) -> list[SplitSource]:
    images, labels = path / "images", path / "labels"
    absolute = path.resolve()
    pairs = [(folder, labels / folder.name) for folder in _subfolders(images)]
    pairs += [(folder / "images", folder / "labels") for folder in _subfolders(path)]
    if not any(split_labels.is_dir() for _, split_labels in pairs):
        pairs = [(images, labels)]
        if absolute.parent.name == "images":
            pairs.append((path, absolute.parents[1] / "labels" / absolute.name))
    pairs = [(folder, split_labels) for folder, split_labels in pairs if folder.is_dir() and split_labels.is_dir()]
    if not pairs:
        pairs = [(folder, folder) for folder in (*_subfolders(path), *_subfolders(images)) if _labels_beside(folder)]
        pairs = pairs or [(folder, folder) for folder in (path, images) if _labels_beside(folder)]
    return [
        SplitSource(
            name=(folder.parent if folder.name == "images" else folder).resolve().name,
            format="yolo",
            root=absolute.parents[1] if folder == path and split_labels != path else path,
            annotations=split_labels,
            images=(folder,),
            classes=classes,
        )
        for folder, split_labels in pairs
    ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _labels_beside(folder: Path) -> bool:
    """Whether a txt file in `folder` has the name of an image there, and the first one of these reads as YOLO's."""
    if not folder.is_dir():
        return False
    names = sorted(os.listdir(folder))
    images = {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    for name in names:
        path = folder / name
        if path.suffix != ".txt" or path.stem not in images:
            continue
        with path.open("rb") as file:
            fields = file.readline(4096).split()
        if fields:
            return len(fields) >= _BOX_FIELDS and fields[0].isdigit()
    return False


def _find_by_yaml(path: Path, *, may_lead_elsewhere: bool) -> list[SplitSource]:
    document = _load_yaml(path)
    root, base = _base_folder(path, plain_name(str(document.get("path") or ".")), may_lead_elsewhere)
    named = {split: document[split] for split in _SPLIT_KEYS if document.get(split)}
    if not named:
        return _find_by_folders(root, path)
    sources = []
    missing: dict[str, DataError] = {}
    for split, value in named.items():
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(
                f"{path}: {split}: {value!r} is not a folder of images, a txt file of images or a list of them"
            )
        notes: list[tuple[str, str]] = []
        try:
            images = tuple(_named_images(path, root, base, plain_name(entry), notes) for entry in entries)
            labels = _labels_folders(path, root, images)
        except DataError as error:  # often a data.yaml names splits that are not handed on
            missing[split] = error
            continue
        annotations = path if images[0].is_file() or len(images) > 1 else labels[images[0]] or path
        sources.append(SplitSource(split, "yolo", root, annotations, images, path, notes=tuple(notes)))
    if not sources:
        raise next(iter(missing.values()))
    guessed = [source.images for source in sources if source.notes and source.images]
    if twice := [images for images in guessed if guessed.count(images) > 1]:
        raise DataError(f"{path}: its paths of another machine lead to {twice[0][0]} for several splits: correct them")
    missing.pop("test", None)  # nobody trains on it or waits for it
    notes_of_missing = tuple(("split of the data.yaml that is not there", str(error)) for error in missing.values())
    return [replace(source, notes=source.notes + notes_of_missing) for source in sources]


def _base_folder(path: Path, named: str, may_lead_elsewhere: bool) -> tuple[Path, Path]:
    """The data folder, and the folder in it that a data.yaml's entries are relative to.

    What `path:` names is looked for beside the data.yaml and in the working folder; a path of another machine, or one
    outside that may not be followed, is left aside: the data.yaml's own folder is meant then.
    """
    root = path.parent
    for base in (root / named, Path(named)):
        if base.is_dir():
            if base.resolve().is_relative_to(root.resolve()):
                return root, root / base.resolve().relative_to(root.resolve())
            return (base if may_lead_elsewhere else root), base
    if leads_elsewhere(named):
        tails = (
            root.joinpath(*parts[first:]) for parts in [PurePosixPath(named).parts] for first in range(1, len(parts))
        )
        return root, next((tail for tail in tails if tail.is_dir() and _below(root, tail) is not None), root)
    return root, root


def _named_images(path: Path, root: Path, base: Path, value: str, notes: list[tuple[str, str]]) -> Path:
    """The folder or txt file that an entry of a data.yaml names; a path of another machine is noted."""
    # Exports name "../train/images" for the train/images beside the data.yaml: hence the name without "../" as well.
    # Others begin with the data folder's own name, or are relative to the working folder.
    candidates = [base / value, root / value, root / value.removeprefix("../")]
    candidates += [root / value.removeprefix(f"{root.resolve().name}/"), Path(value)]
    own = len(candidates)
    if PurePosixPath(value).is_absolute() or value[1:2] == ":":
        parts = PurePosixPath(value).parts[1:]
        # The last part alone says too little: train/images and val/images would both be images.
        candidates += [root.joinpath(*parts[first:]) for first in range(max(1, len(parts) - 1))]
    for index, candidate in enumerate(candidates):
        usable = candidate.is_dir() or (candidate.suffix == ".txt" and candidate.is_file())
        if usable and (found := _below(root, candidate)) is not None:
            if index >= own:
                notes.append((OF_ANOTHER_MACHINE, f"{path}: {value} read as {candidate}"))
            return found
    if (base / value).exists() and _below(root, base / value) is None:
        raise DataError(
            f"{path}: {base / value} lies outside {root}: give the data.yaml itself, with a path: that names the data folder"
        )
    raise DataError(f"{path}: no folder or txt file {value!r} below {root}: correct it, relative to the data.yaml")


def _below(root: Path, path: Path) -> Path | None:
    """`path` as one below `root`; None where it leads elsewhere. Symbolic links in it stay, as labels/ mirrors images/
    by name, unless it leads out of `root` and back."""
    real_root, real = root.resolve(), path.resolve()
    if not real.is_relative_to(real_root):
        return None
    plain, plain_root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    if plain.is_relative_to(plain_root) and plain.resolve() == real:
        return root / plain.relative_to(plain_root)
    return root / real.relative_to(real_root)


def _labels_folders(path: Path, root: Path, images: Iterable[Path]) -> dict[Path, Path | None]:
    """Where the txt files of each folder of images lie; a folder may lack them where another has them.

    Raises:
        DataError: none has.
    """
    folders: dict[Path, Path | None] = {}
    missing: list[DataError] = []
    for folder in (entry for entry in images if entry.is_dir()):
        try:
            folders[folder] = _labels_folder(path, root, folder)
        except DataError as error:
            folders[folder] = None
            missing.append(error)
    if missing and len(missing) == len(folders):
        raise missing[0]
    return folders


def _labels_folder(path: Path, root: Path, images: Path) -> Path:
    """Where the txt files of a folder of images lie.

    Raises:
        DataError: nowhere; the message begins with `path`.
    """
    if (labels := _mirror_folder(root, images)) is not None and labels.is_dir():
        return labels
    if _labels_beside(images):
        return images
    if labels is not None:
        raise DataError(f"{labels}: no such folder: the labels of {images} belong there, or beside the images")
    raise DataError(
        f"{path}: {images} holds no txt files beside images: the labels belong there, or in a folder labels/ where the "
        "images are in one named images/"
    )


def _mirror_folder(root: Path, images: Path) -> Path | None:
    """`images` with its innermost folder of the name images replaced by labels; None where it has none."""
    parts = list(images.relative_to(root).parts)
    if "images" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("images")
    return root.joinpath(*parts[:last], "labels", *parts[last + 1 :])


def read(source: SplitSource, report: DataReport, options: ReadOptions) -> Split:
    """Reads one split. Without class names there are as many classes as the data set's labels show.

    Raises:
        DataError: there are no images, none of the txt files belongs to one, or the classes cannot be known.
    """
    pairs = _pairs(source, report)
    classes = _classes(source, report)
    if source.classes is not None and not source.classes.resolve().is_relative_to(source.root.resolve()):
        report.note("data folder named by the data.yaml", f"{source.classes}: path: {source.root}")
    records = read_text_records(
        source, pairs, report, options, separator=None, columns=None, add_lines=partial(_add_lines, classes)
    )
    return Split(source.name, records, classes.names, classes.ids, report, image_root=_image_root(source, pairs))


def _pairs(source: SplitSource, report: DataReport) -> list[LabelledImage]:
    assert source.images is not None
    where = source.classes or source.annotations
    index = FileIndex(source.root, split_kind(source.name))
    pairs: dict[Path, LabelledImage] = {}
    folders = _labels_folders(where, source.root, source.images) if len(source.images) > 1 else {}
    for entry in source.images:
        labels = folders.get(entry) if folders else source.annotations
        if entry.is_file():
            found = _listed(entry, source, index, report)
        elif labels is None:
            found = [LabelledImage(entry / name, None) for name in list_images(entry)]
        else:
            found = pair_by_name(entry, labels, report)
        for pair in found:
            if pair.image in pairs:
                report.drop("file", "duplicate image entry", f"{entry}: {pair.image}")
            pairs.setdefault(pair.image, pair)
    if not pairs:
        raise DataError(f"{source.images[0]}: none of the images that it names was found below {source.root}")
    if any(entry.is_file() for entry in source.images) and not any(pair.labels for pair in pairs.values()):
        raise DataError(
            f"{where}: none of the {len(pairs)} images of {source.name!r} has a txt file: the labels belong beside the "
            "images, or in a folder labels/ where the images are in one named images/"
        )
    return [pairs[image] for image in sorted(pairs, key=Path.as_posix)]


def _listed(path: Path, source: SplitSource, index: FileIndex, report: DataReport) -> list[LabelledImage]:
    """The images that a txt file names, one a line: relative to it or to the data folder, or of another machine."""
    try:
        lines = read_text_file(path, source.root.resolve()).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8: {error}") from error
    folders: dict[Path, Path | None] = {}
    found = []
    for number, line in enumerate(lines, start=1):
        if not (name := plain_name(line.strip())):
            continue
        place = f"{path}:{number}: {name}"
        asked = (folder / name for folder in (path.parent, source.root))
        below = (_below(source.root, candidate) for candidate in asked if candidate.is_file())
        image = next((candidate for candidate in below if candidate is not None), None)
        elsewhere = index.find(name) if image is None else None
        if image is not None:
            pass
        elif elsewhere is not None and (leads_elsewhere(name) or elsewhere[1] > 1):
            image = elsewhere[0]
            report.note(OF_ANOTHER_MACHINE, f"{place} read as {image}")
        else:
            report.drop("image", "image file missing", place)
            continue
        if image.parent not in folders:
            mirror = _mirror_folder(source.root, image.parent)
            folders[image.parent] = mirror if mirror is not None and mirror.is_dir() else image.parent
        labels = (folders[image.parent] or image.parent) / f"{image.stem}.txt"
        found.append(LabelledImage(image, labels if os.path.lexists(labels) else None))
    return found


def _image_root(source: SplitSource, pairs: list[LabelledImage]) -> Path:
    assert source.images is not None
    if len(source.images) == 1 and source.images[0].is_dir():
        return source.images[0]
    return Path(os.path.commonpath([pair.image.parent for pair in pairs]))


class _Classes(NamedTuple):
    """The classes of a data set, and how its lines are read.

    names, ids: of each label: its name, and its number in the txt files.
    labels: the label of each number.
    keypoints: how many numbers a pose has behind its box; 0 where the data are no poses.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    labels: Mapping[float, int]
    keypoints: int = 0


def _add_lines(classes: _Classes, boxes: BoxCollector, lines: Iterable[Line]) -> None:
    labels = list(lines)
    tracked = any(_is_tracked_box(numbers[1:]) and numbers[-1] > 1 for numbers, _ in labels)
    polygons = any(
        len(numbers) > 7 or (len(numbers) == 7 and not _is_tracked_box(numbers[1:])) for numbers, _ in labels
    )
    for numbers, place in labels:
        if len(numbers) < _BOX_FIELDS:
            # A file cut off mid-line can end in a class number that lost a digit, so a short line is never used.
            boxes.leave_out(f"not {_BOX_FIELDS} fields", place)
            continue
        number, *values = numbers
        if number not in classes.labels:
            boxes.leave_out("unknown class", place)
        elif _is_tracked_box(values) and numbers[-1] <= 1 and tracked == polygons:
            boxes.leave_out("a triangle, or a box with a confidence and a track id", place)
        else:
            _add_shape(boxes, classes, classes.labels[number], values, tracked, place)


def _is_tracked_box(values: list[float]) -> bool:
    """Whether six numbers read as a box inside the image, a confidence and a track id; a triangle may read so too."""
    if len(values) != 6:
        return False
    confidence, track = values[4:]
    return _is_inside(values[:4]) and 0 <= confidence <= 1 and _is_whole(track)


def _is_inside(box: list[float]) -> bool:
    """Whether four numbers read as centre and sides of a box that lies in the image, but for rounding."""
    x, y, width, height = box
    return all(side >= 0 and c - side / 2 >= -0.01 and c + side / 2 <= 1.01 for c, side in ((x, width), (y, height)))


def _is_whole(number: float) -> bool:
    return number >= 0 and number.is_integer()


def _add_shape(
    boxes: BoxCollector, classes: _Classes, label: int, values: list[float], tracked: bool, place: str
) -> None:
    """Adds the box of the numbers behind a line's class."""
    notes = []
    pose = 4 + classes.keypoints if classes.keypoints else 0
    if pose and len(values) in (pose, pose + 1, pose + 2):
        values = values[:4]
        notes.append("keypoints behind the box left unread")
    elif pose and len(values) > 6:
        boxes.leave_out("not the keypoints that kpt_shape says", place)
        return
    elif (tracked and _is_tracked_box(values)) or (
        len(values) >= 8 and len(values) % 2 == 0 and values[-1] > 1 and _is_whole(values[-1]) and 0 <= values[-2] <= 1
    ):
        values = values[:-2]
        notes.append("confidence and track id behind the box left unread")
    elif len(values) % 2:
        last = values.pop()
        if not (0 <= last <= 1 or _is_whole(last)) or (len(values) == 4 and not _is_inside(values)):
            boxes.leave_out("neither a box nor a polygon", place)  # or a polygon cut off in the middle
            return
        kind = "confidence" if last <= 1 else "track id"
        notes.append(f"{kind} behind the box left unread")
    if any(abs(value) > (_LARGEST_FRACTION if len(values) == 4 else _LARGEST_POLYGON) for value in values):
        boxes.leave_out("not fractions of the image's sides", place)
        return
    if len(values) == 4:
        x_center, y_center, width, height = values
        width, height = width * boxes.width, height * boxes.height
        box = (x_center * boxes.width - width / 2, y_center * boxes.height - height / 2, width, height)
    else:
        points = np.array(values).reshape(-1, 2)
        notes.append("box around four corners" if len(points) == 4 else BOX_AROUND_A_POLYGON)
        box = box_around(points * [boxes.width, boxes.height])
    for note in notes:
        boxes.report.note(note, place)
    boxes.add(*box, label, place, ignored=False)


def _classes(source: SplitSource, report: DataReport) -> _Classes:
    document = _load_yaml(source.classes) if source.classes is not None else {}
    named = _class_names(source.classes, document) if source.classes is not None else None
    if named is None:
        count = _largest_class(source) + 1
        names, file = _names_in_classes_txt(source, count)
        named = dict(enumerate(names))
        where = f"from {file}" if file else "from the largest number seen"
        verdict = "class names of a classes.txt" if file else "no class names"
        report.note(verdict, f"{source.annotations}: {len(names)} classes, {where}")
    shape = document.get("kpt_shape")
    keypoints = 0
    if isinstance(shape, list) and all(isinstance(side, int) and side > 0 for side in shape):
        keypoints = int(np.prod(shape))
    return _Classes(tuple(named.values()), tuple(named), {number: i for i, number in enumerate(named)}, keypoints)


def _largest_class(source: SplitSource) -> int:
    # All splits are looked through, for train and val must agree on the classes.
    labels, real_root = source.annotations, source.root.resolve()
    if labels.is_file() or labels in (source.images or ()):
        folder, pattern = source.root, "**/*.txt"
    elif labels.name == "labels" and labels.parent != source.root:
        folder, pattern = source.root, "*/labels/**/*.txt"
    else:
        folder, pattern = labels.parent if labels.parent.name == "labels" else labels, "**/*.txt"
    largest = -1
    for path in folder.glob(pattern):
        try:
            content = read_text_file(path, real_root)
        except (ImageError, OSError):  # counted where its split is read
            continue
        for numbers, _ in number_lines(content, path, lambda verdict, place: None, separator=None, columns=None):
            if len(numbers) >= _BOX_FIELDS and numbers[0] in range(_MAX_CLASSES):
                largest = max(largest, int(numbers[0]))
    if largest < 0:
        raise DataError(f"{folder}: no labelled object and no data.yaml, so the classes are unknown: add a data.yaml")
    return largest


def _names_in_classes_txt(source: SplitSource, count: int) -> tuple[list[str], Path | None]:
    """The names that LabelImg and Label Studio leave in a classes.txt, where it has a different one for each class.

    Returns:
        The names, or "class0" to "class<count - 1>"; and the file that has them.
    """
    real_root = source.root.resolve()
    folders = [source.annotations, *source.annotations.parents]
    for path in (folder / "classes.txt" for folder in folders if folder.resolve().is_relative_to(real_root)):
        try:
            lines = read_text_file(path, real_root).decode("utf-8-sig").splitlines()
        except (ImageError, OSError, UnicodeDecodeError):
            continue
        names = [line.strip() for line in lines if line.strip()]
        if count <= len(names) == len(set(names)):
            return names, path
    return [f"class{index}" for index in range(count)], None


def _class_names(path: Path, document: dict[Any, Any]) -> dict[int, str] | None:
    """The names of a data.yaml by their numbers, ascending; None where it has neither names nor a number of classes."""
    names, count = document.get("names"), document.get("nc")
    if names is None and count is None:
        return None
    if count is not None and (not isinstance(count, int) or not 0 < count <= _MAX_CLASSES):
        raise DataError(f"{path}: nc: {count!r} is not a number of classes from 1 to {_MAX_CLASSES}")
    if isinstance(names, list):
        if not names or len(names) > _MAX_CLASSES or count not in (None, len(names)):
            raise DataError(f"{path}: names: {len(names)} names, where there must be {count or 'at least one'} (nc)")
        names = dict(enumerate(names))
    if names is None:
        names = {}
    if not isinstance(names, dict) or not (names or count):
        raise DataError(f"{path}: names: neither a list of names nor a mapping from numbers to names")
    try:
        texts = {int(str(number)): str(name) for number, name in names.items()}
    except ValueError as error:
        raise DataError(f"{path}: names: the keys must be class numbers: {error}") from error
    if len(texts) < len(names) or any(not 0 <= number < (count or _MAX_CLASSES) for number in texts):
        raise DataError(f"{path}: names: the class numbers must differ and be 0 to {(count or _MAX_CLASSES) - 1}")
    for number in range(count or 0):
        texts.setdefault(number, f"class{number}")
    given = list(texts.values())
    if twice := [name for name in given if given.count(name) > 1]:
        raise DataError(f"{path}: names: {twice[0]!r} is there twice: rename one, or merge them")
    return dict(sorted(texts.items()))


def _load_yaml(path: Path) -> dict[Any, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a YAML file: {reason}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: not a YAML mapping: it needs train, val and names")
    return document
