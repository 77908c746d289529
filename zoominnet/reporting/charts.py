"""Charts as SVG elements of a page, by matplotlib, in the colours of the page's styles."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoominnet.prediction.extras import extra
from zoominnet.reporting.markup import DASH, RUN_COLOURS, escape

WIDTH_PX, HEIGHT_PX = 340, 230
"""So small that text stays readable where a telephone shows it smaller still."""
MOST_POINTS = 250
"""Of a line; of longer ones neighbouring points are averaged."""
_TEXT, _GRID, _ACCENT = "#010101", "#020202", "#040404"
_RUN = "#0300{:02x}"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zoominnet",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "grid.color": _GRID,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "path.simplify_threshold": 0.2,
}


Limits = tuple[float | None, float | None]
"""Of an axis; None: as the values ask for."""


@dataclass(frozen=True)
class Series:
    """Values of one run.

    Attributes:
        run: its number; None: of no run.
        x, y: of equal length; of bars `x` are the numbers of the categories.
    """

    run: int | None
    x: Sequence[float]
    y: Sequence[float]


def colour_of(run: int | None) -> str:
    """What stands for a run's colour until the page's styles give it."""
    return _ACCENT if run is None else _RUN.format(run % RUN_COLOURS)


def averaged(series: Series) -> Series:
    """At most `MOST_POINTS` points, each the mean of as many neighbours."""
    if len(series.x) <= MOST_POINTS:
        return series
    parts = np.array_split(np.arange(len(series.x)), MOST_POINTS)
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    return Series(series.run, [float(x[p].mean()) for p in parts], [float(y[p].mean()) for p in parts])


def line_chart(
    title: str,
    x_label: str,
    series: Sequence[Series],
    *,
    x_limits: Limits = (None, None),
    y_limits: Limits = (None, None),
    log: bool = False,
) -> str:
    """A line a series.

    Args:
        title: what the values are.
        x_label: of the horizontal axis.
        series: of any number of points.
        x_limits, y_limits: None: as the values ask for.
        log: logarithmic values.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    chart = _Chart(title)
    for each in map(averaged, series):
        dots = "o" if len(each.x) <= 12 else ""
        (line,) = chart.axes.plot(
            each.x,
            each.y,
            dots + ("--" if each.run is not None and each.run >= RUN_COLOURS else "-"),
            color=colour_of(each.run),
            linewidth=1.5,
            markersize=4,
        )
        line.set_gid(f"run-{each.run}-" if each.run is not None else None)
        chart.note(each, [f"{x_label} {x:.6g}" for x in each.x])
    chart.axes.set_xlabel(x_label)
    if all(float(x).is_integer() for each in series for x in each.x):
        chart.axes.xaxis.get_major_locator().set_params(integer=True)
    if log:
        chart.logarithmic()
    chart.limit(x_limits, y_limits)
    return chart.svg()


