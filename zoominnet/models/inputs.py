"""From what a caller gives a detector to one checked batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoominnet.models.architectures import SIZE_DIVISOR

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue in 0..1, by which images are normalised."""
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pad_to_batch(images: Sequence[Tensor], divisor: int = SIZE_DIVISOR) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images [3, H, W] of any sizes -> one [B, 3, H', W'] padded with zeros, and their (H, W); H' and W' are multiples of
    `divisor` px."""
    if not isinstance(images, Sequence) or not images:
        raise ValueError("images: expected a non-empty list of Tensor[3, H, W]")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f"images[{i}]: expected a float Tensor[3, H, W] in 0..1, got {image.dtype} {tuple(image.shape)}"
            )
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // divisor) * divisor for side in zip(*sizes, strict=True))
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
