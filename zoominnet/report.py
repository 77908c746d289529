"""``python -m zoominnet.report RUN ...``: what runs did, on one page: curves, scores, errors, masks, feature maps, images.

The page is one HTML file that holds all of it and asks for nothing from anywhere.
"""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import zoominnet
from zoominnet.command import (
    check_same_classes,
    choose_device,
    installed_version,
    left_out_of,
    make_console,
    run_with_options,
    seed_of_data,
)
from zoominnet.config import MAX_WORKERS, TrainConfig
from zoominnet.data import DataFormat, Split
from zoominnet.deployment import known_cost
from zoominnet.engine.inference import undecodable_warning
from zoominnet.errors import UserError
from zoominnet.evaluation import measure_latency
from zoominnet.load import device_for
from zoominnet.prediction.extras import extra
from zoominnet.reporting.material import Material, Run, evenly, labels_of, measure, open_validation, read_run
from zoominnet.reporting.page import make_page
from zoominnet.reporting.sections import SECTIONS
from zoominnet.rules import FROM_0_BELOW_1, at_least, at_most, check_fields, option_words

if TYPE_CHECKING:
    SectionName: TypeAlias = str
else:  # an entry of the dictionary is a choice of the option
    SectionName = Literal[tuple(SECTIONS)]


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``python -m zoominnet.report``.

    Example:
        >>> zoominnet.ReportConfig(["runs/fa", "runs/fa-plain"], out="fa.html", images=100)
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders (their best student; RUN/teacher is the teacher's), checkpoint folders, model.safetensors files or names of
    shipped models, of the same classes."""
    out: Path = Path("report.html")
    """The file to write."""
    overwrite: bool = False
    """Replace the file if there is one."""
    labels: tuple[str, ...] = ()
    """What to call the runs, one a run. None given: by their paths."""
    title: str | None = None
    """Of the page. None: the names of the runs."""
    teacher: Path | None = None
    """The teacher whose feature maps are shown, as RUN. None: a teacher among the runs, or the one that the first distilled
    student learnt from, if it is still there."""
    data: str | None = None
    """"synthetic" or the folder, json or data.yaml of a data set. None: what the first run was validated on."""
    data_format: Literal["auto"] | DataFormat = "auto"
    """Format of --data; "auto" finds out."""
    image_root: str | None = None
    """The folder of a COCO json's images, where it is not in the usual place beside the json."""
    split: str | None = None
    """Name of the split. None: the one that the first run was validated on."""
    images: Annotated[int | None, at_least(1)] = 200
    """Look at no more images than so many, taken at equal distances from the split. None: all."""
    conf: Annotated[float, FROM_0_BELOW_1] = 0.25
    """Score over which detections are counted and drawn; AP takes those below it, too."""
    shown: Annotated[int, at_least(0)] = 6
    """Images to show, half of them those that the models are worst at, half the best."""
    sections: Annotated[tuple[SectionName, ...], tyro.conf.arg(metavar="SECTION ...")] = tuple(SECTIONS)
    """What to show, in this order."""
    latency_repeats: Annotated[int, at_least(0)] = 10
    """Timed predictions of one image by each model; 0 measures no latency."""
    batch_size: Annotated[int, at_least(1)] = 1
    """Images at a time."""
    workers: Annotated[int, at_least(0), at_most(MAX_WORKERS)] = 0
    """Processes that read images."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        given = (self.runs,) if isinstance(self.runs, str | Path) else self.runs
        object.__setattr__(self, "runs", tuple(map(Path, given)))
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "teacher", None if self.teacher is None else Path(self.teacher))
        for name in ("labels", "sections"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def check(self) -> None:
        """Refuses values that no report can use.

        Raises:
            UserError: naming the option.
        """
        check_fields(self)
        if not self.runs:
            raise UserError("no run: name one or more run folders, checkpoints or shipped models")
        if not self.sections:
            raise UserError(f"--sections: names nothing to show; choose from {', '.join(SECTIONS)}")
        if unknown := [name for name in self.sections if name not in SECTIONS]:
            raise UserError(f"--sections {unknown[0]}: no such section; choose from {', '.join(SECTIONS)}")
        if self.labels and len(self.labels) != len(self.runs):
            raise UserError(
                f"--labels: {len(self.labels)} names for {len(self.runs)} runs; give one a run, in their order"
            )
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"--labels {' '.join(self.labels)}: two are alike; give each run a name of its own")
        if self.out.is_dir():
            raise UserError(f"--out {self.out}: is a folder; name a file in it")
        if not self.out.parent.is_dir():
            raise UserError(f"--out {self.out}: there is no folder {self.out.parent}; make it, or name another file")
        if self.out.exists() and not self.overwrite:
            raise UserError(f"--out {self.out}: exists already; name another file, or pass --overwrite")


def report(config: ReportConfig, *, console: Console | None = None) -> Path:
    """Measures what runs left, and writes a page on them.

    Args:
        config: which runs, on which data, and what to show.
        console: where to say what goes on; None is standard output, ``Console(quiet=True)`` nowhere.

    Returns:
        The file.

    Raises:
        UserError: an option, a run or data that cannot be used, or a missing extra.

    Example:
        >>> zoominnet.report(zoominnet.ReportConfig(["runs/fa", "demo-teacher"], out="fa.html"))
    """
    config.check()
    extra("matplotlib", "the charts of a report")
    console = console or make_console()
    begun, device = time.monotonic(), choose_device(config.device)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    labels = config.labels or labels_of(config.runs)
    runs = [read_run(path, label) for path, label in zip(config.runs, labels, strict=True)]
    first = runs[0]
    for run in runs:
        check_same_classes(f"{run.path}", run.detector.class_names, first.detector.class_names, f"{first.path}")
        run.detector.place(device_for(run.detector.model, config.device))
        for note in run.notes:
            say(f"{run.label}: {note}", "yellow")
    data_config = data_of(config, first.config)
    sizes = [run.detector.image_size * run.detector.model.architecture.input_divisor for run in runs]
    whole = open_validation(data_config, scene_size=max(sizes), console=console)
    check_same_classes(data_config.data, whole.class_names, first.detector.class_names, f"{first.path}")
    split = dataclasses.replace(whole, records=[whole.records[i] for i in evenly(len(whole.records), config.images)])
    if not split.records:
        raise UserError(
            f"{data_config.data}: split {whole.name!r} has no usable image; `zoominnet data check` tells why"
        )
    teacher, why_no_teacher = find_teacher(config, runs)
    material = Material(
        runs=runs,
        measurements=[],
        split=split,
        of_images=len(whole.records),
        data=words_for(data_config, split, len(whole.records)),
        conf=config.conf,
        shown=config.shown,
        teacher=teacher,
        why_no_teacher=why_no_teacher,
    )
    for run in runs[1:]:
        if config.data is None and data_words(run.config) != data_words(first.config):
            say(
                f"{run.label}: was validated on {data_words(run.config)}, and is measured on {material.data} here",
                "yellow",
            )
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for run in runs:
            task = progress.add_task(run.label, total=len(split.records))

            def advance(done: int, task: Any = task) -> None:
                progress.update(task, completed=done)

            cost = cost_with_latency(run, config.latency_repeats)
            material.measurements.append(
                measure(
                    run,
                    split,
                    cost,
                    conf=config.conf,
                    progress=advance,
                    batch_size=config.batch_size,
                    workers=config.workers,
                )
            )
            say(f"{run.label}: AP {material.measurements[-1].curves.ap():.4f} on {material.data}")
    material.facts += facts_of(config, material, device)
    if left_out := left_out_of(whole):
        reasons = ", ".join(f"{count} ({reason})" for reason, count in left_out.items())
        material.facts.append(("left out", f"images of the whole split: {reasons}"))
    if undecodable := max(each.undecodable for each in material.measurements):
        warning = undecodable_warning(undecodable, len(split.records))
        say(warning, "yellow")
        material.facts.append(("not seen", warning))
    with console.status("drawing", spinner="line") as status:
        page = make_page(
            config.title or f"Report: {', '.join(labels)}",
            material,
            config.sections,
            progress=lambda title: status.update(f"drawing: {title}"),
        )
    config.out.write_text(page, encoding="utf-8")
    say(f"report: {config.out}, {config.out.stat().st_size / 1e6:.1f} MB, {time.monotonic() - begun:.0f} s")
    return config.out


def data_of(config: ReportConfig, trained: TrainConfig) -> TrainConfig:
    """The options of the data to look at: those that a run was trained with, but for what the command says."""
    if config.data is None and config.split is None:
        if config.data_format != "auto" or config.image_root is not None:
            raise UserError("--data-format and --image-root: are of --data; give it, or leave them out")
        return trained
    changed = dataclasses.replace(
        trained, val_fraction=None, val_images=None, val_split=config.split or trained.val_split
    )
    if config.data is None:
        return changed
    return dataclasses.replace(
        changed, data=config.data, data_format=config.data_format, images=config.image_root, strict=False
    )


def data_words(config: TrainConfig) -> str:
    """What a run was validated on, so that equal words mean equal images."""
    first = "" if config.val_images is None else f", the first {config.val_images}"
    if config.data != "synthetic":
        part = "" if config.val_fraction is None else f" (a share of {config.val_fraction:g} of {config.train_split})"
        return f"{config.data} {config.val_split}{part}{first}"
    drawn = f"seed {seed_of_data(config)}, zoom {config.synthetic_zoom:g}, {config.synthetic_classes}"
    return f"synthetic {config.val_split} ({drawn}){first}"


def words_for(config: TrainConfig, split: Split, of_images: int) -> str:
    """Which images are looked at."""
    count, what = len(split.records), data_words(config)
    if count == of_images:
        return f"all {count} images of {what}"
    return f"{count} of the {of_images} images of {what}, at equal distances"


def find_teacher(config: ReportConfig, runs: Sequence[Run]) -> tuple[Run | None, str]:
    """The teacher for the feature maps; or None, and why."""
    if config.teacher is not None:
        return read_run(config.teacher, labels_of([config.teacher])[0]), ""
    for run in runs:
        if not run.is_student:
            return run, ""
    taught = next((run for run in runs if run.distils), None)
    if taught is None:
        return None, "none of these runs learnt from one (--teacher names one)"
    path = Path(taught.config.teacher)
    if taught.config.teacher == "train":
        if taught.folder is None:
            return None, f"{taught.label} is a model file alone (--teacher names its teacher)"
        path = taught.folder.parent / "teacher"
    try:
        return read_run(path, labels_of([path])[0]), ""
    except UserError as error:
        return None, f"{error} (--teacher names one)"


def cost_with_latency(run: Run, repeats: int) -> dict[str, Any]:
    """What a model costs, with the time of single images where `repeats` is not 0."""
    model = run.detector.model
    cost = known_cost(model)
    if repeats:
        image = torch.rand(3, model.image_size, model.image_size, device=run.detector.device)
        cost["latency"] = measure_latency(lambda: model([image]), run.detector.device, repeats=repeats, warmup=2)
    return cost


def facts_of(config: ReportConfig, material: Material, device: torch.device) -> list[tuple[str, str]]:
    """What the page's head says."""
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "torchvision", "numpy"))
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
    return [
        ("made by", shlex.join(["python", "-m", "zoominnet.report", *words_of_report(config)])),
        ("with", f"zoominnet {zoominnet.__version__}, python {platform.python_version()}, {versions}"),
        ("on", f"{device} ({name}), {datetime.now().astimezone():%Y-%m-%d %H:%M %z}"),
        ("images", material.data),
    ]


def words_of_report(config: ReportConfig) -> list[str]:
    """The command line that asks for a report."""
    return [*map(str, config.runs), *option_words(config, ReportConfig(config.runs), but=("runs",))]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    return run_with_options("zoominnet.report", ReportConfig, report, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
