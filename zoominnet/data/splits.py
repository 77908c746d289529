"""Finding and opening the splits of a data set, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from zoominnet.data import coco, visdrone, yolo
from zoominnet.data.images import PILLOW_MAX_PIXELS
from zoominnet.data.records import MAX_PIXELS, DataError, DataReport, Split, SplitSource


class _Read(Protocol):
    def __call__(self, source: SplitSource, report: DataReport, *, decode: bool, max_pixels: int) -> Split: ...


# In the order of preference where one split is there in several formats: YOLO labels are the usual conversion of the
# others, and they cannot say what is ignored.
_FORMATS: dict[str, tuple[Callable[[Path], list[SplitSource]], _Read]] = {
    "coco": (coco.find, coco.read),
    "visdrone": (visdrone.find, visdrone.read),
    "yolo": (yolo.find, yolo.read),
}
_SUFFIXES: dict[str, tuple[str, ...]] = {"coco": (".json",), "visdrone": (), "yolo": (".yaml", ".yml")}
_KINDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NAMES_LISTED = 8


def find_splits(path: str | Path, format: str | None = None) -> dict[str, SplitSource]:
    """Finds the splits of the data set at `path`, without reading them.

    Args:
        path: a data folder, the folder of one split, a COCO json, or a YOLO data.yaml.
        format: "coco", "visdrone" or "yolo": look for this one only. Otherwise a split found in several formats is
            taken from the first of COCO json, VisDrone txt and YOLO txt, and its source names the others.

    Returns:
        The sources by the splits' own names, such as "train", "val2017" or "VisDrone2019-DET-val".

    Raises:
        DataError: no such path, or no data set there.
    """
    path = Path(path)
    if format is not None and format not in _FORMATS:
        raise DataError(f"unknown format {format!r}: choose one of {', '.join(_FORMATS)}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: give a data folder, a COCO json or a data.yaml")
    formats = [format] if format else list(_FORMATS)
    if path.is_file():
        formats = [name for name in formats if path.suffix.lower() in _SUFFIXES[name]]
        if not formats:
            wanted = f"of the format {format}" if format else "a COCO .json or a YOLO .yaml"
            raise DataError(f"{path}: this file is not {wanted}: give the data folder, or the right file")
    sources: dict[str, SplitSource] = {}
    for name in formats:
        find, _ = _FORMATS[name]
        try:
            found = find(path)
        except OSError as error:
            raise DataError(f"{error.filename or path}: {error.strerror}") from error
        preferred = dict(sources)
        for source in found:
            same = [key for key in preferred if _same_split(key, source.name)]
            for key in same:
                sources[key] = replace(preferred[key], also=(*preferred[key].also, name))
            if source.name in sources and not same:
                both = f"{sources[source.name].annotations} and {source.annotations}"
                raise DataError(f"{path}: split {source.name!r} is there twice: {both}: give one, or move one away")
            if not same:
                sources[source.name] = source
    if not sources:
        raise DataError(_nothing_found(path, format))
    return sources


def _nothing_found(path: Path, format: str | None) -> str:
    looked_for = {
        "coco": "instances_SPLIT.json or annotations/instances_SPLIT.json (coco; a json of another name can be given itself)",
        "visdrone": "images/ with annotations/*.txt (visdrone)",
        "yolo": "images/ with labels/, or a data.yaml (yolo)",
    }
    wanted = looked_for[format] if format else ", ".join(looked_for.values())
    folder = path if path.is_dir() else path.parent
    held = sorted(repr(entry.name + "/" * entry.is_dir()) for entry in folder.iterdir())
    more = f" and {len(held) - _NAMES_LISTED} more" if len(held) > _NAMES_LISTED else ""
    contents = (", ".join(held[:_NAMES_LISTED]) + more) if held else "nothing"
    return (
        f"{path}: no data set found: looked for {wanted}; {folder} holds {contents}: give the folder that holds these"
    )


def open_split(
    path: str | Path,
    split: str,
    *,
    strict: bool = False,
    check_images: Literal["header", "decode"] = "header",
    format: str | None = None,
    images: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Split:
    """Reads one split of the data set at `path`. No file is changed.

    What cannot be used is left out and counted in the split's report, with its place.

    Args:
        path: as for `find_splits`.
        split: its name, or "train", "val" or "test" where just one split's name has that word in it, as
            VisDrone2019-DET-train, val2017 or valid.
        strict: refuse the split if anything of it would be left out.
        check_images: read each image's header only, or decode each image.
        format: as for `find_splits`.
        images: the folder of a COCO json's images, where they are not in the usual place beside it.
        max_pixels: larger images are left out, judged by their headers; at most `images.PILLOW_MAX_PIXELS`.

    Raises:
        DataError: no such data set or split, no usable image, something left out and `strict`, or an impossible limit.
    """
    if not 0 < max_pixels <= PILLOW_MAX_PIXELS:
        raise DataError(
            f"max_pixels (--max-megapixels): {max_pixels / 1e6:g} megapixels are not over 0 and at most "
            f"{PILLOW_MAX_PIXELS / 1e6:g}, where Pillow's own limit lies: cut larger images into tiles"
        )
    sources = find_splits(path, format)
    source = match_split(Path(path), split, sources)
    if images is not None:
        if source.format != "coco":
            raise DataError(f"{path}: a folder of images can be named for a COCO json only, this is {source.format}")
        if not Path(images).is_dir():
            raise DataError(f"{images}: no such folder of images")
        source = replace(source, images=Path(images), root=Path(images))
    report = DataReport()
    if source.also:
        others = " and ".join(source.also)
        report.note(
            "several formats",
            f"{path}: {source.name} read as {source.format}, not as {others}: choose by format= (--format, --data-format)",
        )
    _, read = _FORMATS[source.format]
    try:
        opened = read(source, report, decode=check_images == "decode", max_pixels=max_pixels)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from error
    drops = [f"{places[0]}: {verdict}" for verdict, places in report.places.items() if verdict not in report.notes]
    if not opened.records:
        raise DataError(f"{source.annotations}: no usable image: {drops[0] if drops else 'it names none'}")
    if strict and drops:
        raise DataError(
            f"{drops[0]}: the first of {report.dropped} left out, which strict refuses: "
            "`python -m zoominnet.data check` lists them"
        )
    return replace(opened, max_pixels=max_pixels)


def _kind(name: str) -> str | None:
    """ "train", "val" or "test" where a split's name holds just one of these as a word."""
    kinds = {_KINDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _KINDS}
    return kinds.pop() if len(kinds) == 1 else None


def _same_split(name: str, other: str) -> bool:
    return name == other or (_kind(name) is not None and _kind(name) == _kind(other))


def match_split(path: Path, split: str, sources: dict[str, SplitSource]) -> SplitSource:
    """The source of the split called `split` as in `open_split`, of those that `find_splits` found at `path`.

    Raises:
        DataError: there is none, or there are several.
    """
    if split in sources:
        return sources[split]
    wanted = _KINDS.get(split.lower())
    matching = [source for name, source in sources.items() if wanted and _kind(name) == wanted]
    if len(matching) == 1:
        return matching[0]
    found = ", ".join(f"{name} ({source.format})" for name, source in sources.items())
    if matching:
        names = ", ".join(source.name for source in matching)
        raise DataError(f"{path}: split {split!r} may be any of {names}: name one of these")
    raise DataError(f"{path}: no split {split!r}: found {found}: name one of these, or give another folder")
