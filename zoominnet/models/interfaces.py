"""What a backbone, a neck and a head are to the rest; each kind has a folder, whose `__init__` names what there is.

Sizes in shapes: B images, K anchors a cell, C channels, H x W the input in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from zoominnet.kernels import AnchorGrid
from zoominnet.models.inputs import IMAGENET, Normalisation

if TYPE_CHECKING:
    from zoominnet.models.architectures import Architecture
    from zoominnet.models.postprocess import PostProcess

LaPredictor = Literal["plain", "phase"]
"""How LA predicts: "plain" convolves the upsampled map, "phase" gives the same values from the small one."""


@dataclass(frozen=True)
class Predictions:
    """Raw outputs, a tensor a level: logits [B, H*W*K, C] and deltas [B, H*W*K, 4], with the levels' anchors.

    Attributes:
        auxiliary: other predictions for the same anchors, which are trained too; none in evaluation.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    grids: list[AnchorGrid]
    auxiliary: tuple[Predictions, ...] = ()


Part = Literal["features", "towers", "predictions"]
"""What a model makes of images, each from the one before."""


@dataclass(frozen=True)
class Outputs:
    """What a model made of a batch, as far as it was asked to go; the rest is None.

    Attributes:
        features: the pyramid's outputs, or the fused ones of two pyramids, [B, C, h, w], finest first.
        towers: the classification and the regression tower's outputs, of the same shapes.
        predictions: see there.
    """

    features: list[Tensor]
    towers: tuple[list[Tensor], list[Tensor]] | None = None
    predictions: Predictions | None = None

    def tensors(self) -> list[Tensor]:
        """All maps."""
        found = list(self.features)
        for maps in self.towers or ():
            found += maps
        if self.predictions is not None:
            found += [*self.predictions.logits, *self.predictions.deltas]
        return found


class Backbone(nn.Module):
    """Images to the maps of four stages. Made by ``BACKBONES[name](stride_in_1x1=, frozen_stages=, norm_eval=)``.

    Attributes:
        channels: of C2, C3, C4 and C5.
        normalisation: of the images that its weights were trained on.
    """

    channels: tuple[int, int, int, int]
    normalisation: Normalisation = IMAGENET

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised [B, 3, H, W] -> C2, C3, C4, C5 at strides 4, 8, 16, 32."""
        raise NotImplementedError

    def use_from(self, first: int) -> None:
        """Told that nothing is computed from maps finer than C{first}: what those alone are made from need not train."""

    def own_name(self, key: str) -> str | None:
        """The name here of the tensor that files of this backbone's weights call `key`; None: as torchvision's files."""
        return None

    def synchronise_batchnorm(self) -> None:
        """Puts SyncBatchNorm into the place of every BatchNorm."""
        nn.SyncBatchNorm.convert_sync_batchnorm(self)


class Neck(nn.Module):
    """The stages' maps to a pyramid. Made by ``NECKS[name](stage_channels, first, last, channels)``.

    Attributes:
        backend: of the kernels that it calls.
        output_step: 2 gives every second row and column of each output alone, which costs less than all of them.
    """

    backend: str = "auto"
    output_step: int = 1

    def forward(self, stages: list[Tensor], levels: range | None = None) -> list[Tensor]:
        """C2..C5 -> P{first}..P{last}, [B, channels, H / 2^l, W / 2^l] each (rounded up), finest first.

        Args:
            levels: of them only these, P5 included, and nothing computed that they do not need; None: all.
        """
        raise NotImplementedError


class Head(nn.Module):
    """A pyramid to predictions. Made by ``HEADS[name](num_classes, num_anchors, depth, channels, upsample=)``."""

    def set_backend(self, backend: str) -> None:
        """Chooses the backend of the kernels that it calls."""
        raise NotImplementedError

    def set_la_predictor(self, form: LaPredictor) -> None:
        """Chooses the form of LA's predictors; a head without LA takes no notice."""
        raise NotImplementedError

    def towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The classification and the regression tower's output, a tensor a level each."""
        raise NotImplementedError

    def predict_levels(self, towers: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Tower outputs -> logits [B, H*W*K, classes] and deltas [B, H*W*K, 4], a tensor a level each."""
        raise NotImplementedError


class DetectionModel(Protocol):
    """What finds objects in images of its own size: :class:`zoominnet.models.RetinaNet`, or a file of it that another
    runtime runs.

    Attributes:
        image_size: side of the square input, px.
        architecture: of the model.
        postprocess: threshold, NMS and limits of a direct call.
        training: its mode; what is no module has but one.
    """

    image_size: int
    postprocess: PostProcess
    training: bool

    @property
    def architecture(self) -> Architecture: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Float images [3, H, W] in 0..1 -> "boxes" px, "scores" and "labels" of each."""
        ...

    def detect(
        self, images: Tensor, process: PostProcess, labels: Sequence[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """See :meth:`zoominnet.models.RetinaNet.detect`."""
        ...

    def place(self, device: torch.device) -> object:
        """Moves it to a device."""
        ...

    def train(self, mode: bool = True) -> object:
        """Sets the mode."""
        ...

    def eval(self) -> object:
        """Sets the mode."""
        ...
