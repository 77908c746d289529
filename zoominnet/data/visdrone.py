"""Original VisDrone-DET folders: `images/*.jpg` and `annotations/*.txt`.

A line is `x,y,w,h,score,category,truncation,occlusion`: the top left corner and sides in px, a score of 0 for what
the evaluation ignores, and a category of 0 (ignored region), 1 to 10 (the classes) or 11 (others). Format: the
VisDrone toolkit, https://github.com/VisDrone/VisDrone2018-DET-toolkit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from zoominnet.data.annotations import BoxCollector, Line, pair_by_name, read_text_records
from zoominnet.data.records import ANY_CLASS, VISDRONE_CLASSES, DataReport, ReadOptions, Split, SplitSource

CATEGORY_IDS = tuple(range(1, len(VISDRONE_CLASSES) + 1))
"""VisDrone's numbers of its classes."""
_COLUMNS = 8
_IGNORED_REGION = 0
_OTHERS = 11
# A data set may hold its splits one folder deeper; beyond that the path given is not a data folder.
_SEARCH_DEPTH = 2
_OWN_FOLDERS = frozenset({"images", "annotations", "labels", "sequences"})


def find(path: Path) -> list[SplitSource]:
    """The folders at `path` and below that hold `images/` and `annotations/` with txt files, each a split."""
    return find_folders(path, "images", "visdrone")


def find_folders(path: Path, images: str, format: str) -> list[SplitSource]:
    """The folders at `path` and below that hold a folder `images` and `annotations/` with txt files, each a split."""
    folders = []
    for directory, subfolders, _ in os.walk(path):
        folder = Path(directory)
        if (folder / images).is_dir() and any((folder / "annotations").rglob("*.txt")):
            folders.append(folder)
        deepest = len(folder.relative_to(path).parts) == _SEARCH_DEPTH
        subfolders[:] = [] if deepest else sorted(n for n in subfolders if n not in _OWN_FOLDERS and n[0] != ".")
    names = [folder.resolve().name for folder in folders]
    return [
        SplitSource(
            name=name if names.count(name) == 1 else folder.relative_to(path).as_posix(),
            format=format,
            root=path,
            annotations=folder / "annotations",
            images=(folder / images,),
        )
        for name, folder in zip(names, folders, strict=True)
    ]


def read(source: SplitSource, report: DataReport, options: ReadOptions) -> Split:
    """Reads one split. Labels are the categories less one; ignored regions and "others" hold for any class.

    Raises:
        DataError: there are no images, or none of the txt files belongs to one.
    """
    assert source.images is not None
    (images,) = source.images
    pairs = pair_by_name(images, source.annotations, report)
    records = read_text_records(source, pairs, report, options, separator=",", columns=_COLUMNS, add_lines=_add_lines)
    return Split(source.name, records, VISDRONE_CLASSES, CATEGORY_IDS, report, image_root=images)


def _add_lines(boxes: BoxCollector, lines: Iterable[Line]) -> None:
    for (x, y, width, height, score, category, _, _), place in lines:
        add_object(boxes, (x, y, width, height), score, category, place)


def add_object(
    boxes: BoxCollector, xywh: tuple[float, float, float, float], score: float, category: float, place: str
) -> None:
    """Adds one box (top left corner and sides, px) with VisDrone's score and category to those of its image."""
    if category not in range(_IGNORED_REGION, _OTHERS + 1):
        boxes.leave_out("unknown class", place)
        return
    label = ANY_CLASS if category in (_IGNORED_REGION, _OTHERS) else int(category) - 1
    boxes.add(*xywh, label, place, ignored=score == 0 or label == ANY_CLASS)
