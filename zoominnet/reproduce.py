"""``python -m zoominnet.reproduce ITEM ...``: the paper's tables, trained, measured and set beside its figures.

What stands behind ``--`` are options of ``python -m zoominnet.train`` for every run: ``-- --data VISDRONE --workers 8``.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import rich.box
import tyro
from rich.console import Console
from rich.table import Table

from zoominnet.command import make_console, open_data, run_command
from zoominnet.config import TrainConfig
from zoominnet.data import Split
from zoominnet.engine.folder import write_json
from zoominnet.engine.provenance import here
from zoominnet.errors import UserError
from zoominnet.prediction.extras import MissingExtraError
from zoominnet.reproduction.estimates import Estimates, duration
from zoominnet.reproduction.execution import Executor
from zoominnet.reproduction.figures import draw_images, draw_results
from zoominnet.reproduction.items import ITEMS
from zoominnet.reproduction.runs import ReproductionError, Run, runs_of, shell_line
from zoominnet.reproduction.scales import SCALES, ScaleName
from zoominnet.reproduction.tables import markdown, plus_minus, results_of
from zoominnet.rules import POSITIVE, at_least, check_fields, option
from zoominnet.train import spell_out

ItemName = Literal[(*ITEMS, "all")]  # type: ignore[valid-type]
OF_THE_TABLES = ("profile", "student", "teacher", "distill", "seed", "out", "resume")
"""Options that each run of a table has by itself."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Options of ``python -m zoominnet.reproduce``."""

    items: tyro.conf.Positional[tuple[ItemName, ...]]
    """Which tables. Their runs are shared: one teacher serves all."""
    scale: ScaleName = "small"
    """paper: as written, on VisDrone. small: on drawn scenes, for a machine with two cores."""
    seeds: Annotated[int | None, at_least(1)] = None
    """Runs of each student, by seeds 0, 1, ... None: 3 at the small scale, 1 at the paper's. Teachers are trained once."""
    budget: Annotated[float | None, POSITIVE] = None
    """Minutes. No run is begun that would take longer than what is left, and what is at work at the end is stopped; the same
    command goes on with it."""
    jobs: Annotated[int, at_least(1)] = 1
    """Runs at a time. Small models leave most of a processor idle: as many as there are cores, or several on a GPU, are
    faster together. Large ones fill a GPU, which takes turns with them."""
    only: tuple[str, ...] = ()
    """Trainings to run, by their names (--list), with the teachers that they need. None: all."""
    list: bool = False
    """Train nothing: list the runs in their order, what is done, how long the others will take, and their commands."""
    out: Path | None = None
    """Folder of the runs and results. None: runs/reproduce-SCALE."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def folder(self) -> Path:
        return self.out or Path(f"runs/reproduce-{self.scale}")


def reproduce(
    config: ReproduceConfig, options: Sequence[str] = (), *, console: Console | None = None
) -> dict[str, Any]:
    """Trains what is not trained yet, measures, and writes ``results.json`` and a Markdown file an item.

    Args:
        config: which items, and how.
        options: words of the command line of ``python -m zoominnet.train``, for every run.
        console: where to say what goes on; None is standard output.

    Returns:
        What ``results.json`` holds: under "items" the rows of each, with every run's seed and scores.

    Raises:
        UserError: an option that cannot be used, a folder with runs by other options, or a run that failed; what is done is
            kept, and written down.
    """
    check_fields(config)
    console = console or make_console(standing=True)
    names = list(ITEMS) if "all" in config.items else list(dict.fromkeys(config.items))
    if not names:
        raise ReproductionError(f"no item: name one or more of {', '.join((*ITEMS, 'all'))}")
    scale = with_options(SCALES[config.scale].config, options)
    if config.scale == "paper" and scale.data == "synthetic":
        raise ReproductionError("--scale paper: needs VisDrone's folder; add  -- --data FOLDER")
    seeds = range(config.seeds or SCALES[config.scale].seeds)
    trainings = {
        (training.name, seed): (training, seed) for name in names for training, seed in ITEMS[name].trainings(seeds)
    }
    runs = runs_of(trainings.values(), scale, config.folder, SCALES[config.scale].taught)
    wanted = selected(runs, config.only)
    data = _Data(scale)
    estimates = Estimates(runs, lambda: data.training)
    if config.list:
        console.print(list_of(wanted, estimates))
        for run in wanted:
            console.print(shell_line(run), highlight=False, markup=False, soft_wrap=True)
        return {}
    about = here()

    def write() -> dict[str, Any]:
        taught = dataclasses.replace(scale, **SCALES[config.scale].taught)
        return write_results(
            names, runs, taught, {"command": command_of(config, names, options), **about}, config.folder, console
        )

    deadline = math.inf if config.budget is None else time.monotonic() + 60 * config.budget
    left = Executor(config.jobs, deadline, about, estimates, console, write).do(wanted)
    result = write()
    pictures = [
        file
        for name in names
        for file in draw(name, result["items"][name], runs, data.validation, config.folder, console)
    ]
    for name in names:
        console.print(table_of(result["items"][name]))
    console.print(
        f"results: {', '.join([str(config.folder / 'results.json'), *(f'{name}.md' for name in names), *pictures])}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if left.waiting:
        console.print(left_over(left.waiting, estimates), highlight=False, markup=False, soft_wrap=True)
    if left.signal is not None:
        raise Stopped(left.signal)
    if left.failed:
        failed = [f"{name}: {said}" for name, said in left.failed.items()]
        raise ReproductionError(
            f"{len(failed)} of {len(wanted)} runs failed; mend the cause and repeat the command", details=failed
        )
    return result


def command_of(config: ReproduceConfig, names: Sequence[str], options: Sequence[str]) -> str:
    """The command line that has these results; the folder and the budget change none of them."""
    words = ["python", "-m", "zoominnet.reproduce", *names, "--scale", config.scale]
    if config.seeds is not None:
        words += ["--seeds", str(config.seeds)]
    if config.jobs > 1:
        words += ["--jobs", str(config.jobs)]
    if config.only:
        words += ["--only", *config.only]
    return shlex.join([*words, *(["--", *options] if options else [])])


def write_results(
    names: Sequence[str],
    runs: Sequence[Run],
    scale: TrainConfig,
    about: dict[str, Any],
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Writes ``results.json`` and a Markdown file an item, and returns what the first of these holds."""
    folder.mkdir(parents=True, exist_ok=True)
    items = {name: results_of(ITEMS[name], runs, scale, console) for name in names}
    result = {**about, "date": f"{date.today()}", "items": items}
    for name in names:
        (folder / f"{name}.md").write_text(markdown(result, name), encoding="utf-8")
    write_json(folder / "results.json", result)
    return result


