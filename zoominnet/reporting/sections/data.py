"""What the images hold, as the paper's Figure 7."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from zoominnet.data.statistics import summarize
from zoominnet.reporting.charts import Series, bar_chart
from zoominnet.reporting.markup import escape, figures, number, paragraph, table
from zoominnet.reporting.material import Material

_SIDES_PX = (0, 8, 16, 32, 64, 96, 128, 256)
"""Limits of the histogram of box sides; beyond the last one there is one bar more."""
_SIZES_LISTED = 6


def build(material: Material) -> str:
    summary = summarize(material.split)
    per_image = summary["boxes_per_image"]
    sizes = list(summary["image_sizes"].items())
    listed = ", ".join(f"{size} ({count})" for size, count in sizes[:_SIZES_LISTED])
    more = f" and {len(sizes) - _SIZES_LISTED} other sizes" if len(sizes) > _SIZES_LISTED else ""
    percentiles = ", ".join(f"{side:.0f} ({name} %)" for name, side in summary["box_side_percentiles"].items())
    lines = [
        f"{material.data[0].upper()}{material.data[1:]}: {summary['boxes']} boxes, {per_image['mean']:.1f} an image on average, at most "
        f"{per_image['max']}; {summary['images_without_objects']} images without objects, {summary['ignored_regions']} ignored "
        "regions.",
        f"Image sizes, px: {listed}{more}.",
    ]
    if percentiles:
        lines.append(f"Box side, the square root of the area, px (percentile): {percentiles}.")
    total = max(1, summary["boxes"])
    rows = [
        [escape(row["name"]), str(row["boxes"]), number(100 * row["boxes"] / total, 1)]
        + [str(row[size]) for size in ("small", "medium", "large")]
        for row in [*summary["classes"], {**summary, "name": "all"}]
    ]
    names = [f"{row['name']} ({row['boxes'] / total:.0%})" for row in summary["classes"]]
    counts = Series(None, range(len(names)), [row["boxes"] for row in summary["classes"]])
    boxes = np.concatenate([record.boxes for record in material.records])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    histogram = np.bincount(np.digitize(sides, _SIDES_PX[1:]), minlength=len(_SIDES_PX))
    limits = [*(f"{a}–{b}" for a, b in pairwise(_SIDES_PX)), f"≥ {_SIDES_PX[-1]}"]
    charts = [
        bar_chart("boxes by class, and their share", names, [counts], upright=False),
        bar_chart("boxes by side, px", limits, [Series(None, range(len(limits)), histogram.tolist())], upright=False),
    ]
    columns = ("class", "boxes", "%", "small", "medium", "large")
    return "".join(map(paragraph, lines)) + figures(charts) + table(columns, rows)
