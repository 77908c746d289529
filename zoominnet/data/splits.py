"""Finding and opening the splits of a data set, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoominnet.data import coco, uavdt, visdrone, visdrone_vid, yolo
from zoominnet.data.foreign import describe_contents, recognise
from zoominnet.data.images import PILLOW_MAX_PIXELS
from zoominnet.data.records import (
    MAX_PIXELS,
    SPLIT_KINDS,
    DataError,
    DataReport,
    ReadOptions,
    Split,
    SplitSource,
    split_kind,
)

DataFormat = Literal["coco", "visdrone", "yolo", "visdrone-vid", "uavdt"]
_Find = Callable[[Path], list[SplitSource]]
_Read = Callable[[SplitSource, DataReport, ReadOptions], Split]


@dataclass(frozen=True)
class _Format:
    """A format of data sets: one file of this package each.

    find: the splits at a path, by the names of files and folders.
    read: reads one.
    looked_for: what `find` and `search` look for, for people.
    search: the splits of a folder in which no `find` found anything: it may open files and walk the whole folder.
    suffixes: of the files that may be given in place of a folder.
    videos: whether the images are frames of videos.
    """

    find: _Find
    read: _Read
    looked_for: str
    search: _Find | None = None
    suffixes: tuple[str, ...] = ()
    videos: bool = False


# In the order of preference where one split is there in several formats: YOLO labels are the usual conversion of the
# others, and they cannot say what is ignored.
_FORMATS: dict[str, _Format] = {
    "coco": _Format(
        coco.find,
        coco.read,
        "COCO: instances_SPLIT.json here or in annotations/, SPLIT/_annotations.coco.json, or a folder's only json",
        search=coco.find_by_content,
        suffixes=(".json",),
    ),
    "visdrone": _Format(
        visdrone.find, visdrone.read, "VisDrone: images/ and annotations/*.txt, here or in a folder for each split"
    ),
    "yolo": _Format(
        yolo.find,
        yolo.read,
        "YOLO: a data.yaml, images/ with labels/, or txt files beside their images",
        suffixes=(".yaml", ".yml"),
    ),
    "visdrone-vid": _Format(
        visdrone_vid.find,
        visdrone_vid.read,
        "VisDrone VID and MOT: sequences/VIDEO/*.jpg and annotations/VIDEO.txt",
        videos=True,
    ),
    "uavdt": _Format(
        lambda path: [],
        uavdt.read,
        "UAVDT: VIDEO/img000001.jpg and VIDEO_gt_whole.txt",
        search=uavdt.search,
        videos=True,
    ),
}


def find_splits(path: str | Path, format: str | None = None) -> dict[str, SplitSource]:
    """Finds the splits of the data set at `path`, without reading them.

    Args:
        path: a data folder, the folder of one split, a COCO json, or a YOLO data.yaml.
        format: "coco", "visdrone", "yolo", "visdrone-vid" or "uavdt": look for this one only. Otherwise a split found
            in several formats is taken from the first of these, and its source names the others.

    Returns:
        The sources by the splits' own names, such as "train", "val2017" or "VisDrone2019-DET-val".

    Raises:
        DataError: no such path, or no data set there; its details tell what the folder holds and what was looked for.
    """
    path = Path(path)
    if format is not None and format not in _FORMATS:
        raise DataError(f"unknown format {format!r}: choose one of {', '.join(_FORMATS)}")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: give a data folder, a COCO json or a data.yaml")
    formats = [format] if format else list(_FORMATS)
    if path.is_file():
        formats = [name for name in formats if path.suffix.lower() in _FORMATS[name].suffixes]
        if not formats:
            _refuse_foreign(path)
            wanted = f"of the format {format}" if format else "a COCO .json or a YOLO .yaml"
            raise DataError(f"{path}: this file is not {wanted}: give the data folder, or the right file")
    sources: dict[str, SplitSource] = {}
    for name in formats:
        _add_splits(sources, name, _FORMATS[name].find, path)
    for name in formats:
        search = _FORMATS[name].search
        if not sources and search is not None and path.is_dir():
            _add_splits(sources, name, search, path)
    if not sources:
        raise _nothing_found(path, format)
    return sources


def _add_splits(sources: dict[str, SplitSource], format: str, find: _Find, path: Path) -> None:
    """Adds the splits of one format; one that is there in another format already is only named with that."""
    try:
        found = find(path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from error
    preferred = dict(sources)
    for source in found:
        alike = (lambda one, other: one == other) if _FORMATS[format].videos else _same_split
        same = [key for key in preferred if alike(key, source.name)]
        for key in same:
            sources[key] = replace(sources[key], also=(*preferred[key].also, format))
        if source.name in sources and not same:
            both = f"{sources[source.name].annotations} and {source.annotations}"
            raise DataError(f"{path}: split {source.name!r} is there twice: {both}: give one, or move one away")
        if not same:
            sources[source.name] = source


def _nothing_found(path: Path, format: str | None) -> DataError:
    folder = path if path.is_dir() else path.parent
    if format is None:
        _refuse_foreign(folder)
    summary, resembles = describe_contents(folder)
    wanted = [each.looked_for for name, each in _FORMATS.items() if format in (None, name)]
    kind = f"no data set in the format {format}" if format else "no data set"
    return DataError(
        f"{path}: {kind} found: it holds {summary}: {resembles}",
        details=["looked for", *(f"  {line}" for line in wanted), "give the folder that holds one of these"],
    )


def _refuse_foreign(path: Path) -> None:
    if (foreign := recognise(path)) is not None:
        what, remedy = foreign
        raise DataError(f"{path}: this is {what}, which is not read here; convert it, for example with {remedy}")


def open_split(
    path: str | Path,
    split: str,
    *,
    strict: bool = False,
    check_images: Literal["header", "decode"] = "header",
    format: str | None = None,
    images: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    keep_doubtful: bool = False,
    frame_step: int = 1,
) -> Split:
    """Reads one split of the data set at `path`. No file is changed.

    What cannot be used is left out and counted in the split's report, with its place. An image of which a label could
    not be understood is left out as a whole, for an object without its label would be background.

    Args:
        path: as for `find_splits`.
        split: its name, or "train", "val" or "test" where just one split's name has that word in it, as
            VisDrone2019-DET-train, val2017 or valid. Where nothing is called "val", "test" is taken for it.
        strict: refuse the split if anything of it would be left out.
        check_images: read each image's header only, or decode each image.
        format: as for `find_splits`.
        images: the folder of a COCO json's images, where they are not in the usual place beside it.
        max_pixels: larger images are left out, judged by their headers; at most `images.PILLOW_MAX_PIXELS`.
        keep_doubtful: keep images of which a label could not be understood, without that label.
        frame_step: of videos (VisDrone VID and MOT, UAVDT), every so many-th frame.

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
        source = replace(source, images=(Path(images),), root=Path(images))
    format_of_it = _FORMATS[source.format]
    if frame_step < 1 or (frame_step > 1 and not format_of_it.videos):
        raise DataError(
            f"frame_step (--frame-step): {frame_step}: it must be at least 1, and 1 for data that are no videos "
            f"({path} is {source.format})"
        )
    report = DataReport()
    for verdict, place in source.notes:
        report.note(verdict, place)
    if split not in sources and split_kind(source.name) != SPLIT_KINDS[split.lower()]:
        report.note("another split taken", f"{path}: {source.name} for {split!r}, which is not there")
    if source.also:
        others = " and ".join(source.also)
        report.note(
            "several formats",
            f"{path}: {source.name} read as {source.format}, not as {others}: choose by format= (--format, --data-format)",
        )
    options = ReadOptions(check_images == "decode", max_pixels, keep_doubtful, frame_step)
    try:
        opened = format_of_it.read(source, report, options)
    except DataError:
        if source.annotations == Path(path).absolute():
            _refuse_foreign(source.annotations)
        raise
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from error
    drops = [f"{places[0]}: {verdict}" for verdict, places in report.places.items() if verdict in report.dropped_kinds]
    if not opened.records:
        raise DataError(f"{source.annotations}: no usable image: {drops[0] if drops else 'it names none'}")
    if strict and drops:
        raise DataError(
            f"{drops[0]}: the first of {report.dropped} left out, which strict refuses: "
            "`python -m zoominnet.data check` lists them"
        )
    return replace(opened, max_pixels=max_pixels)


