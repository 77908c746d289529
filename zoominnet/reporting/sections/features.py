"""The finest feature maps of teacher and students, as the paper's Figure 9."""

from __future__ import annotations

from zoominnet.models import RetinaNet
from zoominnet.prediction.comparison import activation_map
from zoominnet.reporting.markup import escape, figures, paragraph, run_name
from zoominnet.reporting.material import Material, NotShown
from zoominnet.reporting.pictures import map_of, model_input, tile


def build(material: Material) -> str:
    shown: list[tuple[int | None, str]] = [(i, run_name(i, run.label)) for i, run in enumerate(material.runs)]
    runs = list(material.runs)
    if material.teacher is not None and all(run.is_student for run in runs):
        shown.append((None, f"{escape(material.teacher.label)} (teacher)"))
        runs.append(material.teacher)
    # An ONNX file gives no maps.
    seen = [i for i, run in enumerate(runs) if isinstance(run.detector.model, RetinaNet)]
    if not seen:
        raise NotShown("none of these models can be looked into: they are ONNX files")
    order = sorted(seen, key=lambda i: (runs[i].is_student, runs[i].distils))
    about = (
        "The mean size of the channels at each cell of a model's finest map, from its own small values (dark) to its own large "
        "ones (bright; the outer twentieths are one colour): teachers first, then students without, then with distillation. A "
        "student is to be bright where its teacher is, at the key positions."
    )
    parts = [paragraph(about)]
    if all(run.is_student for run in runs):
        parts.append(paragraph(f"Without the teacher's map: {material.why_no_teacher}."))
    for index in material.crowded:
        pixels = material.pixels(index)
        resize = runs[order[0]].detector.resize
        tiles = [tile(model_input(material, index, resize), 1, 1, "image", label="the image")]
        for i in order:
            values = activation_map(runs[i].detector, pixels)
            number, name = shown[i]
            height, width = values.shape
            words = f"{name}: {width} x {height} cells of {runs[i].detector.image_size} px"
            tiles.append(tile(map_of(values), 1, 1, words, run=number, label=f"feature map of {runs[i].label}"))
        parts.append(figures(tiles, "tiles small"))
    return "".join(parts)
