"""The verdicts on annotations, the same for every format, and the reading of formats whose labels are lines of numbers."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoominnet.data.images import IMAGE_SUFFIXES, ImageError, ImageHeader, inspect_images, list_images, require_inside
from zoominnet.data.records import (
    DOUBTFUL_IMAGE,
    NO_OBJECT,
    DataError,
    DataReport,
    ImageRecord,
    ReadOptions,
    SplitSource,
    printable,
)

# Labels written with six decimals of the image's side are up to 0.0075 px off at 10,000 px: no clipping worth a note.
_ROUNDING_PX = 0.01
_QUOTED_CHARACTERS = 80
_UTF8_BOM = b"\xef\xbb\xbf"
# Labelling tools leave their lists and their readme among the labels.
_NOT_LABELS = frozenset({"classes.txt", "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})

BOX_AROUND_A_POLYGON = "box around a polygon"
"""The note on a label that is a polygon."""

Line = tuple[list[float], str]
"""The numbers of a line, and its place: "file:line: what it says"."""
Complaint = Callable[[str, str], None]
"""Takes a verdict and a place."""


class BoxCollector:
    """Collects the boxes of one image: what a record may hold is kept, everything else is dropped and counted.

    Args:
        width, height: of the image, px.
        report: counts what is dropped or clipped.

    Attributes:
        doubts: verdict and place of each label that was left out and may be that of an object.
    """

    def __init__(self, width: int, height: int, report: DataReport) -> None:
        self.width = width
        self.height = height
        self.report = report
        self.doubts: list[str] = []
        self._objects: list[tuple[tuple[float, ...], int]] = []
        self._regions: list[tuple[tuple[float, ...], int]] = []
        self._seen: set[tuple[tuple[float, ...], int, bool]] = set()

    def leave_out(self, verdict: str, place: str) -> None:
        """Counts a label that is not used; unless the verdict says that it marks no object, the image is doubtful."""
        if verdict in NO_OBJECT:
            self.report.drop("no object", verdict, place)
        else:
            self.report.drop("label", verdict, place)
            self.doubts.append(printable(f"{verdict}: {place}"))

    def add(self, x: float, y: float, width: float, height: float, label: int, place: str, *, ignored: bool) -> None:
        """Takes one box by its top left corner and sides (px), or drops it.

        Kept boxes are finite, inside the image, at least 1 px wide and high, and each is there once. `ignored` makes
        it a region where objects are not annotated; `place` is quoted in the report.
        """
        x2, y2 = x + width, y + height
        if not all(map(math.isfinite, (x, y, x2, y2))):
            self.leave_out("not a finite number", place)
            return
        if width < 0 or height < 0:
            self.leave_out("side below zero", place)
            return
        if width == 0 or height == 0:
            self.leave_out("side of zero", place)
            return
        clipped = (max(x, 0.0), max(y, 0.0), min(x2, float(self.width)), min(y2, float(self.height)))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self.leave_out("outside the image", place)
            return
        box = tuple(np.array(clipped, dtype=np.float32).tolist())
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            whole = min(width, height) >= 1
            self.leave_out("under 1 px of it in the image" if whole else "side under 1 px", place)
            return
        if (box, label, ignored) in self._seen:
            self.leave_out("duplicate", place)
            return
        if max(clipped[0] - x, clipped[1] - y, x2 - clipped[2], y2 - clipped[3]) > _ROUNDING_PX:
            self.report.note("clipped to the image", place)
        self._seen.add((box, label, ignored))
        (self._regions if ignored else self._objects).append((box, label))

    def record(self, path: Path, image_id: int, *, as_stored: bool = False) -> ImageRecord:
        """The record of the image at `path`, with the boxes in the order in which they came."""
        boxes, labels = _arrays(self._objects)
        ignored, ignored_labels = _arrays(self._regions)
        return ImageRecord(
            path,
            image_id,
            self.width,
            self.height,
            boxes,
            labels,
            ignored,
            ignored_labels,
            as_stored=as_stored,
            doubts=tuple(self.doubts),
        )


def _arrays(items: list[tuple[tuple[float, ...], int]]) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([box for box, _ in items], dtype=np.float32).reshape(-1, 4)
    return boxes, np.array([label for _, label in items], dtype=np.int64)


def box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    """(x, y, width, height) of the smallest box that holds `points`, floating[N, 2] of (x, y), N of at least 1."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2 - x1, y2 - y1


class RecordList:
    """Collects the records of a split: an image of which a label could not be understood is left out, and counted."""

    def __init__(self, report: DataReport, options: ReadOptions) -> None:
        self.report = report
        self.options = options
        self.records: list[ImageRecord] = []

    def add(
        self, path: Path, image_id: int, header: ImageHeader, boxes: BoxCollector, *, as_stored: bool = False
    ) -> None:
        """Takes the image at `path` with its boxes, or leaves it out."""
        if boxes.doubts and not self.options.keep_doubtful:
            self.report.drop("image", DOUBTFUL_IMAGE, str(path))
            return
        if as_stored:
            self.report.note("read as stored, not turned by EXIF: its labels were made so", str(path))
        elif header.orientation != 1:
            self.report.note("turned upright by EXIF", f"{path}: orientation {header.orientation}")
        self.records.append(boxes.record(path, image_id, as_stored=as_stored))


def read_text_file(path: Path, real_root: Path) -> bytes:
    """What a txt file holds.

    Raises:
        ImageError: its symbolic links lead outside the resolved folder `real_root`.
        OSError: it cannot be read, or is no regular file.
    """
    require_inside(path, real_root)
    if not path.is_file():  # or reading could wait for ever on a named pipe
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return path.read_bytes()


