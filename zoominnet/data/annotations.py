"""The verdicts on annotations, the same for every format, and the reading of formats with one txt file an image."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from zoominnet.data.images import IMAGE_SUFFIXES, ImageError, inspect_images, list_images, require_inside
from zoominnet.data.records import DataError, DataReport, ImageRecord, SplitSource

# Labels written with six decimals of the image's side are up to 0.0075 px off at 10,000 px: no clipping worth a note.
_ROUNDING_PX = 0.01
_QUOTED_CHARACTERS = 80
_UTF8_BOM = b"\xef\xbb\xbf"


class BoxCollector:
    """Collects the boxes of one image: what a record may hold is kept, everything else is dropped and counted.

    Args:
        width, height: of the image, px.
        report: counts what is dropped or clipped.
    """

    def __init__(self, width: int, height: int, report: DataReport) -> None:
        self.width = width
        self.height = height
        self.report = report
        self._objects: list[tuple[tuple[float, ...], int]] = []
        self._regions: list[tuple[tuple[float, ...], int]] = []
        self._seen: set[tuple[tuple[float, ...], int, bool]] = set()

    def add(self, x: float, y: float, width: float, height: float, label: int, place: str, *, ignored: bool) -> None:
        """Takes one box by its top left corner and sides (px), or drops it.

        Kept boxes are finite, inside the image, at least 1 px wide and high, and each is there once. `ignored` makes
        it a region where objects are not annotated; `place` is quoted in the report.
        """
        x2, y2 = x + width, y + height
        if not all(map(math.isfinite, (x, y, x2, y2))):
            self.report.add("not a finite number", place)
            return
        if width <= 0 or height <= 0:
            self.report.add("side of zero or less", place)
            return
        clipped = (max(x, 0.0), max(y, 0.0), min(x2, float(self.width)), min(y2, float(self.height)))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self.report.add("outside the image", place)
            return
        box = tuple(np.array(clipped, dtype=np.float32).tolist())
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            self.report.add("side under 1 px", place)
            return
        if (box, label, ignored) in self._seen:
            self.report.add("duplicate", place)
            return
        if max(clipped[0] - x, clipped[1] - y, x2 - clipped[2], y2 - clipped[3]) > _ROUNDING_PX:
            self.report.note("clipped to the image", place)
        self._seen.add((box, label, ignored))
        (self._regions if ignored else self._objects).append((box, label))

    def record(self, path: Path, image_id: int) -> ImageRecord:
        """The record of the image at `path`, with the boxes in the order in which they came."""
        boxes, labels = _arrays(self._objects)
        ignored, ignored_labels = _arrays(self._regions)
        return ImageRecord(path, image_id, self.width, self.height, boxes, labels, ignored, ignored_labels)


def _arrays(items: list[tuple[tuple[float, ...], int]]) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([box for box, _ in items], dtype=np.float32).reshape(-1, 4)
    return boxes, np.array([label for _, label in items], dtype=np.int64)


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


def note_orientation(path: Path, orientation: int, report: DataReport) -> None:
    """Notes an image that viewers show turned: its annotations must be in the stored pixels."""
    if orientation != 1:
        report.note("EXIF rotation not applied", f"{path}: orientation {orientation}")


def number_lines(
    content: bytes, path: Path, report: DataReport, *, separator: str | None, columns: int
) -> Iterator[tuple[list[float], str]]:
    """The lines of a txt file of numbers, each with its place; lines that are not `columns` finite numbers are dropped.

    A byte order mark, any line ends, blank lines, blanks round numbers and one trailing comma are accepted.
    """
    for number, raw in enumerate(content.removeprefix(_UTF8_BOM).splitlines(), start=1):
        try:
            line = raw.decode().strip()
        except UnicodeDecodeError:
            report.add("not UTF-8", f"{path}:{number}: {raw[:_QUOTED_CHARACTERS]!r}")
            continue
        if not line:
            continue
        place = f"{path}:{number}: {line[:_QUOTED_CHARACTERS]}"
        fields = line.removesuffix(",").split(separator)
        if len(fields) != columns:
            # A file cut off mid-line can end in a class number that lost a digit, so a short line is never used.
            report.add(f"not {columns} fields", place)
            continue
        numbers = _finite_numbers(fields)
        if numbers is None:
            report.add("not a finite number", place)
            continue
        yield numbers, place


def _finite_numbers(fields: list[str]) -> list[float] | None:
    # float() also takes "1_000" and the digits of every script, which are slips here.
    if any("_" in field or not field.isascii() for field in fields):
        return None
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def read_text_records(
    source: SplitSource,
    report: DataReport,
    *,
    decode: bool,
    max_pixels: int,
    separator: str | None,
    columns: int,
    add_line: Callable[[BoxCollector, list[float], str], None],
) -> list[ImageRecord]:
    """Reads a split that has `<name>.txt` in `source.annotations` for each `<name>.jpg` in `source.images`.

    An image without a file, or with an empty one, is an image without objects. An image's id is its position, from 1,
    in the sorted list of all image files, whatever cannot be used.

    Args:
        decode: decode each image as well, and leave out those that cannot be.
        max_pixels: larger images are left out.
        separator, columns: of a line, as for `number_lines`.
        add_line: adds the numbers of one line, found at the given place, to the image's boxes.

    Raises:
        DataError: there are no images, or none of the txt files belongs to one.
    """
    assert source.images is not None
    names = list_images(source.images)
    if not names:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{source.images}: no image files: looked for {suffixes}; put the images of this split there")
    annotation_names = {
        path.relative_to(source.annotations)
        for path in source.annotations.rglob("*.txt")
        if path.name != "classes.txt" and not path.name.startswith(".")  # labelling tools leave their class list there
    }
    orphans = annotation_names - {name.with_suffix(".txt") for name in names}
    if orphans == annotation_names:
        raise DataError(
            f"{source.annotations}: none of its {len(orphans)} txt files belongs to an image in {source.images}, "
            f"such as {str(names[0])!r}: each image needs a txt file of the same name"
        )
    paths = [source.images / name for name in names]
    real_root = source.root.resolve()
    records = []
    for image_id, (name, path, header) in enumerate(
        zip(names, paths, inspect_images(paths, source.root, decode=decode, max_pixels=max_pixels), strict=True),
        start=1,
    ):
        if isinstance(header, ImageError):
            report.add(header.verdict, str(header))
            continue
        annotation_name = name.with_suffix(".txt")
        annotation_path = source.annotations / annotation_name
        annotated = annotation_name in annotation_names
        try:
            content = read_text_file(annotation_path, real_root) if annotated else b""
        except ImageError as error:
            report.add(error.verdict, str(error))
            continue
        except OSError as error:
            report.add("unreadable annotation file", f"{annotation_path}: {error.strerror}")
            continue
        if not annotated:
            report.note("no annotation file: used as an image without objects", str(path))
        elif not content.removeprefix(_UTF8_BOM).strip():
            report.note("empty annotation file: used as an image without objects", str(annotation_path))
        note_orientation(path, header.orientation, report)
        boxes = BoxCollector(header.width, header.height, report)
        for numbers, place in number_lines(content, annotation_path, report, separator=separator, columns=columns):
            add_line(boxes, numbers, place)
        records.append(boxes.record(path, image_id))
    for orphan in sorted(orphans):
        report.add("annotation file without an image", str(source.annotations / orphan))
    return records
