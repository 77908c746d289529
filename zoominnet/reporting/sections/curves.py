"""Values of training steps and validations, several runs over one another."""

from __future__ import annotations

from collections.abc import Iterable

from zoominnet.reporting.charts import MOST_POINTS, Series, line_chart
from zoominnet.reporting.markup import figures, paragraph
from zoominnet.reporting.material import Material, NotShown

_CURVES = (
    ("val", "AP", "AP on validation images"),
    ("val", "AP50", "AP50 on validation images"),
    ("val", "AP_S", "AP of small objects"),
    ("train", "loss", "loss"),
    ("train", "classification", "classification loss"),
    ("train", "bbox_regression", "box loss"),
    ("train", "distill", "distillation loss, unweighted"),
    ("train", "lambda_distill", "weight of the distillation"),
    ("train", "distill_gradient_ratio", "gradient of distillation / detection"),
    ("train", "grad_norm", "gradient norm"),
    ("train", "lr", "learning rate"),
)
_LOGARITHMIC = {"lambda_distill", "distill", "grad_norm"}


def build(material: Material) -> str:
    runs = list(enumerate(material.runs))
    if not any(run.metrics for _, run in runs):
        raise NotShown("none of these models has its run's metrics.jsonl beside it")
    charts = []
    for kind, name, title in _CURVES:
        series = _with_points(Series(i, *run.series(kind, name)) for i, run in runs)
        if series:
            positive = all(min(each.y) > 0 for each in series)
            limits = (0, None) if kind == "val" else (None, None)
            charts.append(line_chart(title, "step", series, y_limits=limits, log=name in _LOGARITHMIC and positive))
    deepest = max(len(run.levels) for _, run in runs)
    for level in range(deepest):
        series = _with_points(Series(i, *run.series("train", "coverage", level)) for i, run in runs)
        if series:
            names = sorted({f"P{run.levels[level]}" for _, run in runs if run.series("train", "coverage", level)[0]})
            charts.append(
                line_chart(f"share of key positions, {' and '.join(names)}", "step", series, y_limits=(0, 1.02))
            )
    about = (
        "Points at which a run wrote its values: losses are of single batches. Of lines with more than "
        f"{MOST_POINTS} points neighbouring ones are averaged. The gradient ratio is the norm of the distillation's weighted "
        "gradient over that of the detection's; key positions are what the masks let through, of the student's levels."
    )
    without = [run.label for _, run in runs if not run.metrics]
    missing = (
        paragraph(f"Without curves, for it has no metrics.jsonl beside it: {', '.join(without)}.") if without else ""
    )
    return paragraph(about) + missing + figures(charts)


def _with_points(series: Iterable[Series]) -> list[Series]:
    return [each for each in series if len(each.x)]
