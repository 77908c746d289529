"""The card of a deployed model: what its user must know, as Markdown beside its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zoominnet
from zoominnet.data import VISDRONE_CLASSES
from zoominnet.deployment.contract import Contract
from zoominnet.engine.checkpoint import ModelInfo

VISDRONE_LICENCE = (
    "VisDrone's site names the licence CC BY-NC-SA 3.0 (aiskyeye.com/data-protection), which excludes commercial use; its "
    "repository has no licence file. Whether that binds a model trained on its images, ask its owners."
)
TRAINED_WITH = (
    ("profile", "profile"),
    ("epochs", "epochs"),
    ("batch_size", "batch size"),
    ("optimizer", "optimiser"),
    ("lr", "learning rate"),
    ("lambda_distill", "weight of the distillation"),
    ("seed", "seed"),
)
"""Fields of the training configuration, and their names for people."""


def card(info: ModelInfo, contract: Contract | None, file: Path, measured: dict[str, float]) -> str:
    """The text.

    Args:
        info: what the model's file says of it.
        contract: of the deployed file; None for one of weights alone.
        file: that the card is of.
        measured: AP by what it was measured of, where that was done.
    """
    config = info.config
    data = config.get("data")
    drawn = data == "synthetic"
    lines = [
        f"# {file.name}",
        "",
        f"{info.name}, a RetinaNet on {info.backbone} for {info.image_size} px, trained by ZoomInNet "
        f"{zoominnet.__version__}. It finds {', '.join(info.class_names)}.",
        "",
        "## Data and scores",
        "",
        f"- Trained on {'drawn scenes (synthetic)' if drawn else Path(str(data)).name or 'data that its file does not name'}"
        f", split {config.get('train_split', 'train')}; boxes and classes as annotated there.",
    ]
    if info.ap is not None:
        lines.append(
            f"- AP {info.ap:.4f} on its split {config.get('val_split', 'val')} (COCO: IoU 0.50 to 0.95, 100 detections an "
            "image), by PyTorch in float32, when the file was written in training."
        )
    lines += [f"- AP {ap:.4f}: {what}." for what, ap in measured.items()]
    if contract is not None:
        lines.append(
            f"- {contract.gflops:.2f} GFLOPs (multiply-adds) for an image of {contract.image_size} px, "
            f"{contract.parameters / 1e6:.2f} M parameters."
        )
    settings = [f"{called} {config[name]}" for name, called in TRAINED_WITH if config.get(name) is not None]
    if settings:
        taught = "distilled from a teacher at twice the size" if _distilled(info) else "not distilled"
        lines.append(f"- Training: {taught}; {', '.join(settings)}.")
    if contract is not None:
        lines += ["", "## What it takes and gives", "", *_inputs(info, contract), *_outputs(contract)]
    lines += ["", "## Limits", ""]
    lines.append(
        "- Drawn scenes teach no real image: it is for trying things out."
        if drawn
        else "- It knows the views, heights, weather and classes of its training data; measure it on your own images."
    )
    if tuple(info.class_names) == VISDRONE_CLASSES and not drawn:
        lines.append(f"- {VISDRONE_LICENCE}")
    return "\n".join(lines) + "\n"


def _distilled(info: ModelInfo) -> bool:
    config: dict[str, Any] = info.config
    return bool(config.get("distill")) and not info.name.startswith("teacher")


def _inputs(info: ModelInfo, contract: Contract) -> list[str]:
    number = "any number of images" if contract.batch is None else f"{contract.batch} images"
    side = (
        f"sides of any multiples of {contract.size_divisor} px from {contract.smallest_size}, trained at {contract.image_size}"
        if contract.dynamic_size
        else f"{contract.image_size} x {contract.image_size} px"
    )
    numbers = "uint8 in 0..255" if contract.input == "uint8" else "float32 in 0..1"
    made = {
        "squash": "resized to that size, whatever its own sides were",
        "letterbox": "scaled to fit and centred, the rest grey",
    }[info.resize]
    return [
        f"- `images`: {numbers}, [batch, 3, height, width], RGB, {number}, {side}. In training an image was {made} "
        "(bilinear, antialiased). The normalisation is inside.",
        f"- Computed in {contract.precision}.",
    ]


def _outputs(contract: Contract) -> list[str]:
    if contract.postprocess == "inside":
        return [
            f"- `boxes` float32 [batch, {contract.max_det}, 4], (x1, y1, x2, y2) px of the input; `scores` float32 and "
            f"`labels` int64 [batch, {contract.max_det}], the best first, 0 and -1 behind the last; `count` int64 [batch]. "
            f"Scores over {contract.conf:g}; NMS by class, IoU {contract.iou:g}.",
        ]
    return [
        "- `boxes` float32 [batch, anchors, 4], (x1, y1, x2, y2) px of the input, and `scores` float32 [batch, anchors, "
        "classes], 0..1, before threshold and NMS.",
    ]
