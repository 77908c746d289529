"""What was found in one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from zoominnet.data import MAX_PIXELS, VISDRONE_CLASSES
from zoominnet.data.visdrone import CATEGORY_IDS
from zoominnet.errors import UserError
from zoominnet.prediction.drawing import LabelMode, draw, require_drawing
from zoominnet.prediction.extras import extra
from zoominnet.prediction.inputs import to_pixels

SaveFormat = Literal["pictures", "coco", "visdrone", "yolo"]
"""What is written of what is found."""
PICTURE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Formats that pictures are written in, by suffix."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What was found in one image, the most certain first.

    Attributes:
        boxes: float32 [N, 4], (x1, y1, x2, y2) px of the original image, upright, inside it.
        scores: float32 [N], falling, 0..1.
        labels: int64 [N], 0 to number of classes - 1.
        width, height: of the original image, upright, px.
        class_names: of the labels 0, 1, ...
        category_ids: the training data's own numbers of the same classes (VisDrone: 1 to 10).
        path: the image's file, None where it came as pixels.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    width: int
    height: int
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    path: Path | None = None
    _pixels: Tensor | None = None
    _max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        place = f" in {self.path.name}" if self.path else ""
        return f"<Result: {self.summary()}{place}, {self.width}x{self.height} px>"

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.class_names[label] for label in self.labels.tolist()]

    @property
    def image(self) -> Tensor:
        """uint8 [3, height, width], RGB, upright; an image file is read again.

        Raises:
            ImageError: the file is gone.
        """
        if self._pixels is not None:
            return self._pixels
        assert self.path is not None
        return to_pixels(self.path, max_pixels=self._max_pixels)

    def summary(self) -> str:
        """ "8 car, 2 bus", by falling number; "nothing" where there is none."""
        return ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common()) or "nothing"

    def plot(self, path: str | Path | None = None, *, labels: LabelMode = "auto", legend: bool = True) -> Image.Image:
        """The image with its boxes drawn by `supervision`; see :func:`zoominnet.prediction.drawing.draw`.

        Args:
            path: where to write it as well (.jpg, .png or .webp); a file of that name is replaced.
            labels: class and score at each box: "on", "off", or "auto": where they hide no other object.
            legend: a strip below the image with the colour, name and number of each class that was found.

        Raises:
            UserError: `supervision` is not installed, or the file cannot be written.
        """
        require_drawing()
        if path is not None:
            require_picture_name(Path(path))
        picture = draw(self, labels=labels, legend=legend)
        if path is not None:
            save_picture(picture, Path(path))
        return picture

    def to_supervision(self) -> Any:
        """`supervision.Detections` with xyxy, confidence, class_id and data["class_name"].

        Raises:
            UserError: `supervision` is not installed.
        """
        import numpy as np

        sv = extra("supervision", "to_supervision")
        return sv.Detections(
            xyxy=self.boxes.numpy().reshape(-1, 4),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """A dict of "image_id", "category_id", "bbox" [x, y, width, height] px and "score" for each box, as pycocotools'
        `loadRes` takes a list of; categories are in the training data's own numbers.

        Args:
            image_id: the image's number in the annotations that the detections are compared with.
        """
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in self._rows()
        ]

    def to_visdrone(self) -> str:
        """VisDrone's result file: `x,y,width,height,score,category,-1,-1` px, a line a box.

        Raises:
            UserError: a class of the model is none of VisDrone's.
        """
        category_of = visdrone_categories(self.class_names)
        lines = (
            f"{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{score:.6f},{category_of[label]},-1,-1\n"
            for (x1, y1, x2, y2), score, label in self._rows()
        )
        return "".join(lines)

    def to_yolo(self) -> str:
        """YOLO's label file with scores: `label x y width height score`, the centre and sides as shares of the image's, a
        line a box."""
        lines = []
        for (x1, y1, x2, y2), score, label in self._rows():
            x, y, w, h = (x1 + x2) / 2 / self.width, (y1 + y2) / 2 / self.height, x2 - x1, y2 - y1
            lines.append(f"{label} {x:.8f} {y:.8f} {w / self.width:.8f} {h / self.height:.8f} {score:.6f}\n")
        return "".join(lines)

    def _rows(self) -> zip[tuple[list[float], float, int]]:
        return zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)


def visdrone_categories(class_names: tuple[str, ...]) -> list[int]:
    """VisDrone's number of each class.

    Raises:
        UserError: one is none of VisDrone's.
    """
    numbers = dict(zip(VISDRONE_CLASSES, CATEGORY_IDS, strict=True))
    if strange := [name for name in class_names if name not in numbers]:
        raise UserError(
            f"VisDrone's format has no class {strange[0]!r}, as the model has; write COCO's or YOLO's (--save coco yolo)"
        )
    return [numbers[name] for name in class_names]


def require_picture_name(path: Path) -> None:
    """Raises UserError unless `path` can be written as a picture, as far as its name and folder tell."""
    if path.suffix.lower() not in PICTURE_FORMATS:
        raise UserError(f"{path}: pictures are written as {', '.join(PICTURE_FORMATS)}; name the file so")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or name another file")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture in the format of its suffix."""
    options = {"quality": 92} if path.suffix.lower() != ".png" else {"compress_level": 3}
    picture.save(path, PICTURE_FORMATS[path.suffix.lower()], **options)
