"""AP of each class and size."""

from __future__ import annotations

from zoominnet.reporting.charts import Series, bar_chart
from zoominnet.reporting.markup import escape, figures, number, paragraph, run_name, table
from zoominnet.reporting.material import Material

SIZES = ("all", "small", "medium", "large")


def build(material: Material) -> str:
    names = material.class_names
    curves = [each.curves for each in material.measurements]
    by_class = [Series(i, range(len(names)), [c.ap(label=k) for k in range(len(names))]) for i, c in enumerate(curves)]
    by_size = [Series(i, range(len(SIZES)), [c.ap(size) for size in range(len(SIZES))]) for i, c in enumerate(curves)]
    charts = [bar_chart("AP by class", names, by_class, upright=False), bar_chart("AP by size", SIZES, by_size)]
    rows, kinds = [], []
    for label, name in enumerate(names):
        for i, run, measurement in material.measured:
            c = measurement.curves
            values = [number(c.ap(size, label)) for size in range(len(SIZES))]
            boxes = str(c.boxes[label]) if i == 0 else ""
            rows.append([escape(name) if i == 0 else "", boxes, run_name(i, run.label), *values])
            rows[-1].append(number(c.ap(label=label, threshold=0)))
            kinds.append(f"run-{i} {'first' if i == 0 else ''}")
    columns = ("class", "boxes", "model", *(f"AP {size}" for size in SIZES), "AP50")
    about = "Classes and sizes without boxes have no AP, and count in no mean."
    return paragraph(about) + figures(charts) + table(columns, rows, classes=kinds, text_columns=3)
