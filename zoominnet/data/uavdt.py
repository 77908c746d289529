"""UAVDT's videos (DET and MOT), read frame by frame.

Frames are `<video>/img000001.jpg`; the labels of all of a video's frames are in `<video>_gt_whole.txt`, its ignored
regions in `<video>_gt_ignore.txt`. A line is `frame,target,x,y,w,h,out of view,occlusion,category`, of which the
ignored regions use the first six. `M_attr/train` and `M_attr/test` have a file a video, and so tell the splits.
Format: the UAVDT benchmark, https://sites.google.com/view/grli-uavdt.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zoominnet.data.annotations import BoxCollector
from zoominnet.data.records import ANY_CLASS, DataReport, ReadOptions, Split, SplitSource
from zoominnet.data.sequences import LabelFile, Video, read_videos

CLASSES = ("car", "truck", "bus")
"""UAVDT's categories 1 to 3."""
_LABELS, _REGIONS, _ATTRIBUTES = "_gt_whole.txt", "_gt_ignore.txt", "_attr.txt"
_FRAME = re.compile(r"^img[0-9]+\.jpe?g$")
_LABEL_COLUMNS, _REGION_COLUMNS = range(9, 10), range(6, 11)
# UAV-benchmark-MOTD_v1.0/GT, UAV-benchmark-M/<video> and M_attr/train, below the folder that was unpacked to.
_SEARCH_DEPTH = 3


def search(path: Path) -> list[SplitSource]:
    """The splits of UAVDT at `path` or below: those that `M_attr` tells, or one of all videos, named as the folder."""
    labels: Path | None = None
    folders: dict[str, Path] = {}
    split_of: dict[str, str] = {}
    for directory, subfolders, names in os.walk(path):
        folder = Path(directory)
        if labels is None and any(name.endswith(_LABELS) for name in names):
            labels = folder
        if folder.parent.name == "M_attr":
            split_of |= {name.removesuffix(_ATTRIBUTES): folder.name for name in names if name.endswith(_ATTRIBUTES)}
        if any(_FRAME.match(name) for name in names):
            folders[folder.name] = folder
        deepest = len(folder.relative_to(path).parts) == _SEARCH_DEPTH
        subfolders[:] = [] if deepest else sorted(name for name in subfolders if not name.startswith("."))
    if labels is None:
        return []
    labelled = [name for name in sorted(folders) if (labels / f"{name}{_LABELS}").is_file()]
    notes = [
        ("video without a file of labels: not read", str(folders[n])) for n in sorted(folders) if n not in labelled
    ]
    by_split: dict[str, list[Path]] = {}
    for name in labelled:
        by_split.setdefault(split_of.get(name, path.resolve().name), []).append(folders[name])
    return [
        SplitSource(split, "uavdt", root=path, annotations=labels, images=tuple(videos), notes=tuple(notes))
        for split, videos in sorted(by_split.items(), reverse=True)
    ]


def read(source: SplitSource, report: DataReport, options: ReadOptions) -> Split:
    """Reads one split. Labels are the categories less one; ignored regions hold for any class.

    Raises:
        DataError: there are no frames.
    """
    assert source.images is not None
    videos = [
        Video(
            folder,
            [
                LabelFile(source.annotations / f"{folder.name}{_LABELS}", _LABEL_COLUMNS, _add_object),
                LabelFile(source.annotations / f"{folder.name}{_REGIONS}", _REGION_COLUMNS, _add_region, needed=False),
            ],
        )
        for folder in source.images
    ]
    records = read_videos(source, videos, report, options)
    image_root = Path(os.path.commonpath([folder.parent for folder in source.images]))
    return Split(source.name, records, CLASSES, tuple(range(1, len(CLASSES) + 1)), report, image_root=image_root)


def _add_object(boxes: BoxCollector, numbers: list[float], place: str) -> None:
    _, _, x, y, width, height, _, _, category = numbers
    if category not in range(1, len(CLASSES) + 1):
        boxes.leave_out("unknown class", place)
        return
    boxes.add(x, y, width, height, int(category) - 1, place, ignored=False)


def _add_region(boxes: BoxCollector, numbers: list[float], place: str) -> None:
    x, y, width, height = numbers[2:6]
    boxes.add(x, y, width, height, ANY_CLASS, place, ignored=True)