def bar_chart(title: str, categories: Sequence[str], series: Sequence[Series], *, upright: bool = True) -> str:
    """A group of bars a category, in it a bar a series.

    Args:
        title: what the values are.
        categories: their names.
        series: one value a category each; those that are not numbers have no bar.
        upright: names below upright bars; else beside lying ones, which leaves room for long names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    chart = _Chart(title, height=HEIGHT_PX if upright else max(HEIGHT_PX, 60 + len(categories) * (6 + 9 * len(series))))
    width = 0.8 / max(1, len(series))
    for place, each in enumerate(series):
        at = np.asarray(each.x, dtype=float) - 0.4 + width * (place + 0.5)
        values = np.nan_to_num(np.asarray(each.y, dtype=float))
        draw = chart.axes.bar if upright else chart.axes.barh
        for bar in draw(at, values, width * 0.9, color=colour_of(each.run)):
            bar.set_gid(f"run-{each.run}-" if each.run is not None else None)
        ends = (at, values) if upright else (values, at)
        chart.note(Series(each.run, *ends), [categories[int(x)] for x in each.x], values=each.y)
    ticks = {"xticks" if upright else "yticks": range(len(categories))}
    names = {"xticklabels" if upright else "yticklabels": categories}
    chart.axes.set(**ticks, **names)
    chart.axes.grid(visible=False, axis="x" if upright else "y")
    if all(value >= 0 for each in series for value in np.nan_to_num(np.asarray(each.y, dtype=float))):
        chart.limit(*((None, None), (0, None))[:: 1 if upright else -1])
    if not upright:
        chart.axes.invert_yaxis()
    return chart.svg()


class _Chart:
    """One pair of axes, and the points that the page names where the pointer is near."""

    def __init__(self, title: str, height: int = HEIGHT_PX) -> None:
        self._matplotlib = extra("matplotlib", "the charts of a report")
        figure = extra("matplotlib.figure", "the charts of a report")
        self._points: list[tuple[Series, Sequence[str], Sequence[float]]] = []
        self._title, self._height = title, height
        with self._matplotlib.rc_context(_STYLE):
            # At 72 dots an inch matplotlib's px are those of the SVG.
            self._figure = figure.Figure(figsize=(WIDTH_PX / 72, height / 72), dpi=72, layout="constrained")
            self.axes: Any = self._figure.subplots()
            self.axes.set_title(title, loc="left")

    def logarithmic(self) -> None:
        """Makes the values logarithmic, their ticks plain numbers."""
        ticker = extra("matplotlib.ticker", "the charts of a report")
        self.axes.set_yscale("log")
        for axis_formatter in (self.axes.yaxis.set_major_formatter, self.axes.yaxis.set_minor_formatter):
            axis_formatter(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))

    def limit(self, x: Limits, y: Limits) -> None:
        """Sets those limits that are not None: setting None would keep the axes from looking at the values."""
        for setter, (low, high), names in (
            (self.axes.set_xlim, x, ("left", "right")),
            (self.axes.set_ylim, y, ("bottom", "top")),
        ):
            given = {name: value for name, value in zip(names, (low, high), strict=True) if value is not None}
            if given:
                setter(**given)

    def note(self, series: Series, places: Sequence[str], values: Sequence[float] | None = None) -> None:
        """Has the page name the points of a series.

        Args:
            series: the points, in the units of the axes.
            places: what to call their places.
            values: what to say of them; None: their `y`.
        """
        self._points.append((series, places, series.y if values is None else values))

    def svg(self) -> str:
        buffer = io.StringIO()
        with self._matplotlib.rc_context(_STYLE):
            self._figure.savefig(buffer, format="svg", transparent=True)
        points = json.dumps(self._named_points(), separators=(",", ":"))
        own = hashlib.sha256((self._title + points).encode()).hexdigest()[:8]
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH_PX} {self._height}" role="img" aria-label="{escape(self._title)}" '
            f'data-points="{escape(points)}">{themed(buffer.getvalue(), own)}</svg>'
        )

    def _named_points(self) -> list[list[Any]]:
        """Of each point run, x and y px, place, value, as page.js takes them."""
        named: list[list[Any]] = []
        for series, places, values in self._points:
            points = np.column_stack((np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)))
            for (x, y), place, value in zip(self.axes.transData.transform(points), places, values, strict=True):
                if np.isfinite((x, y)).all():
                    said = DASH if np.isnan(value) else f"{value:.4g}"
                    named.append([series.run, round(float(x), 1), round(self._height - float(y), 1), place, said])
        return named


def themed(svg: str, own: str) -> str:
    """The inside of an SVG by matplotlib, with classes for its runs, and the page's colours and font in the place of its own.

    Args:
        svg: the whole file.
        own: what the names in it are to begin with, so that no other element of the page has them.
    """
    inside = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r" font-family: [^;\"]*;", "", inside)
    inside = re.sub(r' id="run-(\d+)-"', r' class="run run-\1"', inside)
    inside = inside.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', inside))
    inside = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", inside)
    inside = re.sub(r'(url\(|href=")#', rf"\g<1>#{own}-", inside)
    names = ((_TEXT, "text"), (_GRID, "grid"), (_ACCENT, "accent"))
    for colour, name in (*names, *((_RUN.format(i), f"run-{i}") for i in range(RUN_COLOURS))):
        inside = inside.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", inside).replace("> <", "><").strip()
