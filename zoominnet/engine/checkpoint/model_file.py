"""The model file: a state dict in safetensors whose metadata rebuild the model, so that the file is enough to predict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoominnet
from zoominnet.config import MAX_IMAGE_SIZE
from zoominnet.data import ResizeMode
from zoominnet.errors import UserError
from zoominnet.models import ARCHITECTURES, RetinaNet, build_model
from zoominnet.models.backbones import BACKBONES
from zoominnet.models.backbones.timm import PREFIX, TimmError, describe
from zoominnet.models.inputs import Normalisation
from zoominnet.models.necks import NECKS
from zoominnet.models.weights import METADATA_KEY

DTYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""What a model holds, by safetensors' names; files may have float16 ("F16") in the place of float32."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model. The message is one line with the remedy."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself: enough to rebuild the model and to read its labels.

    Attributes:
        name, backbone, num_classes, image_size, channels, stride_in_1x1, la_predictor, neck: arguments of
            :func:`zoominnet.models.build_model`.
        head: a name in :data:`zoominnet.models.heads.HEADS`.
        normalisation: of the images; None, of files that do not say: the backbone's.
        class_names: of labels 0, 1, ...
        category_ids: of the training data's own numbering.
        config: the training configuration, for the record.
        ap: AP on the validation split when the file was written, None where it was not measured.
    """

    name: str
    backbone: str
    num_classes: int
    image_size: int
    channels: int
    stride_in_1x1: bool
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    config: dict[str, Any]
    ap: float | None
    la_predictor: str = "plain"  # that of files that do not say, as the others below
    neck: str = "fpn"
    head: str = "retina"
    normalisation: Normalisation | None = None

    def check(self) -> None:
        """Refuses what :func:`zoominnet.models.build_model` would not.

        Raises:
            ValueError: a field has the wrong type or range.
        """
        names, ids = self.class_names, self.category_ids
        if not (
            type(self.image_size) is int
            and 0 < self.image_size <= MAX_IMAGE_SIZE
            and all(isinstance(part, str) for part in (self.name, self.backbone, self.neck, self.head))
            and len(names) == len(ids) == self.num_classes
            and all(isinstance(name, str) for name in names)
            and all(type(each) is int for each in ids)
            and isinstance(self.config, dict)
            and self.resize in get_args(ResizeMode)
            and is_ap(self.ap)
            and (self.normalisation is None or is_normalisation(self.normalisation))
        ):
            raise ValueError("no description of a model")

    @property
    def resize(self) -> ResizeMode:
        """How images became square when the model was trained."""
        return self.config.get("resize", "squash")

    @classmethod
    def of(
        cls,
        model: RetinaNet,
        class_names: tuple[str, ...],
        category_ids: tuple[int, ...],
        config: dict[str, Any],
        ap: float | None,
    ) -> ModelInfo:
        return cls(
            name=model.name,
            backbone=model.backbone_name,
            num_classes=model.num_classes,
            image_size=model.image_size,
            channels=model.channels,
            stride_in_1x1=model.stride_in_1x1,
            class_names=class_names,
            category_ids=category_ids,
            config=config,
            ap=ap,
            la_predictor=model.la_predictor,
            neck=model.neck_name,
            head=model.head_name,
            normalisation=model.normalisation,
        )


def is_ap(value: object) -> bool:
    """Whether `value` can stand for an AP: None or a number from 0 to 1."""
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


def is_normalisation(value: Any) -> bool:
    """Whether `value` can be means in 0..1 and standard deviations over 0, of three colours each."""
    means, deviations = value
    return (
        len(means) == len(deviations) == 3
        and all(isinstance(each, float | int) and 0 <= each <= 1 for each in means)
        and all(isinstance(each, float | int) and 0 < each <= 1 for each in deviations)
    )


def require_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file}: {name} holds NaN or Inf; use another checkpoint")


def reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def save_model(file: Path, state: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Writes a model's state dict, contiguous on the CPU, and what the file says of the model."""
    save_file(dict(state), file, {"format": "pt", METADATA_KEY: text_of_info(info)})


def text_of_info(info: ModelInfo) -> str:
    """For the metadata of a file."""
    return json.dumps({"version": zoominnet.__version__, "info": info.__dict__})


def info_of_text(text: str | None, file: Path, not_ours: str) -> ModelInfo:
    """What a file's metadata say of its model.

    Args:
        text: as :func:`text_of_info` wrote it; None where there is none.
        file: for the messages.
        not_ours: the message for a file that no command of this project wrote.

    Raises:
        CheckpointError: nothing, or a model that this version does not know.
    """
    try:
        fields = json.loads(text or "")["info"]
        fields["class_names"], fields["category_ids"] = tuple(fields["class_names"]), tuple(fields["category_ids"])
        if (normalisation := fields.get("normalisation")) is not None:
            fields["normalisation"] = tuple(map(tuple, normalisation))
        info = ModelInfo(**fields)
        info.check()
        unknown = [
            f"{part} {name[:40]!r}"
            for part, name, known in (
                ("model", info.name, list(ARCHITECTURES)),
                ("backbone", info.backbone, list(BACKBONES)),
                ("neck", info.neck, list(NECKS)),
            )
            if name not in known and not (part == "backbone" and name.startswith(PREFIX))
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(not_ours) from error
    if unknown:
        raise CheckpointError(
            f"{file}: it has the {' and the '.join(unknown)}, which this version of zoominnet does not know; use the "
            "version that wrote it"
        )
    return info


def read_model(file: Path, **options: Any) -> tuple[RetinaNet, ModelInfo]:
    """Rebuilds the model of a file, in evaluation mode.

    Args:
        file: as :func:`save_model` writes it.
        **options: further arguments of :func:`zoominnet.models.build_model` (post-processing).

    Raises:
        CheckpointError: damaged, or not written by this project.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            kinds = {
                name: (tuple(each.get_shape()), each.get_dtype().replace("F16", "F32", 1))
                for name, each in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({reason(error)})") from error
    not_ours = (
        f"{file}: not a model written by zoominnet.train (its metadata do not say which model it is); "
        "pretrained weights of other projects go to --weights"
    )
    info = info_of_text(metadata.get(METADATA_KEY), file, not_ours)
    if info.backbone.startswith(PREFIX):
        try:
            describe(info.backbone.removeprefix(PREFIX))
        except TimmError as error:
            raise CheckpointError(f"{file}: its backbone is {error}") from error

    def build() -> RetinaNet:
        return build_model(
            info.name,
            info.backbone,
            info.num_classes,
            info.image_size,
            channels=info.channels,
            stride_in_1x1=info.stride_in_1x1,
            la_predictor=info.la_predictor,
            neck=info.neck,
            normalisation=info.normalisation,
            **options,
        )

    try:
        with torch.device("meta"):  # no memory for what a file merely claims to be
            claimed = build()
        own = {name: (tuple(x.shape), DTYPE_NAMES[x.dtype]) for name, x in claimed.state_dict().items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(not_ours) from error
    if info.head != claimed.head_name:
        raise CheckpointError(
            f"{file}: its {info.name} has the head {str(info.head)[:40]!r}, that of this version {claimed.head_name!r}; "
            "use the version of zoominnet that wrote it"
        )
    if different := [name for name in own.keys() | kinds.keys() if own.get(name) != kinds.get(name)]:
        raise CheckpointError(
            f"{file}: does not fit the {info.name} on {info.backbone} it claims to be ({len(different)} tensors differ, "
            f"the first is {min(different)}); use another checkpoint"
        )
    state = load_file(file)
    require_finite(file, state)
    model = build()
    model.load_state_dict(state)
    model.class_names = info.class_names
    return model.eval(), info
