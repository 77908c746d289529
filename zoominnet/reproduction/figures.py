"""A table's results as pictures: scores and costs, scores while training, and what models find and see in images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoominnet.data import Split
from zoominnet.prediction.comparison import compare_on_split
from zoominnet.prediction.extras import extra
from zoominnet.reproduction.plan import Row
from zoominnet.reproduction.runs import Run

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#ee8866", "#44bb99", "#99aa00")
"""In turn, for each row and the rows whose gain is over it: tell apart without red and green (Tol's palettes)."""
MARKERS = "os^Dv<>Ph*"
"""Of the rows of one colour, in turn."""
IMAGES_SHOWN = 3


def draw_results(results: dict[str, Any], file: Path) -> None:
    """Writes a PNG: AP over GFLOPs with its standard deviation, and AP over epochs, the mean of the seeds.

    A row whose gain is over another has that one's colour, and a filled mark and a full line in the place of an empty and
    a dashed one. Where most of the rows cost the same, AP stands row by row, with each seed, and every row has a colour or a
    mark of its own.

    Args:
        results: as :func:`zoominnet.reproduction.tables.results_of` gives them.
        file: to write.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = [row for row in results["rows"] if row["mean"].get("AP") is not None]
    figure = extra("matplotlib.figure", "the picture of a table").Figure(figsize=(13, 5.5), layout="constrained")
    costs_of_rows = [row["gflops"] for row in rows]
    by_row = 2 * max(map(costs_of_rows.count, costs_of_rows), default=0) > len(rows)
    costs, curves = figure.subplots(1, 2)
    colours = [COLOURS[n % len(COLOURS)] for n in range(len(rows))] if by_row else colours_of(rows)
    for n, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        over = "against" in row
        ap, spread = row["mean"]["AP"], row["standard_deviation"].get("AP", 0)
        fill = colour if over else "white"
        alike = sum(each == colour and "against" in other for each, other in zip(colours[:n], rows[:n], strict=True))
        mark = MARKERS[(n // len(COLOURS) if by_row else alike) % len(MARKERS)] if over else "o"
        look = {"fmt": mark, "color": colour, "mfc": fill, "ms": 7, "capsize": 3}
        if by_row:
            costs.errorbar(ap, n, xerr=spread, **look)
            seeds = [run["AP"] for run in row["runs"] if run["AP"] is not None]
            costs.plot(seeds, [n + 0.3] * len(seeds), "|", color=colour, ms=5)
        else:
            costs.errorbar(row["gflops"], ap, yerr=spread, **look, label=row["label"])
        epochs, means = mean_curve(row["runs"])
        style = "-" if over else "--"
        curves.plot(epochs, means, style, marker=mark, color=colour, mfc=fill, ms=4, label=row["label"])
    if by_row:
        costs.set(xlabel="AP, its standard deviation, and each seed", xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        costs.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
        for label, colour in zip(costs.get_yticklabels(), colours, strict=True):
            label.set_color(colour)
    else:
        costs.set(xlabel="GFLOPs (multiply-adds) of an image", ylabel="AP", xscale="log", ylim=(0, None))
        for axis in (costs.xaxis.set_major_formatter, costs.xaxis.set_minor_formatter):
            axis("{x:g}")
        figure.legend(*costs.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    curves.set(xlabel="share of the training", ylabel="AP on the validation images", xlim=(0, 1.02), ylim=(0, None))
    for axes in (costs, curves):
        axes.grid(alpha=0.3)
    figure.suptitle(results["title"], x=0.01, ha="left")
    figure.savefig(file, dpi=110)


def draw_images(rows: Sequence[Row], runs: Sequence[Run], split: Split, folder: Path, name: str) -> list[str]:
    """Writes what the models of some rows find and see in a few images: the paper's Figures 5, 9 and 11.

    Args:
        rows: of an item.
        runs: of all rows; the first of each that is done is taken.
        split: to take images from.
        folder, name: the files are ``folder/name-detections.png``, ``-masks.png`` and ``-activations.png``.

    Returns:
        The names of the files; none where a row has no finished run.

    Raises:
        UserError: `supervision` is not installed.
    """
    first = {run.training.name: run for run in reversed(runs) if run.done()}
    shown = [first[row.training.name] for row in rows if row.training.name in first]
    if not rows or len(shown) < len(rows):
        return []
    models = {row.label: run.checkpoint for row, run in zip(rows, shown, strict=True)}
    student = shown[-1]
    pictures = compare_on_split(
        models, split, count=IMAGES_SHOWN, mask_of=student.architecture, image_size=student.image_size()
    )
    for kind, picture in pictures.items():
        picture.save(folder / f"{name}-{kind}.png")
    return [f"{name}-{kind}.png" for kind in pictures]


def colours_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One a row: its own, or that of the row that its gain is over."""
    own: dict[str, str] = {}
    for row in rows:
        family = row.get("against", row["label"])
        own[row["label"]] = own.setdefault(family, COLOURS[len(set(own.values())) % len(COLOURS)])
    return [own[row["label"]] for row in rows]


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Of runs that were measured at the same times, these as shares of the training, and the mean AP at each."""
    times = [share for share, _ in runs[0]["curve"]]
    means = [statistics.mean(ap for run in runs for share, ap in run["curve"] if share == each) for each in times]
    return times, means
