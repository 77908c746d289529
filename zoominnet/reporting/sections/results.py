"""What each model scores and costs."""

from __future__ import annotations

from zoominnet.reporting.markup import escape, number, paragraph, run_name, table
from zoominnet.reporting.material import DETECTIONS, SCORE_THRESHOLD, Material

_SCORES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_100")


def build(material: Material) -> str:
    columns = [
        "model",
        "input px",
        *(name.replace("_", " ") for name in _SCORES),
        "AP in training",
        "GFLOPs",
        "M params",
    ]
    timed = any("latency" in each.cost for each in material.measurements)
    if timed:
        columns.append("latency, ms")
    rows = []
    for i, run, measurement in material.measured:
        scores = dict(measurement.curves.result().rows())
        cost, model = measurement.cost, run.detector.model
        row = [run_name(i, run.label), str(model.image_size), *(number(scores[name]) for name in _SCORES)]
        row += [number(run.detector.info.ap), number(cost["gflops"], 2), number(cost["parameters"] / 1e6, 2)]
        if timed:
            latency = cost["latency"]
            row.append(f"{latency['median_ms']:.1f} ({latency['p10_ms']:.1f} to {latency['p90_ms']:.1f})")
        rows.append(row)
    about = (
        f"COCO protocol on {material.data}: at most {DETECTIONS} detections an image with scores of at least "
        f"{SCORE_THRESHOLD}, sizes by COCO's areas of 32² and 96² px of the original image, ignored regions counted as "
        "background, as in published scores. “AP in training” is what the run itself measured, on all of its validation "
        "images. GFLOPs are multiply-adds of one image."
    )
    if timed:
        devices = ", ".join(dict.fromkeys(str(run.detector.device) for run in material.runs))
        about += f" Latency: median of single images on {escape(devices)}, in brackets the percentiles 10 and 90."
    return paragraph(about) + table(columns, rows, classes=[f"run-{i}" for i in range(len(rows))])
