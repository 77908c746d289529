"""``python -m zoominnet.predict MODEL SOURCE``: what a trained model finds in images and videos."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from zoominnet.command import make_console, run_with_options
from zoominnet.config import MAX_WORKERS
from zoominnet.data import ImageError
from zoominnet.data.records import printable
from zoominnet.errors import UserError
from zoominnet.load import load
from zoominnet.prediction import Detector, PredictOptions, Result
from zoominnet.prediction.drawing import LabelMode, require_drawing
from zoominnet.prediction.extras import MissingExtraError, extra
from zoominnet.prediction.result import SaveFormat, visdrone_categories
from zoominnet.prediction.sources import SourceFile, find_files, read_ahead
from zoominnet.prediction.video import VideoReader
from zoominnet.prediction.writers import (
    ENTRIES,
    CocoWriter,
    PictureWriter,
    TextWriter,
    Writer,
    require_own_names,
)
from zoominnet.rules import Rule, at_least, at_most, check_fields

RESULT_FILE = "predict.json"
LINES_SHOWN = 20


@dataclass(frozen=True)
class PredictConfig(PredictOptions):
    """Options of ``python -m zoominnet.predict``.

    Example:
        >>> zoominnet.PredictConfig("runs/fa", ["photos"], conf=0.4, save=["yolo"], out="runs/photos")
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """A run folder (its best student), a checkpoint folder, a model.safetensors file, or the name of a shipped model."""
    source: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE ...")]
    """Images, videos, folders of these (with all below), or patterns in quotes ("day*/**/*.jpg")."""
    out: Path = Path("runs/predict")
    """Folder of what is written: a new or empty one."""
    save: Annotated[tuple[SaveFormat, ...], Rule(lambda kinds: len(kinds) > 0, "names nothing to write")] = (
        "pictures",
        "coco",
    )
    """What to write. pictures: images and videos with boxes. coco: detections.json for pycocotools' loadRes, coco.json with
    the files' names. visdrone, yolo: a txt file an image."""
    labels: LabelMode = "auto"
    """Class and score at each box; auto: where they hide no other object."""
    legend: bool = True
    """A strip below each picture with the colour, name and number of each class."""
    frame_step: Annotated[int, at_least(1)] = 1
    """Use every so many-th frame of videos."""
    max_megapixels: Annotated[float, Rule(lambda value: 0 < value <= 178, "is not over 0 and at most 178")] = 100.0
    """Leave out images of more megapixels, before they are decoded."""
    workers: Annotated[int, at_least(0), at_most(MAX_WORKERS)] = 2
    """Threads that read images while the model is at work."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    overwrite: bool = False
    """Replace what an earlier run of this command left in --out."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        given = (self.source,) if isinstance(self.source, str | Path) else self.source
        object.__setattr__(self, "source", tuple(str(each) for each in given))
        for name in ("model", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "save", tuple(self.save))
        if self.classes is not None:
            names = (self.classes,) if isinstance(self.classes, str) else self.classes
            object.__setattr__(self, "classes", tuple(str(each) for each in names))

    def check(self) -> None:
        """Refuses values that cannot be used.

        Raises:
            UserError: naming the option.
        """
        check_fields(self)


