"""Which class each model takes for which."""

from __future__ import annotations

from zoominnet.evaluation import confusion_matrix
from zoominnet.reporting.markup import escape, figures, paragraph, run_name
from zoominnet.reporting.material import Material

_SHADE = "70, 130, 220"


def build(material: Material) -> str:
    about = (
        f"Boxes (rows) and the detections with scores over {material.conf:g} that lie on them (columns) with IoU 0.5 or more, "
        "whatever their classes. A row sums to the boxes of a class, a column to the detections of a class. The shade is the "
        "share of the row."
    )
    names = [*map(escape, material.class_names)]
    matrices = []
    for i, run, measurement in material.measured:
        matrix = confusion_matrix(material.records, measurement.certain, material.class_names)
        head = "".join(f"<th>{name}</th>" for name in (*names, "not found", "sum"))
        rows = []
        for name, row in zip((*names, "no box"), matrix.tolist(), strict=True):
            total = sum(row)
            cells = "".join(f'<td style="background:rgba({_SHADE}, {x / max(total, 1):.2f})">{x}</td>' for x in row)
            rows.append(f'<tr><th class="words">{name}</th>{cells}<td>{total}</td></tr>')
        sums = "".join(f"<td>{x}</td>" for x in (*matrix.sum(axis=0).tolist(), matrix.sum()))
        matrices.append(
            f'<div class="scroll run-{i}"><table class="matrix"><caption>{run_name(i, run.label)}</caption>'
            f'<thead><tr><th class="words">box \\ detection</th>{head}</tr></thead><tbody>{"".join(rows)}'
            f'<tr><th class="words">sum</th>{sums}</tr></tbody></table></div>'
        )
    return paragraph(about) + figures(matrices, "matrices")
