"""Independent computations that the kernels are compared with, and inputs shared by the tests.

The oracles are slow loops over Python floats (float64) and share nothing with the package but the definitions of the
paper. :func:`iou_float32` instead repeats the documented roundings in numpy, to compare bits.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import torch
from torch import Tensor

from zoominnet.kernels import AnchorGrid

Box = Sequence[float]


def naive_iou(a: Box, b: Box) -> float:
    """IoU of two boxes; 0 where either has no positive finite area."""
    for box in (a, b):
        if not all(map(math.isfinite, box)) or box[2] <= box[0] or box[3] <= box[1]:
            return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def iou_float32(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU [N, G] of float32 anchors [N, 4] and boxes [G, 4] with area, each operation rounded to float32 in order."""
    a, b = anchors[:, None], boxes[None]
    zero = np.float32(0)
    width = np.maximum(np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]), zero)
    height = np.maximum(np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]), zero)
    inter = width * height
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (a, b)]
    return inter / ((areas[0] + areas[1]) - inter)


@dataclass
class NaiveLevel:
    """One level's mask as the paper defines it, in float64."""

    iou: list[list[list[list[float]]]]  # [H][W][K][G]
    lam: float
    max_iou: list[float]  # [G]

    def mask(self, band: float = 0.0) -> list[list[bool | None]]:
        """Rows of cells: True or False, or None where an IoU is so near to its threshold that rounding decides.

        Args:
            band: relative half width of that zone.
        """
        thresholds = [self.lam * best for best in self.max_iou]
        return [[self._cell(cell, thresholds, band) for cell in row] for row in self.iou]

    @staticmethod
    def _cell(cell: list[list[float]], thresholds: list[float], band: float) -> bool | None:
        pairs = [(value, limit) for anchor in cell for value, limit in zip(anchor, thresholds, strict=True)]
        if any(value > limit * (1 + band) and value > 0 for value, limit in pairs):
            return True
        if any(value > limit * (1 - band) and value > 0 for value, limit in pairs):
            return None
        return False


def naive_akdp(
    levels: list[Tensor], boxes: Tensor, threshold: str | float = "adaptive", scope: str = "level"
) -> list[NaiveLevel]:
    """AKDP of one image, by the scope "level" or "all". `levels`: anchors [H, W, K, 4] each; `boxes`: [G, 4]."""
    truths = boxes.double().tolist()
    ious = [
        [[[[naive_iou(a, b) for b in truths] for a in cell] for cell in row] for row in level.double().tolist()]
        for level in levels
    ]
    pairs = [[value for row in iou for cell in row for anchor in cell for value in anchor] for iou in ious]
    best = [
        [max((a[g] for row in iou for cell in row for a in cell), default=0.0) for g in range(len(truths))]
        for iou in ious
    ]
    if scope == "all":
        pairs = [[value for level in pairs for value in level]] * len(levels)
        best = [[max(values) for values in zip(*best, strict=True)]] * len(levels)
    return [
        NaiveLevel(iou, _naive_lambda(values, threshold), level_best)
        for iou, values, level_best in zip(ious, pairs, best, strict=True)
    ]


def _naive_lambda(values: list[float], threshold: str | float) -> float:
    if not isinstance(threshold, str):
        return threshold
    if threshold == "adaptive-nonzero":
        values = [value for value in values if value > 0]
    mean = math.fsum(values) / len(values) if values else 0.0
    return mean + (statistics.stdev(values) if len(values) >= 2 else 0.0)


def count_undecided(mask: Tensor, level: NaiveLevel, band: float) -> int:
    """Asserts that bool[H, W] is the naive mask wherever rounding does not decide; returns the number of other cells."""
    expected = level.mask(band)
    assert list(mask.shape)[:1] == [len(expected)]
    undecided = 0
    for got_row, row in zip(mask.tolist(), expected, strict=True):
        for got, value in zip(got_row, row, strict=True):
            undecided += value is None
            assert value is None or got == value
    return undecided


def naive_assign(
    anchors: Tensor,
    boxes: Tensor,
    positive: float,
    negative: float,
    allow_low_quality: bool = True,
    own_best: bool = False,
) -> list[int]:
    """The assignment of anchors [A, 4] by the rules of torchvision's Matcher, but a best IoU of 0 forces nothing.

    With `own_best`, each box in turn then takes its best anchors from the others.
    """
    truths = boxes.double().tolist()
    ious = [[naive_iou(a, b) for b in truths] for a in anchors.double().tolist()]
    best_of_box = [max((row[g] for row in ious), default=0.0) for g in range(len(truths))]
    result = []
    for row in ious:
        best = max(row, default=0.0)
        forced = allow_low_quality and any(value == top > 0 for value, top in zip(row, best_of_box, strict=True))
        if row and (best >= positive or forced):
            result.append(row.index(best))
        else:
            result.append(-2 if row and best >= negative else -1)
    for g, top in enumerate(best_of_box):
        for n, row in enumerate(ious):
            if own_best and row[g] == top > 0:
                result[n] = g
    return result