def _same_split(name: str, other: str) -> bool:
    return name == other or (split_kind(name) is not None and split_kind(name) == split_kind(other))


def match_split(path: Path, split: str, sources: dict[str, SplitSource]) -> SplitSource:
    """The source of the split called `split` as in `open_split`, of those that `find_splits` found at `path`.

    Raises:
        DataError: there is none, or there are several.
    """
    if split in sources:
        return sources[split]
    wanted = SPLIT_KINDS.get(split.lower())
    matching = [source for name, source in sources.items() if wanted and split_kind(name) == wanted]
    if not matching and wanted == "val":
        matching = [source for name, source in sources.items() if split_kind(name) == "test"]
    if len(images := [source for source in matching if not _FORMATS[source.format].videos]) == 1:
        return images[0]
    if len(matching) == 1:
        return matching[0]
    found = ", ".join(f"{name} ({source.format})" for name, source in sources.items())
    if matching:
        names = ", ".join(source.name for source in matching)
        raise DataError(f"{path}: split {split!r} may be any of {names}: name one of these")
    remedy = "name one of these, or give another folder"
    if len(sources) == 1 and wanted in ("train", "val"):
        remedy = "name it, or divide it for training into train and val by --val-fraction 0.2"
    raise DataError(f"{path}: no split {split!r}: found {found}: {remedy}")
