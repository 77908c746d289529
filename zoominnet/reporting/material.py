"""What the sections of a report are made of: runs as their files tell, and what their models find in the same images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from zoominnet.command import open_data, open_parts
from zoominnet.config import TrainConfig
from zoominnet.data import DataError, ImageError, ImageRecord, Split
from zoominnet.data.drawing import pixels_of
from zoominnet.deployment import SUFFIX, load_onnx
from zoominnet.engine.checkpoint import CheckpointError, find_model_file, load_model
from zoominnet.engine.folder import CONFIG_FILE, LOG_FILE, RESULT_FILE
from zoominnet.engine.inference import predict_split
from zoominnet.errors import UserError
from zoominnet.evaluation import CocoCurves, Detections, ImageErrors, coco_curves, image_errors
from zoominnet.prediction import Detector

SCORE_THRESHOLD, DETECTIONS = 0.05, 100
"""Of the detections that are measured, as in `zoominnet.evaluate` under the COCO protocol."""
CHECKPOINTS_FOLDER = "checkpoints"


class NotShown(Exception):  # noqa: N818
    """Why a section has nothing to show, for people."""


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with what its run wrote.

    Attributes:
        label: what it is called on the page.
        path: as it was given.
        detector: the model.
        folder: of the phase that trained it, None of a model file alone.
        metrics: the lines of its metrics.jsonl, in order.
        result: what its run's result.json holds, None where there is none.
        notes: what people should know of its files.
    """

    label: str
    path: Path
    detector: Detector
    folder: Path | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    result: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def config(self) -> TrainConfig:
        """How it was trained; options that its file does not say have the defaults of today."""
        known = {each.name for each in dataclasses.fields(TrainConfig)}
        return TrainConfig(**{name: value for name, value in self.detector.info.config.items() if name in known})

    @property
    def is_student(self) -> bool:
        return self.detector.model.architecture.is_student

    @property
    def levels(self) -> range:
        """Of its pyramid, finest first."""
        return self.detector.model.architecture.levels

    @property
    def distils(self) -> bool:
        """Whether it learnt from a teacher."""
        return self.is_student and self.config.distils

    @cached_property
    def versions(self) -> str | None:
        """The line of its log with the time of its beginning and the versions of packages, None where there is none."""
        if self.folder is None:
            return None
        with suppress(OSError, UnicodeDecodeError), (self.folder.parent / LOG_FILE).open(encoding="utf-8") as file:
            line = file.readline().strip()
            return line if "python" in line else None
        return None

    def series(self, kind: str, name: str, level: int | None = None) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where they are numbers.

        Args:
            kind: of the lines, "train" or "val".
            name: of the value.
            level: of a list of values, which of them.
        """
        steps, values = [], []
        for line in self.metrics:
            value = line.get(name) if line.get("kind") == kind else None
            if level is not None:
                value = value[level] if isinstance(value, list) and level < len(value) else None
            if isinstance(value, int | float):
                steps.append(int(line["step"]))
                values.append(float(value))
        return steps, values


def read_run(path: Path, label: str) -> Run:
    """A run as :func:`zoominnet.load` finds it, with the files beside its checkpoints.

    Args:
        path: a run folder, a checkpoint folder, a model.safetensors file, the name of a shipped model, or an ONNX
            file of :func:`zoominnet.export`.
        label: what to call it.

    Raises:
        UserError: there is no usable model.
    """
    if path.suffix == SUFFIX:
        of_file, info = load_onnx(path, score_threshold=SCORE_THRESHOLD, max_detections=DETECTIONS)
        return Run(label, path, Detector(of_file, info, path))
    try:
        file = find_model_file(path)
        model, info = load_model(file, score_threshold=SCORE_THRESHOLD, max_detections=DETECTIONS)
    except CheckpointError as error:
        if (path / CONFIG_FILE).exists():
            raise UserError(
                f"{path}: a run without a whole checkpoint so far; wait for its first one, or leave the run out"
            ) from error
        raise
    detector = Detector(model, info, path)
    checkpoints = file.parent.parent
    if checkpoints.name != CHECKPOINTS_FOLDER:
        return Run(label, path, detector)
    folder, notes = checkpoints.parent, []
    metrics, damaged = read_metrics(folder / "metrics.jsonl")
    if damaged:
        notes.append(f"{damaged} lines of metrics.jsonl are cut off or no JSON, and left out")
    result = None
    try:
        result = json.loads((folder.parent / RESULT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"not finished, or stopped: no {RESULT_FILE}; the model is {file.parent.name}, its best so far")
    except (OSError, ValueError):
        notes.append(f"{RESULT_FILE} is damaged, and left out")
    return Run(label, path, detector, folder, metrics, result, tuple(notes))


def read_metrics(file: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """The lines of a metrics.jsonl that are whole, and the number of those that are not; none where there is no file."""
    lines, damaged = [], 0
    with suppress(FileNotFoundError):
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
            else:
                damaged += 1
    return tuple(lines), damaged


def labels_of(paths: Sequence[Path]) -> list[str]:
    """What to call runs by their paths: the last parts that tell them apart, without the folders inside a run."""
    parts = []
    for path in paths:
        words = [part for part in path.parts if part not in ("/", "student", CHECKPOINTS_FOLDER, "model.safetensors")]
        parts.append(words or [str(path)])
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(words[-count:]) for words in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({i})" for i, label in enumerate(labels, start=1)]


def open_validation(config: TrainConfig, *, scene_size: int, console: Console) -> Split:
    """The split that a run is validated on.

    Args:
        config: of the run.
        scene_size: side of synthetic scenes, px.
        console: for counts and reports.

    Raises:
        DataError: not usable.
    """
    try:
        if config.val_fraction is not None:
            split = open_parts(config, config.train_split, config.val_fraction, console=console)[1]
        else:
            split = open_data(
                config, config.val_split, scenes=config.synthetic_images[1], scene_size=scene_size, console=console
            )
    except DataError as error:
        raise DataError(f"{error}; --data and --split name the data to look at", details=error.details) from error
    return split if config.val_images is None else split.first(config.val_images)


def evenly(count: int, most: int | None) -> list[int]:
    """At most `most` of the indices below `count`, at equal distances; None: all."""
    if most is None or most >= count:
        return list(range(count))
    return [i * count // most for i in range(most)]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a model finds in the report's images.

    Attributes:
        detections: one an image, of scores of at least `SCORE_THRESHOLD`, at most `DETECTIONS` of them.
        curves: by the COCO protocol.
        cost: as :func:`zoominnet.engine.inference.cost_of` gives it; and "latency", where it was measured.
        certain: the detections over the report's score threshold.
        errors: of those, by image.
        undecodable: number of images that could not be decoded, in which nothing is found.
    """

    detections: list[Detections]
    curves: CocoCurves
    cost: dict[str, Any]
    certain: list[Detections]
    errors: list[ImageErrors]
    undecodable: int = 0


