"""Precision over recall by size, as the paper's Figure 10."""

from __future__ import annotations

import numpy as np

from zoominnet.reporting.charts import Series, line_chart
from zoominnet.reporting.markup import escape, figures, paragraph
from zoominnet.reporting.material import Material
from zoominnet.reporting.sections.classes import SIZES

RECALLS = np.linspace(0, 1, 101)


def build(material: Material) -> str:
    curves = [each.curves for each in material.measurements]

    def charts(label: int | None) -> list[str]:
        """By size, those without boxes left out."""
        found = []
        for size, name in enumerate(SIZES):
            series = []
            for i, c in enumerate(curves):
                of_classes = c.precision[0, :, :, size] if label is None else c.precision[0, :, [label], size].T
                of_classes = of_classes[:, ~np.isnan(of_classes).any(axis=0)]
                if of_classes.shape[1]:
                    series.append(Series(i, RECALLS.tolist(), of_classes.mean(axis=1).tolist()))
            if series:
                limits = (0.0, 1.02)
                found.append(
                    line_chart(f"precision, {name} objects", "recall", series, x_limits=limits, y_limits=limits)
                )
        return found

    about = (
        "At IoU 0.5, the mean over classes with boxes: at each recall the highest precision at that recall or a higher one. "
        "The area under a class's line is its AP50."
    )
    details = "".join(
        f"<details><summary>{escape(name)}</summary>{figures(charts(label))}</details>"
        for label, name in enumerate(material.class_names)
        if any(not np.isnan(c.precision[0, :, label, 0]).any() for c in curves)
    )
    return paragraph(about) + figures(charts(None)) + details
