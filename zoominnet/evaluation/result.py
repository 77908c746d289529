"""What both protocols report: scores from 0 to 1, as JSON-ready values and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.table import Table


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class, from 0 to 1; NaN where the class has no boxes.

    Attributes:
        name: of the class.
        boxes: ground-truth boxes evaluated.
        ap: average precision, mean over the IoU thresholds 0.50, 0.55, ..., 0.95.
        ap50: average precision at IoU 0.50.
    """

    name: str
    boxes: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class Result:
    """Scores over all classes, from 0 to 1. Classes without boxes count in no mean; a mean over nothing is NaN.

    Attributes:
        images: images evaluated, those without boxes or detections included.
        boxes: ground-truth boxes evaluated.
        ap, ap50, ap75: average precision, mean over the IoU thresholds 0.50, 0.55, ..., 0.95, and at the two named.
        ar: recall, mean over the same thresholds, by the number of detections counted per image.
        classes: one per class name, in order.
    """

    protocol: ClassVar[str]

    images: int
    boxes: int
    ap: float
    ap50: float
    ap75: float
    ar: dict[int, float]
    classes: tuple[ClassScore, ...]

    def counts(self) -> dict[str, int]:
        """What was evaluated, by name."""
        return {"images": self.images, "boxes": self.boxes}

    def rows(self) -> list[tuple[str, float]]:
        """(name, value) of each score over all classes, under the names that papers use."""
        return [
            ("AP", self.ap),
            ("AP50", self.ap50),
            ("AP75", self.ap75),
            *((f"AR_{count}", value) for count, value in self.ar.items()),
        ]

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, None for NaN: protocol, counts, rows by name, and `classes` by name."""
        return {
            "protocol": self.protocol,
            **self.counts(),
            **{name: _json_number(value) for name, value in self.rows()},
            "classes": {
                score.name: {"boxes": score.boxes, "AP": _json_number(score.ap), "AP50": _json_number(score.ap50)}
                for score in self.classes
            },
        }

    def table(self) -> Table:
        """The rows, the AP of each class, and the counts; scores with four decimals, "-" for NaN."""
        table = Table("Score", title=f"{self.protocol} protocol")
        table.add_column("Value", justify="right")
        for name, value in self.rows():
            table.add_row(name, _text(value))
        table.add_section()
        for score in self.classes:
            table.add_row(f"AP {score.name}", _text(score.ap))
        table.add_section()
        for name, count in self.counts().items():
            table.add_row(name.replace("_", " "), str(count))
        return table


def mean_defined(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
