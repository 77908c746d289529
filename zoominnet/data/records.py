"""What a reader of any format hands on: one record an image, and a counted report of what it dropped and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from zoominnet.errors import UserError

VISDRONE_CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
"""The ten evaluated classes of VisDrone-DET, in the order of its category numbers 1 to 10."""

MAX_PIXELS = 100_000_000
"""The largest image decoded unless the caller says otherwise: 100 megapixels are 300 MB as RGB."""

SPLIT_KINDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What the words in splits' names mean."""

ANY_CLASS = -1
"""The label of an ignored region that holds for every class (VisDrone's categories 0 and 11)."""


class DataError(UserError):
    """Data that cannot be used. The message is one line naming the file or folder and the remedy."""


def printable(text: str) -> str:
    """`text` with line breaks, terminal control characters and undecodable bytes as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def split_kind(name: str) -> str | None:
    """ "train", "val" or "test" where a split's name holds just one of these as a word."""
    kinds = {SPLIT_KINDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLIT_KINDS}
    return kinds.pop() if len(kinds) == 1 else None


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), dtype=np.float32)


def _no_labels() -> np.ndarray:
    return np.zeros((0,), dtype=np.int64)


@dataclass(frozen=True)
class ImageRecord:
    """One image and its annotations, in the pixels of the original image as it is seen: upright.

    Attributes:
        path: the image file; None where the image is generated.
        image_id: unique in its split, stable whatever other images are skipped.
        width, height: of the original image, px.
        boxes: float32[G, 4], (x1, y1, x2, y2) px, inside the image, each side at least 1 px.
        labels: int64[G], 0 to number of classes - 1.
        ignored: float32[R, 4], regions where objects are not annotated, same form as `boxes`.
        ignored_labels: int64[R], the class a region holds for, or `ANY_CLASS`.
        as_stored: the annotations were made on the stored pixels, so that the image is not turned upright by its EXIF
            orientation: sizes and boxes are those of the stored image.
        doubts: verdict and place of each label that could not be understood, and that the record lacks.
    """

    path: Path | None
    image_id: int
    width: int
    height: int
    boxes: np.ndarray = field(default_factory=_no_boxes)
    labels: np.ndarray = field(default_factory=_no_labels)
    ignored: np.ndarray = field(default_factory=_no_boxes)
    ignored_labels: np.ndarray = field(default_factory=_no_labels)
    as_stored: bool = False
    doubts: tuple[str, ...] = ()


Dropped = Literal["label", "no object", "image", "file"]
"""What a verdict leaves out: a label that could not be understood, a label of no object, an image, or a file."""

DOUBTFUL_IMAGE = "image with a label that could not be understood"
"""The verdict on an image left out because an object of it would train as background (--keep-doubtful keeps it)."""
NO_OBJECT = frozenset({"side of zero", "outside the image", "under 1 px of it in the image", "duplicate"})
"""The verdicts on labels that are understood and mark no object, so that their image can be used without them."""


@dataclass
class DataReport:
    """Counts of everything a reader dropped or changed, with the place of each.

    `counts` maps a verdict ("side under 1 px", "unreadable image", ...) to how often it was given; `places` keeps the
    first `keep` places of each as "file:line: what was found" for people to look at. `dropped_kinds` tells what each
    verdict leaves out; those that it lacks are notes: what they were given to is used, and people should know how.
    """

    keep: int = 20
    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    dropped_kinds: dict[str, Dropped] = field(default_factory=dict)

    def note(self, verdict: str, place: str) -> None:
        """Counts one `verdict` on something that is used all the same, found at `place` ("file:line: what")."""
        self.counts[verdict] += 1
        seen = self.places.setdefault(verdict, [])
        if len(seen) < self.keep:
            seen.append(printable(place))

    def drop(self, kind: Dropped, verdict: str, place: str) -> None:
        """Counts one `verdict` on something that is left out."""
        self.dropped_kinds[verdict] = kind
        self.note(verdict, place)

    @property
    def notes(self) -> list[str]:
        """The verdicts that drop nothing, in the order in which they came."""
        return [verdict for verdict in self.counts if verdict not in self.dropped_kinds]

    @property
    def dropped(self) -> int:
        """How many images, annotations and files were dropped: everything counted but the notes."""
        return sum(self.counts[verdict] for verdict in self.dropped_kinds)

    def of_kind(self, kind: Dropped) -> dict[str, int]:
        """How often each verdict of one kind was given, most frequent first."""
        return {verdict: n for verdict, n in self.counts.most_common() if self.dropped_kinds.get(verdict) == kind}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self, places_each: int = 3) -> list[str]:
        """One line a verdict with the first `places_each` places: what is left out first, then notes, which are marked;
        both by their number."""
        lines = []
        for verdict, count in sorted(self.counts.most_common(), key=lambda item: item[0] not in self.dropped_kinds):
            lines.append(f"{'' if verdict in self.dropped_kinds else 'note: '}{count} x {verdict}")
            lines.extend(f"    {place}" for place in self.places[verdict][:places_each])
            if count > places_each:
                lines.append(f"    and {count - places_each} more")
        return lines


@dataclass(frozen=True)
class SplitSource:
    """Where one split lies on disk, found but not read yet.

    Attributes:
        name: the split's name: its folder's, or what a COCO json's name or a data.yaml calls it.
        format: as `find_splits` knows it: "coco", "visdrone", "yolo", ...
        root: the data folder: no file outside it is read.
        annotations: what holds the labels: a COCO json, a folder of txt files, or a data.yaml.
        images: what names the images: folders, and txt files with an image a line. None for a COCO json whose images
            are still to be looked for.
        classes: the file that names the classes of YOLO labels, if there is one.
        also: the other formats in which the same split was found, and which were not taken.
        notes: (verdict, place) of what people should know of how it was found, for the report.
    """

    name: str
    format: str
    root: Path
    annotations: Path
    images: tuple[Path, ...] | None = None
    classes: Path | None = None
    also: tuple[str, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """How a split is read.

    Attributes:
        decode: decode each image as well, and leave out those that cannot be.
        max_pixels: larger images are left out.
        keep_doubtful: keep images of which a label could not be understood, without that label.
        frame_step: of a video, every so many-th frame.
    """

    decode: bool = False
    max_pixels: int = MAX_PIXELS
    keep_doubtful: bool = False
    frame_step: int = 1


@dataclass(frozen=True)
class Split:
    """One split of a data set as a reader read it.

    Attributes:
        name: "train", "val", or whatever the data set calls it.
        records: one an image, in a fixed order (by path), images that cannot be used left out.
        class_names: the names of labels 0, 1, ...
        category_ids: the number of each class in the source's own numbering (VisDrone: 1 to 10), for export.
        report: what was dropped and why.
        render: makes the image, uint8[3, height, width], of a record whose path is None.
        generator: what `render`'s images follow from besides a record's `image_id`: of equal generators they are equal. None
            where that is not known.
        image_root: the folder that the images' names are relative to; None where the images are generated.
        max_pixels: images of more are not decoded.
    """

    name: str
    records: Sequence[ImageRecord]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    report: DataReport
    render: Callable[[ImageRecord], Tensor] | None = None
    generator: str | None = None
    image_root: Path | None = None
    max_pixels: int = MAX_PIXELS

    def first(self, count: int) -> Split:
        """The split with its first `count` records alone."""
        return replace(self, records=self.records[:count])

    @property
    def generated(self) -> bool:
        """Whether its records are made one by one as they are asked for, so that going through them all takes long."""
        return self.render is not None
