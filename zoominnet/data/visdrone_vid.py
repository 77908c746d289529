"""VisDrone's videos (VID and MOT), read frame by frame: `sequences/<video>/*.jpg` and `annotations/<video>.txt`.

A line is `frame,target,x,y,w,h,score,category,truncation,occlusion`, with score and category as in VisDrone-DET.
Format: the VisDrone toolkits, https://github.com/VisDrone/VisDrone2018-MOT-toolkit.
"""

from __future__ import annotations

from pathlib import Path

from zoominnet.data.annotations import BoxCollector
from zoominnet.data.records import VISDRONE_CLASSES, DataReport, ReadOptions, Split, SplitSource
from zoominnet.data.sequences import LabelFile, Video, read_videos, video_folders
from zoominnet.data.visdrone import CATEGORY_IDS, add_object, find_folders

_COLUMNS = range(10, 11)


def find(path: Path) -> list[SplitSource]:
    """The folders at `path` and below that hold `sequences/` and `annotations/` with txt files, each a split."""
    return find_folders(path, "sequences", "visdrone-vid")


def read(source: SplitSource, report: DataReport, options: ReadOptions) -> Split:
    """Reads one split. Labels are the categories less one; ignored regions and "others" hold for any class.

    Raises:
        DataError: there are no frames.
    """
    assert source.images is not None
    (sequences,) = source.images
    videos = [
        Video(folder, [LabelFile(source.annotations / f"{folder.name}.txt", _COLUMNS, _add)])
        for folder in video_folders(sequences)
    ]
    records = read_videos(source, videos, report, options)
    return Split(source.name, records, VISDRONE_CLASSES, CATEGORY_IDS, report, image_root=sequences)


def _add(boxes: BoxCollector, numbers: list[float], place: str) -> None:
    _, _, x, y, width, height, score, category, _, _ = numbers
    add_object(boxes, (x, y, width, height), score, category, place)