def measure(
    run: Run, split: Split, cost: dict[str, Any], *, conf: float, progress: Callable[[int], None], **options: Any
) -> Measurement:
    """Runs a model on the report's images.

    Args:
        run: the model, on its device.
        split: the images.
        cost: of the model.
        conf: score threshold of what is counted and drawn.
        progress: called with the number of images done.
        **options: batch_size, workers of :func:`zoominnet.engine.inference.predict_split`.
    """
    found, undecodable = predict_split(
        run.detector.model, split, resize=run.detector.resize, progress=progress, **options
    )
    certain = [each.select(each.scores > conf) for each in found]
    return Measurement(
        found,
        coco_curves(split.records, found, split.class_names, max_dets=DETECTIONS),
        cost,
        certain,
        [image_errors(record, each) for record, each in zip(split.records, certain, strict=True)],
        undecodable,
    )


@dataclass(eq=False)
class Material:
    """All that sections are made of.

    Attributes:
        runs: at least one, all of the same classes.
        measurements: one a run.
        split: the images that were looked at.
        of_images: the number of images of the split that they are taken from.
        data: in words, which data.
        conf: score threshold of what is counted and drawn.
        shown: number of images to show.
        teacher: for the feature maps, None where none is known.
        why_no_teacher: for people.
        facts: name and value of what the page's head says.
        defined: pictures that several figures use: SVG elements by id.
    """

    runs: list[Run]
    measurements: list[Measurement]
    split: Split
    of_images: int
    data: str
    conf: float
    shown: int
    teacher: Run | None = None
    why_no_teacher: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    defined: dict[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.split.class_names

    @property
    def measured(self) -> list[tuple[int, Run, Measurement]]:
        """Number, run and measurement of each."""
        return [(i, *each) for i, each in enumerate(zip(self.runs, self.measurements, strict=True))]

    @cached_property
    def records(self) -> list[ImageRecord]:
        return list(self.split.records)

    def pixels(self, index: int) -> Tensor:
        """An image, uint8 [3, height, width]."""
        return pixels_of(self.records[index], self.split)

    @cached_property
    def showable(self) -> list[int]:
        """The images that can be decoded."""
        found = []
        for index in range(len(self.records)):
            if any(each.undecodable for each in self.measurements):  # else there is no need to decode them all
                try:
                    self.pixels(index)
                except ImageError:
                    continue
            found.append(index)
        return found

    @cached_property
    def ranked(self) -> list[int]:
        """The images with objects by the models' mean F1 over the score threshold, the worst first; of equal ones those with
        more objects first."""

        def key(index: int) -> tuple[float, int]:
            scores = [each.errors[index].f1 for each in self.measurements]
            return sum(scores) / len(scores), -len(self.records[index].boxes)

        return sorted((i for i in self.showable if len(self.records[i].boxes)), key=key)

    @cached_property
    def worst_and_best(self) -> tuple[list[int], list[int]]:
        """The images to show: half of them the worst ones, the worst first, then the best, the best first."""
        best = min(self.shown // 2, len(self.ranked) // 2)
        worst = min(self.shown - best, len(self.ranked) - best)
        return self.ranked[:worst], self.ranked[len(self.ranked) - best :][::-1]

    @cached_property
    def crowded(self) -> list[int]:
        """The images for masks and maps: the two with the most objects of those that were looked at."""
        return sorted(self.showable, key=lambda i: -len(self.records[i].boxes))[:2]
