"""Videos as folders of frames, with the labels of all frames of one in a txt file of numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zoominnet.data.annotations import (
    BoxCollector,
    RecordList,
    finite_number,
    finite_numbers,
    read_text_file,
    text_lines,
)
from zoominnet.data.images import ImageError, inspect_images, list_images
from zoominnet.data.records import DataError, DataReport, ImageRecord, ReadOptions, SplitSource


class LabelFile(NamedTuple):
    """A txt file of a video's labels.

    path: of the file, which may be missing unless it is `needed`.
    columns: how many fields a line may have; the first one is the frame's number.
    add: adds the numbers of one line, found at the given place, to the boxes of its frame.
    """

    path: Path
    columns: range
    add: Callable[[BoxCollector, list[float], str], None]
    needed: bool = True


class Video(NamedTuple):
    """One video: the folder of its frames, whose names end in the frame's number, and its files of labels."""

    frames: Path
    labels: Sequence[LabelFile]


# A line's numbers (None where a verdict says why they cannot be used), its place, the verdict, and its file.
_Entry = tuple[list[float] | None, str, str, LabelFile]


def read_videos(
    source: SplitSource, videos: Sequence[Video], report: DataReport, options: ReadOptions
) -> list[ImageRecord]:
    """Reads every `options.frame_step`-th frame of each video, from the first.

    An image's id is the position of its frame, from 1, in all videos, whatever is left out. A frame that no line names
    is an image without objects; a video without its file of labels is left out.

    Raises:
        DataError: there are no frames.
    """
    real_root = source.root.resolve()
    records = RecordList(report, options)
    first_id = 1
    for video in videos:
        frames: dict[int, Path] = {}
        for name in list_images(video.frames):
            digits = re.search(r"[0-9]+$", name.stem)
            if digits is None or int(digits[0]) in frames:
                report.drop("image", "frame without a number of its own", str(video.frames / name))
            else:
                frames[int(digits[0])] = video.frames / name
        numbers = sorted(frames)
        ids = {number: first_id + index for index, number in enumerate(numbers)}
        first_id += len(numbers)
        used = numbers[:: options.frame_step]
        try:
            entries = _entries(video, frames.keys(), real_root, report)
        except (ImageError, OSError) as error:
            for number in used:
                report.drop("image", "video without a readable annotation file", f"{frames[number]}: {error}")
            continue
        paths = [frames[number] for number in used]
        headers = inspect_images(paths, source.root, decode=options.decode, max_pixels=options.max_pixels)
        for number, path, header in zip(used, paths, headers, strict=True):
            if isinstance(header, ImageError):
                report.drop("image", header.verdict, str(header))
                continue
            boxes = BoxCollector(header.width, header.height, report)
            for line, place, verdict, file in entries[number]:
                if line is None:
                    boxes.leave_out(verdict, place)
                else:
                    file.add(boxes, line, place)
            records.add(path, ids[number], header, boxes)
    if first_id == 1:
        raise DataError(f"{source.root}: no frames: each video is a folder of images whose names end in a number")
    return records.records


def _entries(
    video: Video, frames: Container[object], real_root: Path, report: DataReport
) -> defaultdict[int, list[_Entry]]:
    """The lines of a video's files of labels, by the frame that they name."""
    by_frame: defaultdict[int, list[_Entry]] = defaultdict(list)
    for file in video.labels:
        if not file.needed and not file.path.exists():
            continue
        content = read_text_file(file.path, real_root)
        for fields, place in text_lines(content, file.path, partial(report.drop, "label"), separator=","):
            frame = finite_number(fields[0].strip())
            if frame is None or frame not in frames:
                report.drop("label", "annotation of an unknown frame", place)
                continue
            line = finite_numbers(fields)
            verdict = "not a finite number"
            if len(fields) not in file.columns:
                line, verdict = None, f"not {file.columns[0]} fields"
            by_frame[int(frame)].append((line, place, verdict, file))
    return by_frame


def video_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted: a video each."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
