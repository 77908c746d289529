"""The files of a run of the command: pictures and videos, COCO json, VisDrone and YOLO txt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np

from zoominnet.errors import UserError
from zoominnet.prediction.drawing import LabelMode, draw
from zoominnet.prediction.result import PICTURE_FORMATS, Result, SaveFormat, save_picture, visdrone_categories
from zoominnet.prediction.sources import SourceFile
from zoominnet.prediction.video import VideoWriter

PICTURES, YOLO_LABELS, YOLO_CLASSES, VISDRONE_LINES = "pictures", "labels", "classes.txt", "visdrone"
COCO_DETECTIONS, COCO_DATA_SET = "detections.json", "coco.json"
ENTRIES = (PICTURES, YOLO_LABELS, YOLO_CLASSES, VISDRONE_LINES, COCO_DETECTIONS, COCO_DATA_SET)
"""All that the writers make in a folder."""


class Writer(Protocol):
    """Writes one form of the results."""

    def image(self, file: SourceFile, result: Result) -> None:
        """Takes the result of an image."""

    def frame(self, file: SourceFile, number: int, seconds: float, rate: Fraction, result: Result) -> None:
        """Takes the result of a video's frame, in the order of the frames; numbers begin with 1."""

    def end_video(self) -> None:
        """After the last frame of a video."""

    def close(self) -> None:
        """After everything, also where a run is interrupted."""


def frame_name(file: SourceFile, number: int) -> PurePosixPath:
    """What a video's frame is called: `clip/0000001` of `clip.mp4`, numbered from 1 as VisDrone's."""
    return file.name.with_suffix("") / f"{number:07d}"


class PictureWriter:
    """Pictures under the names of their images (.png for formats that are rarely shown), videos as MP4."""

    def __init__(self, out: Path, labels: LabelMode, legend: bool, classes: Sequence[int]) -> None:
        self.folder, self.labels, self.legend, self.classes = out / PICTURES, labels, legend, tuple(classes)
        self._video: VideoWriter | None = None

    def image(self, file: SourceFile, result: Result) -> None:
        path = self._place(file, PICTURE_FORMATS, ".png")
        save_picture(draw(result, labels=self.labels, legend=self.legend), path)

    def frame(self, file: SourceFile, number: int, seconds: float, rate: Fraction, result: Result) -> None:
        picture = draw(result, labels=self.labels, legend=self.legend, film_classes=self.classes)
        pixels = np.asarray(picture)
        if self._video is None:
            self._video = VideoWriter(self._place(file, {".mp4"}, ".mp4"), rate, pixels)
        self._video.write(pixels, seconds)

    def _place(self, file: SourceFile, kept: Any, other: str) -> Path:
        name = file.name if file.name.suffix.lower() in kept else file.name.with_name(file.name.name + other)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def end_video(self) -> None:
        if self._video is not None:
            video, self._video = self._video, None
            video.close()

    def close(self) -> None:
        self.end_video()


class TextWriter:
    """A txt file an image, and a frame; empty where nothing was found."""

    def __init__(self, out: Path, kind: SaveFormat, class_names: tuple[str, ...]) -> None:
        self.folder, self.kind = out / (YOLO_LABELS if kind == "yolo" else VISDRONE_LINES), kind
        if kind == "yolo":
            names = "".join(f"{name}\n" for name in class_names)
            (out / YOLO_CLASSES).write_text(names, encoding="utf-8")
        else:
            visdrone_categories(class_names)

    def image(self, file: SourceFile, result: Result) -> None:
        self._write(file.name.with_suffix(".txt"), result)

    def frame(self, file: SourceFile, number: int, seconds: float, rate: Fraction, result: Result) -> None:
        name = frame_name(file, number)
        self._write(name.with_name(f"{name.name}.txt"), result)

    def _write(self, name: PurePosixPath, result: Result) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(result.to_yolo() if self.kind == "yolo" else result.to_visdrone(), encoding="ascii")

    def end_video(self) -> None:
        pass

    def close(self) -> None:
        pass


class CocoWriter:
    """`detections.json`, the list that `loadRes` of pycocotools takes, and `coco.json`, a data set that names the files.

    Images are numbered from 1 in their order. Both files are written as results come, so that a long video needs no
    memory, and are whole json once they are closed.
    """

    def __init__(self, out: Path, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> None:
        self._images: list[str] = []
        self._boxes = 0
        self._list: IO[str] = (out / COCO_DETECTIONS).open("w", encoding="ascii")
        self._data: IO[str] = (out / COCO_DATA_SET).open("w", encoding="ascii")
        categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
        self._list.write("[")
        self._data.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def image(self, file: SourceFile, result: Result) -> None:
        self._add({"file_name": file.name.as_posix()}, result)

    def frame(self, file: SourceFile, number: int, seconds: float, rate: Fraction, result: Result) -> None:
        name = f"{frame_name(file, number).as_posix()}.jpg"
        self._add({"file_name": name, "video": file.name.as_posix(), "frame": number}, result)

    def _add(self, entry: dict[str, Any], result: Result) -> None:
        image_id = len(self._images) + 1
        self._images.append(json.dumps({"id": image_id, **entry, "width": result.width, "height": result.height}))
        for found in result.to_coco(image_id):
            before = "," if self._boxes else ""
            self._boxes += 1
            self._list.write(f"{before}\n{json.dumps(found)}")
            _, _, width, height = found["bbox"]
            found |= {"id": self._boxes, "area": width * height, "iscrowd": 0}
            self._data.write(f"{before}\n{json.dumps(found)}")

    def end_video(self) -> None:
        pass

    def close(self) -> None:
        self._list.write("\n]\n")
        self._list.close()
        images = ",\n".join(self._images)
        self._data.write(f'],\n"images": [\n{images}\n]}}\n')
        self._data.close()


def require_own_names(files: Sequence[SourceFile], save: Sequence[SaveFormat]) -> None:
    """Raises UserError where two files would be written about under one name."""
    if not {"yolo", "visdrone"} & set(save):
        return
    taken: dict[PurePosixPath, SourceFile] = {}
    for file in files:
        other = taken.setdefault(file.name.with_suffix(""), file)
        if other is not file:
            raise UserError(
                f"{file.path}: has the name of {other.path} but for the suffix, so that both would have one txt file; "
                "rename one of them, or predict them apart"
            )