def text_lines(
    content: bytes, path: Path, complain: Complaint, *, separator: str | None
) -> Iterator[tuple[list[str], str]]:
    """The fields of each line of a txt file, with its place; lines that are no text are complained of.

    A byte order mark, any line ends, blank lines, blanks round fields and one trailing comma are accepted.
    """
    for number, raw in enumerate(content.removeprefix(_UTF8_BOM).splitlines(), start=1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            complain("not UTF-8", f"{path}:{number}: {raw[:_QUOTED_CHARACTERS]!r}")
            continue
        if line:
            place = f"{path}:{number}: {line[:_QUOTED_CHARACTERS]}"
            yield line.removesuffix(",").split(separator), place


def number_lines(
    content: bytes, path: Path, complain: Complaint, *, separator: str | None, columns: int | None
) -> Iterator[Line]:
    """The lines of a txt file of numbers, each with its place, read as `text_lines` does.

    Lines that are not `columns` finite numbers are complained of. With None for `columns` there may be any number.
    """
    for fields, place in text_lines(content, path, complain, separator=separator):
        if columns is not None and len(fields) != columns:
            # A file cut off mid-line can end in a class number that lost a digit, so a short line is never used.
            complain(f"not {columns} fields", place)
        elif (numbers := finite_numbers(fields)) is None:
            complain("not a finite number", place)
        else:
            yield numbers, place


def finite_numbers(fields: list[str]) -> list[float] | None:
    """The numbers that `fields` are, or None unless all are finite numbers."""
    numbers = [number for field in fields if (number := finite_number(field)) is not None]
    return numbers if len(numbers) == len(fields) else None


def finite_number(text: str) -> float | None:
    """The finite number that `text` is, or None."""
    # float() also takes "1_000" and the digits of every script, which are slips here.
    if "_" in text or not text.isascii():
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class LabelledImage(NamedTuple):
    """An image file and its txt file, None where it has none."""

    image: Path
    labels: Path | None


def pair_by_name(images: Path, labels: Path, report: DataReport) -> list[LabelledImage]:
    """Each image in `images` and below, sorted, with the file of the same name and the suffix .txt in `labels`.

    txt files in `labels` that belong to no image are counted as left out. Where `labels` is empty, no image has objects.

    Raises:
        DataError: there are no images, or none of the files in `labels` belongs to one.
    """
    names = list_images(images)
    if not names:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{images}: no image files: looked for {suffixes}; put the images of this split there")
    label_names = {path.relative_to(labels) for path in labels.rglob("*.txt") if not path.name.startswith(".")}
    orphans = {name for name in label_names - {name.with_suffix(".txt") for name in names} if _may_be_labels(name)}
    if not label_names and labels != images and (other := next((f for f in labels.rglob("*") if f.is_file()), None)):
        raise DataError(
            f"{labels}: holds no txt files, but such as {other.name!r}: each image needs a txt file of its name"
        )
    if orphans and len(orphans) == sum(map(_may_be_labels, label_names)):
        raise DataError(
            f"{labels}: none of its {len(orphans)} txt files belongs to an image in {images}, "
            f"such as {str(names[0])!r}: each image needs a txt file of the same name"
        )
    for orphan in sorted(orphans):
        report.drop("file", "annotation file without an image", str(labels / orphan))
    wanted = ((name, name.with_suffix(".txt")) for name in names)
    return [LabelledImage(images / name, labels / txt if txt in label_names else None) for name, txt in wanted]


def _may_be_labels(path: Path) -> bool:
    """Whether a txt file that belongs to no image may be one of labels, by its name, and is no list or readme."""
    return path.name not in _NOT_LABELS and not path.name.lower().startswith("readme")


def read_text_records(
    source: SplitSource,
    pairs: Sequence[LabelledImage],
    report: DataReport,
    options: ReadOptions,
    *,
    separator: str | None,
    columns: int | None,
    add_lines: Callable[[BoxCollector, Iterable[Line]], None],
) -> list[ImageRecord]:
    """Reads the images of a split that have a txt file each.

    An image without a file, or with an empty one, is an image without objects. An image's id is its position, from 1,
    in `pairs`, whatever cannot be used.

    Args:
        separator, columns: of a line, as for `number_lines`.
        add_lines: adds the lines of one file to the image's boxes.
    """
    real_root = source.root.resolve()
    records = RecordList(report, options)
    headers = inspect_images(
        [pair.image for pair in pairs], source.root, decode=options.decode, max_pixels=options.max_pixels
    )
    for image_id, (pair, header) in enumerate(zip(pairs, headers, strict=True), start=1):
        if isinstance(header, ImageError):
            report.drop("image", header.verdict, str(header))
            continue
        content = b""
        if pair.labels is None:
            report.note("no annotation file: used as an image without objects", str(pair.image))
        else:
            try:
                content = read_text_file(pair.labels, real_root)
            except ImageError as error:
                report.drop("image", error.verdict, str(error))
                continue
            except OSError as error:
                report.drop("image", "unreadable annotation file", f"{pair.labels}: {error.strerror}")
                continue
            if not content.removeprefix(_UTF8_BOM).strip():
                report.note("empty annotation file: used as an image without objects", str(pair.labels))
        boxes = BoxCollector(header.width, header.height, report)
        if pair.labels is not None:
            lines = number_lines(content, pair.labels, boxes.leave_out, separator=separator, columns=columns)
            add_lines(boxes, lines)
        records.add(pair.image, image_id, header, boxes)
    return records.records
