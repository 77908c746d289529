"""The same images by several models side by side, as the paper's Figure 11, the worst and the best ones."""

from __future__ import annotations

from zoominnet.reporting.markup import escape, figures, paragraph, run_name
from zoominnet.reporting.material import Material, NotShown
from zoominnet.reporting.pictures import (
    class_legend,
    outcome_legend,
    outcome_words,
    outcomes_over,
    tile,
    truth_over,
)


def build(material: Material) -> str:
    if not material.ranked:
        raise NotShown("none of the images has a box")
    if not material.shown:
        raise NotShown("no image was asked for (--shown 0)")
    worst, best = material.worst_and_best
    about = (
        f"By the models' mean F1 of detections with scores over {material.conf:g}. A picture grows where it is clicked, and "
        "boxes say what they are where they are pointed at."
    )
    parts = [paragraph(about), class_legend(material.class_names), outcome_legend()]
    for title, indices in (("Worst", worst), ("Best", best)):
        if not indices:
            continue
        parts.append(f"<h3>{title}</h3>")
        for index in indices:
            record = material.records[index]
            name = f"image {record.image_id}" if record.path is None else record.path.name
            size = (record.width, record.height)
            tiles = [
                tile(
                    truth_over(material, index),
                    *size,
                    f"{escape(name)}, boxes: {len(record.boxes)}",
                    label=f"{name} with its boxes",
                )
            ]
            for i, run, measurement in material.measured:
                words = outcome_words(measurement, index)
                tiles.append(
                    tile(
                        outcomes_over(material, index, measurement),
                        *size,
                        f"{run_name(i, run.label)}: {words}",
                        run=i,
                        label=f"what {run.label} finds in {name}: {words}",
                    )
                )
            parts.append(figures(tiles, "tiles"))
    return "".join(parts)