def predict(config: PredictConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Looks for objects in images and videos and writes what is found into a folder.

    A file that cannot be read is counted, named and left out; of a video that is cut off, the frames before that are used.

    Args:
        config: which model, on what, how, and what to write.
        console: where to print progress and the report; None is standard output, ``Console(quiet=True)`` nowhere.

    Returns:
        What ``predict.json`` in the folder holds: "finished", "images", "frames", "boxes", "at_max_det" (images and frames with
        as many boxes as --max-det), "boxes_by_class", "broken" (by file, why),
        "notes" (by video, where it is cut off), "seconds" and "images_per_second" (with reading and writing).

    Raises:
        UserError: an option or a file that cannot be used; none of the images could be read.

    Example:
        >>> report = zoominnet.predict(zoominnet.PredictConfig("runs/fa", ["photos"], save=["coco"]))
        >>> report["images"], report["broken"]
    """
    config.check()
    console = console or make_console()
    files = find_files(config.source, without=config.out)
    _require_extras(config, files)
    require_own_names(files, config.save)
    _refuse_used(config.out, config.overwrite)
    detector = load(config.model, device=config.device)
    labels = None if config.classes is None else detector.labels_of(config.classes)
    if "visdrone" in config.save:
        visdrone_categories(detector.class_names)
    _make_folder(config.out, config.overwrite)
    run = _Run(config, detector, console)
    shown = range(detector.num_classes) if labels is None else labels
    with ExitStack() as stack:
        stack.callback(run.write_report)  # also of a run that is interrupted, so that --overwrite knows it
        for kind in dict.fromkeys(config.save):
            run.writers.append(writer := _writer_of(kind, config, detector, shown))
            stack.callback(writer.close)
        run.images([file for file in files if not file.is_video])
        for file in files:
            if file.is_video:
                run.video(file)
        run.finished = True
    report = run.report()
    run.say(report)
    if len(report["broken"]) == len(files):
        first, reason = next(iter(report["broken"].items()))
        raise UserError(f"none of {counted(len(files), 'file')} could be read; {first}: {reason}")
    return report


def _require_extras(config: PredictConfig, files: Sequence[SourceFile]) -> None:
    """Refuses what needs a package that is not there, before anything is loaded."""
    if "pictures" in config.save:
        try:
            require_drawing()
        except MissingExtraError as error:
            others = " ".join(kind for kind in config.save if kind != "pictures") or "coco"
            raise MissingExtraError(f"{error}; or write no pictures: --save {others}") from error
    if any(file.is_video for file in files):
        extra("av", "reading videos")


def _refuse_used(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: exists and is not empty; name another folder, or pass --overwrite")


def _make_folder(out: Path, overwrite: bool) -> None:
    """The folder, without what an earlier run left in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite and (out / RESULT_FILE).is_file():
            for name in (*ENTRIES, RESULT_FILE):
                path = out / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from error


def _writer_of(kind: SaveFormat, config: PredictConfig, detector: Detector, shown: Sequence[int]) -> Writer:
    if kind == "pictures":
        return PictureWriter(config.out, config.labels, config.legend, shown)
    if kind == "coco":
        return CocoWriter(config.out, detector.class_names, detector.category_ids)
    return TextWriter(config.out, kind, detector.class_names)


def counted(number: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {what}{'s' * (number != 1)}"


class _SpeedColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


class _Run:
    """What was found so far, and the writers that are told of it."""

    def __init__(self, config: PredictConfig, detector: Detector, console: Console) -> None:
        self.config, self.detector, self.console = config, detector, console
        self.writers: list[Writer] = []
        self.counts = Counter[str]()
        self.seen_images, self.seen_frames, self.seen_videos = 0, 0, 0
        self.full = 0
        self.broken: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.started, self.ended = time.perf_counter(), 0.0
        self.finished = False

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _SpeedColumn())
        return Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )

    def _leave_out(self, file: SourceFile, error: ImageError) -> None:
        self.broken[file.name.as_posix()] = str(error).removeprefix(f"{file.path}: ")

    def images(self, files: Sequence[SourceFile]) -> None:
        """Looks at images, broken ones left out."""
        if not files:
            return
        passed: deque[SourceFile] = deque()
        max_pixels = round(self.config.max_megapixels * 1e6)
        with self._progress() as progress:
            task = progress.add_task("images", total=len(files))

            def usable() -> Iterator[Tensor]:
                for file, pixels in read_ahead(files, workers=self.config.workers, max_pixels=max_pixels):
                    if isinstance(pixels, ImageError):
                        self._leave_out(file, pixels)
                        progress.advance(task)
                    else:
                        passed.append(file)
                        yield pixels

            for result in self.detector.stream(usable(), self.config):
                file = passed.popleft()
                self._count(result)
                self.seen_images += 1
                for writer in self.writers:
                    writer.image(file, result)
                progress.advance(task)

    def video(self, file: SourceFile) -> None:
        """Looks at the frames of a video, as far as it can be read."""
        try:
            reader = VideoReader(file.path, self.config.frame_step)
        except ImageError as error:
            self._leave_out(file, error)
            return
        passed: deque[tuple[int, float]] = deque()
        step = self.config.frame_step
        with reader, self._progress() as progress:
            expected = -(-reader.expected // step) if reader.expected else None
            task = progress.add_task(file.name.as_posix(), total=expected)

            def frames() -> Iterator[Tensor]:
                for number, seconds, pixels in reader.frames():
                    passed.append((number, seconds))
                    yield pixels

            seen = 0
            try:
                for result in self.detector.stream(frames(), self.config):
                    number, seconds = passed.popleft()
                    self._count(result)
                    seen += 1
                    for writer in self.writers:
                        writer.frame(file, number, seconds, reader.rate / step, result)
                    progress.advance(task)
            except ImageError as error:
                self._leave_out(file, error)
                return
            finally:
                self.seen_frames += seen
                for writer in self.writers:
                    writer.end_video()
        if not seen:
            self.broken[file.name.as_posix()] = reader.cut_off or "holds no frame"
            return
        self.seen_videos += 1
        if reader.cut_off:
            self.notes[file.name.as_posix()] = f"{reader.cut_off}; what was before is used"

    def _count(self, result: Result) -> None:
        self.counts.update(result.names)
        self.full += len(result) == self.config.max_det

    def report(self) -> dict[str, Any]:
        """JSON-ready."""
        seconds = self.ended - self.started
        seen = self.seen_images + self.seen_frames
        config = self.config
        return {
            "finished": self.finished,
            "model": str(config.model),
            "source": list(config.source),
            "conf": config.conf,
            "iou": config.iou,
            "max_det": config.max_det,
            "classes": None if config.classes is None else list(config.classes),
            "slice": config.slice,
            "slice_size": config.slice_size or self.detector.image_size if config.slice else None,
            "overlap": config.overlap if config.slice else None,
            "image_size": self.detector.image_size,
            "resize": self.detector.resize,
            "images": self.seen_images,
            "videos": self.seen_videos,
            "frames": self.seen_frames,
            "boxes": self.counts.total(),
            "at_max_det": self.full,
            "boxes_by_class": dict(self.counts.most_common()),
            "broken": self.broken,
            "notes": self.notes,
            "device": str(self.detector.device),
            "seconds": round(seconds, 3),
            "images_per_second": round(seen / seconds, 3) if seconds > 0 else None,
            "written": [name for name in ENTRIES if (config.out / name).exists()],
        }

    def write_report(self) -> None:
        """Writes `predict.json`, once everything else is written."""
        self.ended = time.perf_counter()
        (self.config.out / RESULT_FILE).write_text(json.dumps(self.report(), indent=1) + "\n", encoding="utf-8")

    def say(self, report: dict[str, Any]) -> None:
        """Prints the report."""

        def line(text: str, style: str | None = None) -> None:
            self.console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)

        parts = []
        if self.seen_images or not self.seen_videos:
            parts.append(counted(self.seen_images, "image"))
        if self.seen_videos:
            parts.append(f"{counted(self.seen_frames, 'frame')} of {counted(self.seen_videos, 'video')}")
        found = ", ".join(f"{count} {name}" for name, count in report["boxes_by_class"].items()) or "nothing found"
        line(f"{', '.join(parts)}: {found}; {report['images_per_second']:.1f} images/s on {report['device']}")
        if self.full:
            limit = f"--max-det {self.config.max_det}"
            line(
                f"{counted(self.full, 'image')} with as many boxes as {limit} lets through: raise it to see more",
                "yellow",
            )
        for video, note in self.notes.items():
            line(f"{video}: {note}", "yellow")
        if self.broken:
            line(f"{counted(len(self.broken), 'file')} could not be used:", "yellow")
            for name, reason in list(self.broken.items())[:LINES_SHOWN]:
                line(f"  {name}: {reason}", "yellow")
            if len(self.broken) > LINES_SHOWN:
                line(f"  and {len(self.broken) - LINES_SHOWN} more, all in {RESULT_FILE}", "yellow")
        line(f"written: {self.config.out} ({', '.join([*report['written'], RESULT_FILE])})")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.predict", PredictConfig, predict, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
