"""What a deployed file takes and gives: what its user must know, and what its metadata say."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from zoominnet.errors import UserError

InputKind = Literal["uint8", "float"]
"""Of the images: uint8 in 0..255, or float32 in 0..1."""
PostProcessing = Literal["inside", "outside"]
"""Where the threshold and the NMS are."""
Precision = Literal["float32", "float16", "int8"]

IMAGES = "images"
INSIDE = ("boxes", "scores", "labels", "count")
OUTSIDE = ("boxes", "scores")
"""The names of the input and the outputs, see :class:`zoominnet.deployment.deployed.DeployedModel`."""

METADATA_KEY = "zoominnet.contract"


class DeploymentError(UserError):
    """A model that cannot be deployed so, or a deployed file that cannot be used. The message is one line."""


@dataclass(frozen=True)
class Contract:
    """Attributes:
    image_size: side of the square input, px; of a dynamic one that of training.
    dynamic_size: whether the sides may be other multiples of `size_divisor`.
    size_divisor: see there, px.
    smallest_size: of sides that are dynamic, px.
    batch: images at a time; None for any number.
    input: kind of the images' numbers.
    postprocess: whether boxes come after the NMS, or all of them before.
    conf, iou, max_det: of the post-processing inside; None where it is outside.
    precision: of the weights and the maps.
    gflops, parameters: of the model: multiply-adds for an image of `image_size`, 1e9, and numbers in its parameters.
    """

    image_size: int
    dynamic_size: bool
    size_divisor: int
    smallest_size: int
    batch: int | None
    input: InputKind
    postprocess: PostProcessing
    conf: float | None
    iou: float | None
    max_det: int | None
    precision: Precision
    gflops: float
    parameters: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""
        return INSIDE if self.postprocess == "inside" else OUTSIDE

    def to_text(self) -> str:
        """For a file's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of_text(cls, text: str | None, file: Path) -> Contract:
        """From a file's metadata.

        Raises:
            DeploymentError: there is none, or one that no version of this project wrote.
        """
        try:
            fields: dict[str, Any] = json.loads(text or "")
            contract = cls(**fields)
            whole = (contract.image_size, contract.size_divisor, contract.smallest_size, contract.parameters)
            known = (
                contract.input in get_args(InputKind)
                and contract.postprocess in get_args(PostProcessing)
                and contract.precision in get_args(Precision)
                and all(type(each) is int and each > 0 for each in whole)
                and (contract.batch is None or type(contract.batch) is int)
                and all(
                    (each is None) == (contract.postprocess == "outside")
                    for each in (contract.conf, contract.iou, contract.max_det)
                )
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise DeploymentError(not_ours(file)) from error
        if not known:
            raise DeploymentError(not_ours(file))
        return contract


def not_ours(file: Path) -> str:
    """What to say of a file of another project."""
    return (
        f"{file}: not written by zoominnet.export (its metadata do not say what it takes and gives); export the model "
        "with python -m zoominnet.export"
    )
