"""Charts: where points lie, whose they are, and what of them a page could trip over."""

from __future__ import annotations

import json
import re
import sys
from html import unescape

import numpy as np
import pytest

from zoominnet.prediction.extras import MissingExtraError
from zoominnet.reporting.charts import MOST_POINTS, Series, averaged, bar_chart, line_chart


def points_of(svg: str) -> list[list]:
    return json.loads(unescape(re.search(r'data-points="(.*?)"', svg)[1]))


def test_points_lie_on_the_lines_that_matplotlib_draws() -> None:
    svg = line_chart("loss", "step", [Series(0, [0, 10, 20], [1.0, 3.0, 2.0]), Series(2, [0, 20], [2.0, 2.5])])
    for run, values in ((0, ["1", "3", "2"]), (2, ["2", "2.5"])):
        own = [point for point in points_of(svg) if point[0] == run]
        assert [point[4] for point in own] == values
        path = re.search(rf'<g class="run run-{run}"><path d="(.*?)"', svg)[1]
        drawn = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), dtype=float)
        assert drawn == pytest.approx(np.array([point[1:3] for point in own]), abs=0.06)  # points have one decimal
    assert [point[3] for point in points_of(svg)][:3] == ["step 0", "step 10", "step 20"]
    first, second, third = (point[2] for point in points_of(svg)[:3])
    assert first > third > second  # SVG's y grows downwards
    assert first - third == pytest.approx(third - second, abs=0.2)


def test_logarithmic_values_keep_their_ratios() -> None:
    svg = line_chart("weight", "step", [Series(0, [0, 1, 2], [1e-5, 1e-3, 1e-1])], log=True)
    first, second, third = (point[2] for point in points_of(svg))
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert first - second > 50  # the axes follow the values
    assert "<text" in svg
    assert "mathdefault" not in svg


def test_colours_are_the_pages_and_runs_have_classes() -> None:
    svg = line_chart("loss", "step", [Series(1, [0, 1], [0, 1]), Series(None, [0, 1], [1, 0])])
    assert "stroke: var(--run-1)" in svg
    assert "stroke: var(--accent)" in svg
    assert "var(--text)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert svg.count('class="run run-') == 1
    assert "font-family" not in svg


def test_more_runs_than_colours_are_dashed() -> None:
    one, nine = (line_chart("loss", "step", [Series(run, [0, 1], [0, 1])]) for run in (0, 8))
    assert "stroke-dasharray" not in one
    assert "stroke-dasharray" in nine
    assert "var(--run-0)" in nine
    assert "run-8" in nine


def test_nothing_has_a_name_that_another_chart_has() -> None:
    charts = [line_chart(title, "step", [Series(0, [0, 1], [0, 1])]) for title in ("loss", "box loss")]
    charts.append(line_chart("loss", "step", [Series(0, [0, 1], [0, 2])]))
    names = [name for chart in charts for name in re.findall(r' id="(.*?)"', chart)]
    assert names
    assert len(set(names)) == len(names)
    for chart in charts:
        own = set(re.findall(r' id="(.*?)"', chart))
        assert set(re.findall(r'url\(#(.*?)\)|href="#(.*?)"', chart)) <= {(name, "") for name in own} | {
            ("", name) for name in own
        }
        assert "http" not in chart


def test_the_same_chart_is_the_same_text() -> None:
    assert len({line_chart("loss", "step", [Series(0, [0, 1], [0, 1])]) for _ in range(2)}) == 1


@pytest.mark.parametrize("upright", [True, False])
def test_bars_are_as_long_as_their_values(upright) -> None:
    svg = bar_chart(
        "AP", ["car", "bus <x>"], [Series(0, [0, 1], [0.2, 0.4]), Series(1, [0, 1], [0.1, np.nan])], upright=upright
    )
    lengths = []
    for group in re.findall(r'<g class="run run-0"><path d="(.*?)"', svg):
        corners = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", group), dtype=float)
        lengths.append(np.ptp(corners[:, 1 if upright else 0]))
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.01)
    assert [(point[0], point[3], point[4]) for point in points_of(svg)] == [
        *((0, "car", "0.2"), (0, "bus <x>", "0.4")),
        *((1, "car", "0.1"), (1, "bus <x>", "–")),
    ]
    assert "bus <x>" not in svg


def test_long_lines_are_averaged() -> None:
    x = np.arange(1000)
    short = averaged(Series(0, x, 2.0 * x))
    assert len(short.x) == MOST_POINTS
    assert short.x[0] == pytest.approx(1.5)
    assert short.y == pytest.approx(2 * np.array(short.x))
    assert averaged(short) is short


def test_without_matplotlib(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"charts of a report needs .*: pip install 'zoominnet\[report\]'"):
        line_chart("loss", "step", [])
