"""The five RetinaNets of the method: a teacher at twice the student's size, and four students.

Sizes in shapes: B images, A anchors (level, row, column, anchor order), K anchors a cell, G boxes, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss

from zoominnet.kernels import AnchorGrid, max_iou_assign
from zoominnet.models.backbone import ResNetStages
from zoominnet.models.boxes import decode_boxes, encode_boxes
from zoominnet.models.fpn import FeaturePyramid
from zoominnet.models.head import LaPredictor, RetinaHead

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32
"""Images are padded to a multiple of this, so that C2..C5 halve exactly."""
REGIONS_AT_A_TIME = 8
"""Ignored regions that are compared with the anchors of a level in one go: bounds memory."""


@dataclass(frozen=True)
class Architecture:
    """What tells the five models apart (DESIGN section 2).

    Attributes:
        first_level, last_level: of the pyramid.
        head_depth: convolutions of each head tower.
        upsample_head: layer adaption, nearest 2x between tower and predictor.
    """

    first_level: int
    last_level: int
    head_depth: int
    upsample_head: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Cell size of each level's predictions, px of the model's input."""
        shift = 1 if self.upsample_head else 0
        return tuple(2 ** (level - shift) for level in range(self.first_level, self.last_level + 1))


ARCHITECTURES = {
    "teacher": Architecture(3, 7, 4),
    "snet": Architecture(3, 7, 4),
    "la": Architecture(3, 7, 4, upsample_head=True),
    "fa-thin": Architecture(2, 6, 2),
    "fa": Architecture(2, 6, 4),
}
STUDENTS = ("snet", "la", "fa-thin", "fa")

ANCHOR_SIDE_PER_STRIDE = 3  # octave_base_scale of the authors' configurations
ANCHOR_SCALES = tuple(2 ** (octave / 3) for octave in range(3))
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width


def base_anchors(stride: int) -> Tensor:
    """The K = 9 anchors of a cell of side `stride` px: float32[9, 4] around 0, ratios outermost."""
    sides = [
        (side / math.sqrt(ratio), side * math.sqrt(ratio))
        for ratio in ANCHOR_RATIOS
        for side in (ANCHOR_SIDE_PER_STRIDE * stride * scale for scale in ANCHOR_SCALES)
    ]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


@dataclass(frozen=True)
class Predictions:
    """Raw outputs, a tensor a level: logits [B, H*W*K, C] and deltas [B, H*W*K, 4], with the levels' anchors."""

    logits: list[Tensor]
    deltas: list[Tensor]
    grids: list[AnchorGrid]


