"""The key positions of distillation on each level, as the paper's Figure 5."""

from __future__ import annotations

from zoominnet.data import ResizeGeometry
from zoominnet.models.anchors import Anchors
from zoominnet.prediction.comparison import masks_of
from zoominnet.reporting.markup import escape, figures, paragraph
from zoominnet.reporting.material import Material, NotShown, Run
from zoominnet.reporting.pictures import mask_over, tile


def build(material: Material) -> str:
    students: dict[tuple[object, ...], tuple[Run, list[str]]] = {}
    for run in material.runs:
        if run.is_student:
            model, options = run.detector.model, run.config.distill_options()
            key = (
                run.detector.info.name,
                model.image_size,
                run.detector.resize,
                options.threshold,
                options.scope,
                options.boxes,
            )
            students.setdefault(key, (run, []))[1].append(run.label)
    if not students:
        raise NotShown("none of these models is a student, whose anchors decide on the key positions")
    parts = [
        paragraph(
            "Where a student learns from its teacher, by its own anchors and the options of its run: bright cells are key "
            "positions. The images are as the student is fed them; those with the most objects were taken."
        )
    ]
    for run, labels in students.values():
        model = run.detector.model
        parts.append(
            f"<h3>{escape(run.detector.info.name)} at {model.image_size} px ({escape(', '.join(labels))})</h3>"
        )
        levels = Anchors(model.architecture)(model.image_size, model.image_size)
        for index in material.crowded:
            record = material.records[index]
            geometry = ResizeGeometry.fit(record.width, record.height, model.image_size, run.detector.resize)
            tiles = []
            for level, mask in zip(
                model.architecture.levels, masks_of(record, levels, geometry, run.config.distill_options()), strict=True
            ):
                words = f"P{level}, {mask.shape[1]} x {mask.shape[0]} cells: {mask.float().mean():.0%}"
                tiles.append(
                    tile(
                        mask_over(material, index, run.detector.resize, mask),
                        1,
                        1,
                        words,
                        label=f"key positions, {words}",
                    )
                )
            parts.append(figures(tiles, "tiles small"))
    return "".join(parts)
