"""The kinds of wrong detections, and what each costs: TIDE's breakdown."""

from __future__ import annotations

from zoominnet.evaluation import count_errors, error_costs
from zoominnet.evaluation.errors import BACKGROUND_IOU, FOREGROUND_IOU, KINDS
from zoominnet.reporting.charts import Series, bar_chart
from zoominnet.reporting.markup import figures, number, paragraph, run_name, table
from zoominnet.reporting.material import Material

_KINDS = ("correct", *KINDS[:-1], "ignored")


def build(material: Material) -> str:
    of_detections, of_boxes, costs, dearest = [], [], [], []
    for i, run, measurement in material.measured:
        detections, boxes = count_errors(measurement.errors)
        name = run_name(i, run.label)
        of_detections.append([name, *(str(detections[kind]) for kind in _KINDS), str(sum(detections.values()))])
        of_boxes.append([name, *map(str, boxes.values()), str(sum(boxes.values()))])
        ap50, cost = error_costs(material.records, measurement.detections, material.class_names)
        costs.append([name, number(ap50), *(number(cost[kind]) for kind in KINDS)])
        dearest.append(Series(i, range(len(KINDS)), [cost[kind] for kind in KINDS]))
    classes = [f"run-{i}" for i in range(len(costs))]
    about = (
        f"A detection is correct where it has IoU {FOREGROUND_IOU:g} or more with a free box of its class. Else it is wrong in "
        f"location (IoU {BACKGROUND_IOU:g} to {FOREGROUND_IOU:g} with a box of its class), in class (IoU {FOREGROUND_IOU:g} "
        "with a box of another class), both, a duplicate of a correct one, or background. A box is found, or mistaken (some "
        "detection is wrong about its class or its location alone), or missed. What lies half in ignored regions is ignored. "
        "(TIDE, Bolya et al. 2020.)"
    )
    return "".join(
        [
            paragraph(about),
            table(
                ("detections", *_KINDS, "sum"),
                of_detections,
                classes=classes,
                caption=f"Detections with scores over {material.conf:g}, each of one kind",
            ),
            table(
                ("boxes", "found", "mistaken", "missed", "ignored", "sum"),
                of_boxes,
                classes=classes,
                caption="Ground-truth boxes, each of one kind",
            ),
            table(
                ("model", "AP50", *KINDS),
                costs,
                classes=classes,
                caption="How much higher AP50 would be without the errors of one kind; of detections of all scores",
            ),
            figures([bar_chart("AP50 lost by each kind of error", KINDS, dearest, upright=False)]),
        ]
    )