class RetinaNet(nn.Module):
    """RetinaNet (Lin et al. 2017) with torchvision's calling convention for detectors.

    ``model(images, targets)`` in training gives ``{"classification": Tensor, "bbox_regression": Tensor}``;
    ``model(images)`` in evaluation gives a list of ``{"boxes", "labels", "scores"}``. Images are float tensors
    [3, H, W] in 0..1 (RGB); the ImageNet normalisation is inside. Boxes are (x1, y1, x2, y2) in the pixels of the
    images that are fed; labels run from 0 to num_classes - 1. A target may hold "ignored": float [R, 4], regions whose
    anchors (more than half inside) train nothing.

    Args:
        name: one of `ARCHITECTURES`.
        backbone: resnet18, 34, 50 or 101.
        num_classes: without background.
        channels: of the pyramid and the head towers (paper: 256).
        image_size: side of the square input that `anchor_grids` describes, px; other sizes are accepted too.
        stride_in_1x1, frozen_stages, norm_eval: see :class:`ResNetStages`.
        la_predictor: how "la" predicts, see :meth:`set_la_predictor`; the other models take no notice.
        score_threshold, nms_threshold, candidates, max_detections: post-processing; at most `candidates` a level enter
            the class-wise NMS and the best `max_detections` of the image leave it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        backbone: str = "resnet50",
        num_classes: int = 10,
        image_size: int = 512,
        channels: int = 256,
        stride_in_1x1: bool = False,
        frozen_stages: int = 0,
        norm_eval: bool = False,
        la_predictor: LaPredictor = "phase",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates: int = 1000,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            raise ValueError(f"model: {name!r} is not one of {', '.join(ARCHITECTURES)}")
        if num_classes < 1 or channels < 1:
            raise ValueError(f"num_classes: {num_classes} and channels: {channels} must be positive")
        if image_size < SIZE_DIVISOR or image_size % SIZE_DIVISOR:
            raise ValueError(f"image_size: {image_size} is not a positive multiple of {SIZE_DIVISOR}")
        self.name, self.architecture = name, ARCHITECTURES[name]
        self.backbone_name, self.num_classes, self.image_size = backbone, num_classes, image_size
        self.channels, self.stride_in_1x1 = channels, stride_in_1x1
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.candidates, self.max_detections = candidates, max_detections
        self.backbone = ResNetStages(
            backbone, stride_in_1x1=stride_in_1x1, frozen_stages=frozen_stages, norm_eval=norm_eval
        )
        arch = self.architecture
        self.fpn = FeaturePyramid(self.backbone.channels, arch.first_level, arch.last_level, channels)
        num_anchors = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)
        self.head = RetinaHead(num_classes, num_anchors, arch.head_depth, channels, upsample=arch.upsample_head)
        self.set_la_predictor(la_predictor)
        for i, stride in enumerate(arch.strides):
            self.register_buffer(f"base_anchors_{i}", base_anchors(stride), persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.kernel_backend = "auto"

    def place(self, device: torch.device) -> RetinaNet:
        """Moves the model to `device`, its convolutions' weights in channels_last, which is faster everywhere."""
        return self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def set_kernel_backend(self, backend: str) -> None:
        """Chooses the backend of every `zoominnet.kernels` op that the model calls ("auto" by default)."""
        self.kernel_backend = backend
        self.fpn.backend = self.head.classification.backend = self.head.regression.backend = backend

    def set_la_predictor(self, form: LaPredictor) -> None:
        """Chooses how "la" predicts: "plain" convolves the upsampled map; "phase" gives the same values, but for
        rounding, from the small map (:func:`zoominnet.models.head.phase_weight`). The weights are the same.

        Raises:
            ValueError: `form` is neither.
        """
        if form not in get_args(LaPredictor):
            raise ValueError(f"la_predictor: {form!r} is not one of {', '.join(get_args(LaPredictor))}")
        self.la_predictor = form
        self.head.classification.la_predictor = self.head.regression.la_predictor = form

    @property
    def anchor_grids(self) -> list[AnchorGrid]:
        """The levels' anchors for an input of `image_size` x `image_size`."""
        return self.anchor_grids_for(self.image_size, self.image_size)

    def anchor_grids_for(self, height: int, width: int) -> list[AnchorGrid]:
        """The levels' anchors for an input of `height` x `width` px, multiples of 32."""
        arch = self.architecture
        grids = []
        for i, stride in enumerate(arch.strides):
            cell = 2 ** (arch.first_level + i)
            shape = (-(-height // cell), -(-width // cell))
            if arch.upsample_head:
                shape = (2 * shape[0], 2 * shape[1])
            grids.append(AnchorGrid(getattr(self, f"base_anchors_{i}"), (float(stride), float(stride)), shape))
        return grids

    def features(self, images: Tensor) -> list[Tensor]:
        """Float [B, 3, H, W] in 0..1, H and W multiples of 32 -> the pyramid's outputs, finest first."""
        return self.fpn(self.backbone((images - self.mean) / self.std))

    def predict(self, towers: tuple[list[Tensor], list[Tensor]], image_shape: tuple[int, int]) -> Predictions:
        """Head tower outputs (`self.head.towers(features)`) for an input of `image_shape` (H, W) -> predictions."""
        logits, deltas = self.head.predict_levels(towers)
        return Predictions(logits, deltas, self.anchor_grids_for(*image_shape))

    def predict_raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, 3, H, W] in 0..1 -> class logits [B, A, C] and box deltas [B, A, 4]."""
        logits, deltas = self.head.predict_levels(self.head.towers(self.features(images)))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See the class. Images may differ in size: they are padded at the right and bottom to a common one.

        Raises:
            ValueError: no image, an image not [3, H, W] float, or (training) targets missing or malformed.
        """
        batch, sizes = pad_to_batch(images)
        if self.training:
            if targets is None or len(targets) != len(images):
                raise ValueError("targets: training needs one dict with 'boxes' and 'labels' for each image")
            check_targets(targets, self.num_classes)
        shape = (batch.shape[-2], batch.shape[-1])
        predictions = self.predict(self.head.towers(self.features(batch)), shape)
        if self.training:
            assert targets is not None
            return self.losses(predictions, targets)
        return self.detections(predictions, sizes)

    def losses(self, predictions: Predictions, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Focal loss (alpha 0.25, gamma 2) and L1 loss, each summed over the whole batch / its positive anchors.

        Args:
            predictions: of B images.
            targets: B dicts of "boxes" float [G, 4] px, "labels" int64 [G] and optionally "ignored" float [R, 4] px.

        Returns:
            {"classification": float32 scalar, "bbox_regression": float32 scalar}; the second is 0, and in the graph,
            where no anchor is positive.
        """
        sums, positives = self.loss_sums(predictions, targets)
        return {name: value / positives.clamp(min=1) for name, value in sums.items()}

    def loss_sums(
        self, predictions: Predictions, targets: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The sums of :meth:`losses` before they are divided, and the number of positive anchors (int64 scalar).

        Sums and counts of the parts of a batch add up to those of the whole; losses do not.
        """
        logits = torch.cat(predictions.logits, dim=1).float()
        deltas = torch.cat(predictions.deltas, dim=1).float()
        boxes = [target["boxes"].float() for target in targets]
        matched = torch.stack(max_iou_assign(predictions.grids, boxes, backend=self.kernel_backend))
        if any(target.get("ignored") is not None and len(target["ignored"]) for target in targets):
            ignored = torch.stack([inside_ignored(predictions.grids, target.get("ignored")) for target in targets])
            matched = torch.where(ignored, -2, matched)
        positive = matched >= 0

        # One gather for the whole batch, without a host synchronisation, so nothing is copied to the device: unmatched
        # anchors point at a dummy at the end, itself an anchor.
        anchors = torch.cat([grid.boxes().reshape(-1, 4) for grid in predictions.grids])
        *starts, total = itertools.accumulate((len(b) for b in boxes), initial=0)
        first = torch.cat([matched.new_full((1, 1), start) for start in starts])
        index = torch.where(positive, matched + first, total)
        matched_boxes = torch.cat([*boxes, anchors[:1].float()])[index]
        labels = torch.cat([*(t["labels"] for t in targets), matched.new_zeros(1)])[index]

        one_hot = F.one_hot(labels, self.num_classes).to(logits.dtype) * positive[..., None]
        focal = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="none")
        l1 = (deltas - encode_boxes(matched_boxes, anchors)).abs()
        sums = {
            "classification": (focal * (matched != -2)[..., None]).sum(),
            "bbox_regression": (l1 * positive[..., None]).sum(),
        }
        return sums, positive.sum()

    @torch.no_grad()
    def detections(self, predictions: Predictions, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Post-processing: threshold, best candidates a level, decoding, clipping, class-wise NMS, best of the image.

        Args:
            predictions: of B images.
            sizes: (height, width) px of each image before padding, to clip to.

        Returns:
            B dicts of "boxes" float32 [N, 4] px, "scores" float32 [N] (descending) and "labels" int64 [N].
        """
        anchors = [grid.boxes().reshape(-1, 4) for grid in predictions.grids]
        results = []
        for b, size in enumerate(sizes):
            boxes, scores, labels = [], [], []
            for level_logits, level_deltas, level_anchors in zip(
                predictions.logits, predictions.deltas, anchors, strict=True
            ):
                level_scores = level_logits[b].float().sigmoid().flatten()
                kept = torch.nonzero(level_scores > self.score_threshold).squeeze(1)
                top_scores, order = level_scores[kept].topk(min(self.candidates, len(kept)))
                anchor, label = kept[order] // self.num_classes, kept[order] % self.num_classes
                decoded = decode_boxes(level_deltas[b, anchor].float(), level_anchors[anchor])
                boxes.append(clip_boxes_to_image(decoded, size))
                scores.append(top_scores)
                labels.append(label)
            image_boxes, image_scores, image_labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
            keep = batched_nms(image_boxes, image_scores, image_labels, self.nms_threshold)[: self.max_detections]
            results.append({"boxes": image_boxes[keep], "scores": image_scores[keep], "labels": image_labels[keep]})
        return results


def inside_ignored(grids: Sequence[AnchorGrid], regions: Tensor | None) -> Tensor:
    """Which anchors have more than half their area inside one ignored region (PEERS section 5, IoF > 0.5).

    Args:
        grids: the levels.
        regions: float [R, 4] px, or None for none.

    Returns:
        bool [A].
    """
    masks = []
    if regions is None:
        regions = grids[0].base_anchors.new_zeros((0, 4))
    for grid in grids:
        anchors = grid.boxes()  # [H, W, K, 4]
        mask = torch.zeros(anchors.shape[:3], dtype=torch.bool, device=anchors.device)
        # An anchor's x depends on its column alone and its y on its row.
        left, right = anchors[:1, ..., 0], anchors[:1, ..., 2]  # [1, W, K]
        top, bottom = anchors[:, :1, :, 1], anchors[:, :1, :, 3]  # [H, 1, K]
        half_area = 0.5 * ((right - left) * (bottom - top))
        for first in range(0, len(regions), REGIONS_AT_A_TIME):
            some = regions[first : first + REGIONS_AT_A_TIME]
            x1, y1, x2, y2 = some.reshape(-1, 4, 1, 1, 1).unbind(1)
            width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp(min=0)  # [R, 1, W, K]
            height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp(min=0)  # [R, H, 1, K]
            mask |= (width * height > half_area).any(dim=0)
        masks.append(mask.flatten())
    return torch.cat(masks)


def pad_to_batch(images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images [3, H, W] of any sizes -> one [B, 3, H', W'] padded with zeros, and their (H, W)."""
    if not isinstance(images, Sequence) or not images:
        raise ValueError("images: expected a non-empty list of Tensor[3, H, W]")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"images[{i}]: expected a float Tensor[3, H, W] in 0..1, got {image.dtype} {tuple(image.shape)}"
            )
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in zip(*sizes, strict=True))
    if all(size == (height, width) for size in sizes):
        return torch.stack(list(images)), sizes
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = image
    return batch, sizes