def draw(
    name: str, results: dict[str, Any], runs: Sequence[Run], val: Split, folder: Path, console: Console
) -> list[str]:
    """Draws the results of an item; says why not, where it cannot. Returns the names of the files."""
    if not any(row["runs"] for row in results["rows"]):
        return []
    try:
        draw_results(results, folder / f"{name}.png")
        return [f"{name}.png", *draw_images(ITEMS[name].pictured, runs, val, folder, name)]
    except MissingExtraError as error:
        console.print(str(error), style="yellow", highlight=False, markup=False, soft_wrap=True)
        return []


class Stopped(UserError):  # noqa: N818
    """A stop signal came; the runs that were at work have their checkpoints."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on")
        self.exit_status = 128 + number


class _Data:
    """The data of all runs, read when they are first asked for."""

    def __init__(self, scale: TrainConfig) -> None:
        self.scale = scale

    def _open(self, split: str, scenes: int) -> Split:
        quiet, size = Console(quiet=True), self.scale.teacher_size
        return open_data(self.scale, split, scenes=scenes, scene_size=size, console=quiet)

    @cached_property
    def training(self) -> Split:
        return self._open(self.scale.train_split, self.scale.synthetic_images[0])

    @cached_property
    def validation(self) -> Split:
        return self._open(self.scale.val_split, self.scale.synthetic_images[1])


def with_options(scale: TrainConfig, words: Sequence[str]) -> TrainConfig:
    """A scale's configuration with options of the command line.

    Raises:
        ReproductionError: an option that the tables' runs have by themselves.
    """
    given = tyro.cli(
        TrainConfig, args=spell_out(words), default=scale, prog="python -m zoominnet.reproduce ITEM ... --"
    )
    for name in OF_THE_TABLES:
        if getattr(given, name) != getattr(scale, name):
            raise ReproductionError(f"{option(name)}: each run of a table has its own; leave it out")
    if given.val_fraction is not None:
        raise ReproductionError(
            "--val-fraction: a table needs data with a split of its own to validate on; leave it out"
        )
    return given


def selected(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs of the trainings of these names, and the teachers that they need; all where there are no names."""
    known = list(dict.fromkeys(run.training.name for run in runs))
    if unknown := [name for name in names if name not in known]:
        raise ReproductionError(f"--only {unknown[0]}: no such training; these are {', '.join(known)}")
    needed = {id(run) for run in runs if not names or run.training.name in names}
    for run in reversed(runs):
        if id(run) in needed and run.teacher is not None:
            needed.add(id(run.teacher))
    return [run for run in runs if id(run) in needed]


