"""A table's results as a picture: what each model scores for its cost, and its scores while it was trained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoominnet.prediction.extras import extra

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#ee8866", "#44bb99", "#99aa00")
"""In turn, for each row and the rows whose gain is over it: tell apart without red and green (Tol's palettes)."""


def draw_results(results: dict[str, Any], file: Path) -> None:
    """Writes a PNG: AP over GFLOPs with its standard deviation, and AP over epochs, the mean of the seeds.

    A row whose gain is over another has that one's colour, and a filled dot and a full line in the place of an empty and
    a dashed one.

    Args:
        results: as :func:`zoominnet.reproduction.tables.results_of` gives them.
        file: to write.

    Raises:
        UserError: matplotlib is not installed.
    """
    extra("matplotlib", "the picture of a table")
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if row["mean"].get("AP") is not None]
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    costs, curves = figure.subplots(1, 2)
    colours = colours_of(rows)
    for row, colour in zip(rows, colours, strict=True):
        over = "against" in row
        ap, spread = row["mean"]["AP"], row["standard_deviation"].get("AP", 0)
        fill = colour if over else "white"
        costs.errorbar(
            row["gflops"], ap, yerr=spread, fmt="o", color=colour, mfc=fill, ms=7, capsize=3, label=row["label"]
        )
        epochs, means = mean_curve(row["runs"])
        curves.plot(epochs, means, "o-" if over else "o--", color=colour, mfc=fill, ms=4, label=row["label"])
    costs.set(xlabel="GFLOPs (multiply-adds) of an image", ylabel="AP", xscale="log", ylim=(0, None))
    curves.set(xlabel="share of the training", ylabel="AP on the validation images", xlim=(0, 1.02), ylim=(0, None))
    for axes in (costs, curves):
        axes.grid(alpha=0.3)
    figure.legend(*costs.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(results["title"])
    figure.savefig(file, dpi=110)


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