def check_targets(targets: Sequence[dict[str, Tensor]], num_classes: int) -> None:
    """Shapes and dtypes only: checking values would synchronise with a GPU."""
    for i, target in enumerate(targets):
        if missing := {"boxes", "labels"} - target.keys():
            raise ValueError(f"targets[{i}]: lacks {', '.join(sorted(missing))}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"targets[{i}]['boxes']: expected [G, 4], got {tuple(boxes.shape)}")
        ignored = target.get("ignored")
        if ignored is not None and (ignored.ndim != 2 or ignored.shape[1] != 4):
            raise ValueError(f"targets[{i}]['ignored']: expected [R, 4], got {tuple(ignored.shape)}")
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"targets[{i}]['labels']: expected int64 [{len(boxes)}] in 0..{num_classes - 1}, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )


def build_model(
    name: str, backbone: str = "resnet50", num_classes: int = 10, image_size: int = 512, **options: object
) -> RetinaNet:
    """Builds one of the five models with fresh weights.

    Args:
        name: "teacher" (feed it 2S px), "snet", "la", "fa-thin" or "fa" (feed them S px).
        backbone: "resnet18", "resnet34", "resnet50" or "resnet101".
        num_classes: without background.
        image_size: side of the input that the model itself is fed, px; a multiple of 32.
        **options: the other arguments of :class:`RetinaNet`.
    """
    return RetinaNet(name, backbone=backbone, num_classes=num_classes, image_size=image_size, **options)  # type: ignore[arg-type]