def list_of(runs: Sequence[Run], estimates: Estimates) -> Table:
    """The runs in their order, with what is done of them."""
    table = Table("run", "state", box=rich.box.SIMPLE_HEAD)
    for column in ("AP", "1e15 multiply-adds", "took or will take"):
        table.add_column(column, justify="right")
    for run in runs:
        done = run.done()
        seconds = run.seconds if done else estimates.seconds_left(run)
        state = "done" if done else "begun" if run.begun() else ""
        score = f"{run.result['AP'] or 0:.4f}" if done else ""
        work = f"{estimates.work(run) / 1e6:.3g}"
        table.add_row(run.name, state, score, work, "not known yet" if seconds is None else duration(seconds))
    return table


def left_over(runs: Sequence[Run], estimates: Estimates) -> str:
    """What the same command will do next."""
    seconds = [estimates.seconds_left(run) for run in runs]
    known = [each for each in seconds if each is not None]
    time_ = f", about {duration(sum(known))} one after the other" if len(known) == len(seconds) else ""
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    seeds: dict[str, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.training.name, []).append(run)
    names = [
        each[0].name if len(each) == 1 else f"{name} seeds {' '.join(str(run.seed) for run in each)}"
        for name, each in seeds.items()
    ]
    return f"left: {count}{time_}: {', '.join(names)}; the same command goes on"


def table_of(results: dict[str, Any]) -> Table:
    """For the terminal."""
    scores = list(next(row["paper"] for row in results["rows"] if row["paper"] is not None))
    table = Table("model", title=results["title"], box=rich.box.SIMPLE_HEAD)
    for column in ("runs", *scores, "paper's AP"):
        table.add_column(column, justify="right")
    for row in results["rows"]:
        cells = [plus_minus(row["mean"].get(name), row["standard_deviation"].get(name)) for name in scores]
        paper = "" if row["paper"] is None else f"{row['paper']['AP']:.3f}"
        table.add_row(row["label"], str(len(row["runs"])), *cells, paper)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status (see zoominnet.errors)."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, options = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    given = tyro.cli(ReproduceConfig, args=own, prog="python -m zoominnet.reproduce", description=__doc__)
    return run_command("zoominnet.reproduce", lambda: reproduce(given, options), debug=given.debug)


if __name__ == "__main__":
    sys.exit(main())
