"""RetinaNet put together: backbone, neck, head, anchors, assigner, losses, post-processing, a file each.

Sizes in shapes: B images, A anchors (level, row, column, anchor order), G boxes, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.profiler import record_function

from zoominnet.kernels import AnchorGrid
from zoominnet.models.anchors import ANCHORS_PER_CELL, Anchors
from zoominnet.models.architectures import ARCHITECTURES
from zoominnet.models.assign import ASSIGNERS, Targets
from zoominnet.models.backbones import find_backbone
from zoominnet.models.fusion import FUSED_LOSS_WEIGHT, ScaleFusion
from zoominnet.models.heads import HEADS
from zoominnet.models.inputs import Normalisation, check_targets, pad_to_batch
from zoominnet.models.interfaces import LaPredictor, Outputs, Part, Predictions
from zoominnet.models.losses import BOX_LOSSES, CLASSIFICATION_LOSSES, box_loss_arguments
from zoominnet.models.necks import NECKS
from zoominnet.models.postprocess import PostProcess


def require_choice(argument: str, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `name` is one of `choices`."""
    if name not in (known := list(choices)):
        raise ValueError(f"{argument}: {name!r} is not one of {', '.join(known)}")


class RetinaNet(nn.Module):
    """RetinaNet (Lin et al. 2017) with torchvision's calling convention for detectors.

    ``model(images, targets)`` in training gives ``{"classification": Tensor, "bbox_regression": Tensor}``;
    ``model(images)`` in evaluation gives a list of ``{"boxes", "labels", "scores"}``. Images are float tensors
    [3, H, W] in 0..1 (RGB); the backbone's normalisation is inside. Boxes are (x1, y1, x2, y2) in the pixels of the
    images that are fed; labels run from 0 to num_classes - 1. A target may hold "ignored": float [R, 4], regions whose
    anchors (more than half inside) train nothing.

    Args:
        name: one of `ARCHITECTURES`.
        backbone: one of `BACKBONES`, or "timm:NAME".
        num_classes: without background.
        image_size: side of the square input that `anchor_grids` describes, px; other sizes are accepted too.
        channels: of the pyramid and the head towers (paper: 256).
        neck: one of `NECKS`.
        stride_in_1x1, frozen_stages, norm_eval: of the backbone, see :class:`ResNetStages`.
        la_predictor: how "la" predicts, see :meth:`set_la_predictor`; the other models take no notice.
        assigner, classification_loss, box_loss: of `ASSIGNERS`, `CLASSIFICATION_LOSSES` and `BOX_LOSSES`.
        normalisation: of the images. None: the backbone's.
        **postprocess: score_threshold, nms_threshold, candidates, max_detections, see :class:`PostProcess`.
    """

    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...] | None = None
    """Of the labels 0, 1, ...; of a model that was loaded."""

    def __init__(
        self,
        name: str,
        *,
        backbone: str = "resnet50",
        num_classes: int = 10,
        image_size: int = 512,
        channels: int = 256,
        neck: str = "fpn",
        stride_in_1x1: bool = False,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        la_predictor: LaPredictor = "phase",
        assigner: str = "max-iou",
        classification_loss: str = "focal",
        box_loss: str = "l1",
        normalisation: Normalisation | None = None,
        **postprocess: Any,
    ) -> None:
        super().__init__()
        require_choice("model", name, ARCHITECTURES)
        make_backbone = find_backbone(backbone)
        require_choice("neck", neck, NECKS)
        require_choice("assigner", assigner, ASSIGNERS)
        require_choice("classification_loss", classification_loss, CLASSIFICATION_LOSSES)
        require_choice("box_loss", box_loss, BOX_LOSSES)
        if num_classes < 1 or channels < 1:
            raise ValueError(f"num_classes: {num_classes} and channels: {channels} must be positive")
        self.name, self.architecture = name, ARCHITECTURES[name]
        if image_size < 1 or image_size % self.architecture.size_divisor:
            raise ValueError(f"image_size: {image_size} is not a positive multiple of {self.architecture.size_divisor}")
        self.backbone_name, self.neck_name, self.head_name = backbone, neck, self.architecture.head
        self.num_classes, self.image_size = num_classes, image_size
        self.channels, self.stride_in_1x1 = channels, stride_in_1x1
        self.assign = ASSIGNERS[assigner]
        self.classification_loss, self.box_loss = CLASSIFICATION_LOSSES[classification_loss], BOX_LOSSES[box_loss]
        self.postprocess = PostProcess(**postprocess)

        arch = self.architecture
        self.backbone = make_backbone(stride_in_1x1=stride_in_1x1, frozen_stages=frozen_stages, norm_eval=norm_eval)
        self.backbone.use_from(arch.pyramid_levels[0])
        self.fpn = NECKS[neck](self.backbone.channels, arch.pyramid_levels[0], arch.last_level, channels)
        self.head = HEADS[arch.head](
            num_classes, ANCHORS_PER_CELL, arch.head_depth, channels, upsample=arch.upsample_head
        )
        self.fusion = ScaleFusion(channels) if arch.fuses_scales else None
        self.set_la_predictor(la_predictor)
        self.anchors = Anchors(arch)
        self.normalisation = normalisation or self.backbone.normalisation
        for buffer, values in zip(("mean", "std"), self.normalisation, strict=True):
            self.register_buffer(buffer, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.kernel_backend = "auto"

    def place(self, device: torch.device) -> RetinaNet:
        """Moves the model to `device`, its convolutions' weights in channels_last, which is faster everywhere."""
        return self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile_parts(self, **options: Any) -> None:
        """Has torch.compile make of backbone, neck and head a graph each, when they are first run.

        Not one of all: what is computed from the pyramid's outputs outside adds to their gradient, and that is to be seen.

        Args:
            **options: of :func:`torch.compile`.
        """
        options = {"fullgraph": True, "dynamic": False, **options}
        for part in (self.backbone, self.fpn, self.fusion):
            if part is not None:
                part.compile(**options)
        for name in ("towers", "predict_levels"):
            setattr(self.head, name, torch.compile(getattr(self.head, name), **options))

    def set_kernel_backend(self, backend: str) -> None:
        """Chooses the backend of every `zoominnet.kernels` op that the model calls ("auto" by default)."""
        self.kernel_backend = self.fpn.backend = backend
        self.head.set_backend(backend)

    def set_la_predictor(self, form: LaPredictor) -> None:
        """Chooses how "la" predicts: "plain" convolves the upsampled map; "phase" gives the same values, but for
        rounding, from the small map (:func:`zoominnet.models.heads.retina.phase_weight`). The weights are the same.

        Raises:
            ValueError: `form` is neither.
        """
        require_choice("la_predictor", form, get_args(LaPredictor))
        self.la_predictor = form
        self.head.set_la_predictor(form)

    @property
    def anchor_grids(self) -> list[AnchorGrid]:
        """The levels' anchors for an input of `image_size` x `image_size`."""
        return self.anchor_grids_for(self.image_size, self.image_size)

    def anchor_grids_for(self, height: int, width: int) -> list[AnchorGrid]:
        """The levels' anchors for an input of `height` x `width` px, multiples of `architecture.size_divisor`."""
        return self.anchors(height, width)

    def features(self, images: Tensor) -> list[Tensor]:
        """Float [B, 3, H, W] in 0..1, H and W multiples of `architecture.size_divisor` -> the maps that the head is
        given, finest first: the pyramid's outputs, or the fused ones of two pyramids."""
        return self._pyramid(images) if self.fusion is None else self.fusion(*self._pyramids(images))

    def _pyramid(self, images: Tensor, levels: range | None = None) -> list[Tensor]:
        return self.fpn(self.backbone(((images - self.mean) / self.std).to(self.dtype)), levels)

    def _pyramids(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of the images as they are and of their 2x2 mean, with the same cells."""
        halved = avg_pool2d(images, 2)
        arch = self.architecture
        return self._pyramid(images, arch.levels), self._pyramid(halved, arch.half_size_levels)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.fpn.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.fpn.parameters()).device

    def predict(self, towers: tuple[list[Tensor], list[Tensor]], image_shape: tuple[int, int]) -> Predictions:
        """Head tower outputs (`self.head.towers(features)`) for an input of `image_shape` (H, W) -> predictions."""
        logits, deltas = self.head.predict_levels(towers)
        return Predictions(logits, deltas, self.anchor_grids_for(*image_shape))

    def outputs(self, images: Tensor, upto: Part = "predictions") -> Outputs:
        """Float [B, 3, H, W] in 0..1, H and W multiples of `architecture.size_divisor` -> the model's outputs as far as
        `upto`; in training with the predictions of each size by itself, where there are two."""
        sizes: tuple[list[Tensor], ...] = ()
        if self.fusion is not None and self.training:
            sizes = self._pyramids(images)
            features = self.fusion(*sizes)
        else:
            features = self.features(images)
        if upto == "features":
            return Outputs(features)
        towers = self.head.towers(features)
        if upto == "towers":
            return Outputs(features, towers)
        shape = (images.shape[-2], images.shape[-1])
        auxiliary = tuple(self.predict(self.head.towers(maps), shape) for maps in sizes)
        return Outputs(features, towers, replace(self.predict(towers, shape), auxiliary=auxiliary))

    def predict_raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 3, H, W] in 0..1, sides as :meth:`features` -> class logits [B, A, C] and box deltas [B, A, 4]."""
        logits, deltas = self.head.predict_levels(self.head.towers(self.features(images)))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See the class. Images may differ in size: they are padded at the right and bottom to a common one.

        Raises:
            ValueError: no image, an image not [3, H, W] float, or (training) targets missing or malformed.
        """
        batch, sizes = pad_to_batch(images, self.architecture.size_divisor)
        if self.training:
            if targets is None or len(targets) != len(images):
                raise ValueError("targets: training needs one dict with 'boxes' and 'labels' for each image")
            check_targets(targets, self.num_classes)
        predictions = self.outputs(batch).predictions
        assert predictions is not None
        if self.training:
            assert targets is not None
            return self.losses(predictions, targets)
        return self.postprocess(predictions, sizes)

    def detect(
        self, images: Tensor, process: PostProcess, labels: Sequence[int] | None = None
    ) -> list[dict[str, Tensor]]:
        """What is found in images of one size, whatever `postprocess` says.

        Args:
            images: float [B, 3, H, W] in 0..1, sides as :meth:`features`, on the model's device.
            process: threshold, NMS and limits.
            labels: the classes to look for, None for all; the others are left out before any limit.

        Returns:
            As `process`.
        """
        predictions = self.outputs(images).predictions
        assert predictions is not None
        if labels is not None:
            off = torch.ones(self.num_classes, dtype=torch.bool, device=images.device)
            off[list(labels)] = False
            logits = [level.masked_fill(off, -torch.inf) for level in predictions.logits]
            predictions = replace(predictions, logits=logits)
        size = (images.shape[-2], images.shape[-1])
        return process(predictions, [size] * len(images))

    def losses(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Classification and box loss, each summed over the whole batch / its positive anchors.

        Args:
            predictions: of B images.
            targets: B dicts of "boxes" float [G, 4] px, "labels" int64 [G] and optionally "ignored" float [R, 4] px.

        Returns:
            {"classification": float32 scalar, "bbox_regression": float32 scalar}; the second is 0, and in the graph,
            where no anchor is positive.
        """
        sums, positives = self.loss_sums(predictions, targets)
        return {name: value / positives.clamp(min=1) for name, value in sums.items()}

    def loss_sums(self, predictions: Predictions, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """The sums of :meth:`losses` before they are divided, and the number of positive anchors (int64 scalar).

        Where there are auxiliary predictions, their sums are added to `FUSED_LOSS_WEIGHT` times those of the others.
        """
        with record_function("assignment"):
            matched = self.assign(predictions.grids, targets, self.kernel_backend)
        boxes = [target["boxes"].float() for target in targets]
        labels = [target["labels"] for target in targets]

        def sums_of(each: Predictions) -> dict[str, Tensor]:
            of_levels = box_loss_arguments(each.deltas, matched, boxes, each.grids)
            return {
                "classification": self.classification_loss(each.logits, matched, labels, self.kernel_backend),
                "bbox_regression": torch.stack([self.box_loss(*arguments) for arguments in of_levels]).sum(),
            }

        sums = sums_of(predictions)
        if predictions.auxiliary:
            others = [sums_of(each) for each in predictions.auxiliary]
            sums = {
                name: torch.stack([FUSED_LOSS_WEIGHT * value, *(other[name] for other in others)]).sum()
                for name, value in sums.items()
            }
        return sums, (matched >= 0).sum()


def build_model(
    name: str, backbone: str = "resnet50", num_classes: int = 10, image_size: int = 512, **options: Any
) -> RetinaNet:
    """Builds one of the models with fresh weights.

    Args:
        name: "teacher" or "teacher-fused" (feed them 2S px), "snet", "snet-12px", "la",
            "fa-thin" or "fa" (feed them S px).
        backbone: "resnet18", "resnet34", "resnet50" or "resnet101", or "timm:NAME" with a name of timm's.
        num_classes: without background.
        image_size: side of the input that the model itself is fed, px; a multiple of 32, of "teacher-fused" of 64.
        **options: the other arguments of :class:`RetinaNet`.

    Raises:
        ValueError: an argument has no such choice or range.

    Example:
        >>> model = build_model("fa", "resnet18", num_classes=3, image_size=256).eval()
        >>> [detections] = model([torch.rand(3, 256, 256)])
        >>> sorted(detections)
        ['boxes', 'labels', 'scores']
    """
    return RetinaNet(name, backbone=backbone, num_classes=num_classes, image_size=image_size, **options)