def naive_pa_l2(student: Tensor, teacher: Tensor, mask: Tensor, channel_reduction: str = "sum") -> tuple[float, Tensor]:
    """Loss, and its gradient in the student as float64 [B, C, h, w]."""
    s, t = student.detach().double(), teacher.double()
    grad = torch.zeros_like(s, memory_format=torch.contiguous_format)
    step = 2 if teacher.shape[2:] != student.shape[2:] else 1
    masked = mask.nonzero().tolist()
    divisor = max(len(masked), 1) * (student.shape[1] if channel_reduction == "mean" else 1)
    terms = []
    for b, i, j in masked:
        difference = s[b, :, i // step, j // step] - t[b, :, i, j]
        terms += (difference**2).tolist()
        grad[b, :, i // step, j // step] += 2 * difference / divisor
    return math.fsum(terms) / max(divisor, 1), grad


def naive_focal(
    logits: Tensor, assigned: Tensor, labels: Sequence[Tensor], alpha: float = 0.25, gamma: float = 2.0
) -> tuple[float, Tensor]:
    """Sum of the focal loss over anchors and classes, and its gradient (float64), term by term in 200 decimal digits.

    The derivative is a difference quotient: nothing of the formula of the gradient is in it.
    """

    def term(x: Decimal, mine: bool) -> Decimal:
        p = 1 / (1 + (-x).exp())
        if mine:
            return -Decimal(alpha) * (1 - p) ** Decimal(gamma) * p.ln()
        return -Decimal(1 - alpha) * p ** Decimal(gamma) * (1 - p).ln()

    grad = torch.zeros(logits.shape, dtype=torch.float64)
    total, step = Decimal(0), Decimal("1e-60")
    with localcontext() as context:
        context.prec = 200
        for b, a, c in itertools.product(*map(range, logits.shape)):
            if (index := int(assigned[b, a])) != -2:
                mine, x = index >= 0 and int(labels[b][index]) == c, Decimal(float(logits[b, a, c]))
                total += term(x, mine)
                grad[b, a, c] = float((term(x + step, mine) - term(x - step, mine)) / (2 * step))
    return float(total), grad.to(logits.device)


def pyramid(sizes: Sequence[tuple[int, int]], anchors: int = 3, dtype: torch.dtype = torch.float32) -> list[AnchorGrid]:
    """Grids of the given (H, W) with strides 4, 8, 16, ... px and K anchors of different sizes and shapes a cell."""
    grids = []
    for level, shape in enumerate(sizes):
        stride = 4 << level
        sides = [(stride * (1 + 0.37 * k), stride * (1.9 - 0.41 * k)) for k in range(anchors)]
        base = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=dtype).reshape(-1, 4)
        grids.append(AnchorGrid(base, (stride, stride), shape))
    return grids


def random_boxes(count: int, extent: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes [count, 4] with sides of 1 to extent / 2 px around centres in [0, extent)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent
    half = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (extent / 4 - 0.5) + 0.5
    return torch.cat([centre - half, centre + half], 1).to(dtype)


def _padded(x: Tensor, front: int, step: int) -> Tensor:
    """`x` as every `step`-th column of wider rows, after `front` columns of NaN (or True)."""
    wide = torch.full((*x.shape[:-1], front + step * x.shape[-1] + 1), float("nan") if x.is_floating_point() else 1)
    wide = wide.to(dtype=x.dtype, device=x.device)
    view = wide[..., front : front + step * x.shape[-1] : step]
    view.copy_(x)
    return view


def _shifted(x: Tensor, elements: int) -> Tensor:
    """`x` contiguous, but so many elements off the start of its storage, which is aligned to 16 bytes and more."""
    return torch.empty(x.numel() + elements, dtype=x.dtype, device=x.device)[elements:].view(x.shape).copy_(x)


def _apart(x: Tensor) -> Tensor:
    """`x` [..., H, W] with one element between two planes, or [N, 4] with one between two rows."""
    lead = max(x.dim() - 2, 1)
    rest = x.shape[lead:]
    memory = x.new_zeros(*x.shape[:lead], rest.numel() + 1)
    memory[..., : rest.numel()] = x.reshape(*x.shape[:lead], -1)
    return memory[..., : rest.numel()].unflatten(-1, rest)


def _channels_last(x: Tensor) -> Tensor:
    """`x` [B, ..., H, W] or [N, 4] with its second dimension innermost."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": _channels_last,
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "misaligned": lambda x: _shifted(x, 1),
    "misaligned by two": lambda x: _shifted(x, 2),
    "misaligned by four": lambda x: _shifted(x, 4),
    "planes apart": _apart,
    "sliced": lambda x: _padded(x, 3, 1),
    "stepped": lambda x: _padded(x, 0, 2),
    "part of a batch": lambda x: torch.stack([x, torch.zeros_like(x)], 1)[:, 0],
    "expanded": lambda x: x[:1].expand(x.shape),
    "expanded last": lambda x: x[..., :1].expand(x.shape),
    "channels-last, expanded": lambda x: _channels_last(x[..., :1]).expand(x.shape),
}
"""Ways to lay out a tensor of at least two dimensions. All but the expanded ones keep its values."""
