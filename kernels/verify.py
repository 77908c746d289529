"""Comparison of the fast backends with the reference, call by call, while a program runs.

    with KernelVerifier() as verifier:
        loss = model(images, targets)
        loss.backward()
    assert not verifier.mismatches

Every call of a fast operator, in the forward and the backward pass, is repeated by the reference on the very tensors
that it got, with their dtypes and layouts; the program goes on with the fast operator's results. What must be equal is
said in each `reference.py`: masks but for rounding at the threshold, lambda but for rounding, the sum of a loss but for
its order, the terms of the focal loss and its gradient but for rounding, and everything else bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ._iou import iou_chunks, sanitize
from ._numerics import accumulation_dtype
from ._schemas import NAMESPACE, SCHEMAS, operator
from .anchor_grid import grid_boxes

LAMBDA_TOLERANCE = 2e-8
"""Relative. The deviation's error by the contract of the mask, where all IoUs are nearly equal; else far less."""
THRESHOLD_BAND_ULPS = 4
"""The lambda's tolerance moves a float32 threshold by at most one unit in the last place, rounding it by another."""
LOSS_TOLERANCE_ULPS = 32
"""The loss sums squares, so its relative error is at most the depth of its sum (about 10 for runs of 1024) times two
backends, and a few roundings of each term. The focal loss adds up positive terms as well, each known to 8 units."""
FOCAL_POWER_ULPS = 800
"""For each unit of a focal loss's gamma that is not 2: by float64's backends p^gamma is exp(gamma * log p), and -log p is
at most 708, where p is a normal number."""


@dataclass(frozen=True)
class Difference:
    """Of one output of one call.

    Attributes:
        operator: such as "pa_l2_loss_backward_native".
        output: its name and the unit of the difference.
        value: the greatest difference; infinite where shape or dtype differ, or one value is not finite.
        tolerance: the greatest allowed.
        shapes: of the call's tensors.
    """

    operator: str
    output: str
    value: float
    tolerance: float
    shapes: str

    @property
    def excessive(self) -> bool:
        return not self.value <= self.tolerance

    def __str__(self) -> str:
        return f"{self.operator} on {self.shapes}: {self.output} differs by {self.value:.3g}, tolerance {self.tolerance:.3g}"


class KernelVerifier(TorchDispatchMode):
    """Inside ``with KernelVerifier() as verifier``, fast operators are compared with the reference. See the module.

    It waits for the device at each call, and takes the reference's time and memory. Results do not change.

    Attributes:
        calls: number of calls compared, by operator.
        greatest: of each operator's outputs, by (operator, output), the greatest difference seen.
        mismatches: the differences beyond tolerance, in order of the calls.
        flips: cells of masks that differ where rounding decides, which is allowed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.greatest: dict[tuple[str, str], Difference] = {}
        self.mismatches: list[Difference] = []
        self.flips = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        operation, _, backend = name.rpartition("_")
        if namespace != NAMESPACE or operation not in SCHEMAS or backend == "reference":
            return func(*args, **kwargs)
        # First, so that a kernel that writes where it should not cannot spoil it.
        expected = operator(operation, "reference")(*args, **kwargs)
        result = func(*args, **kwargs)
        self._compare(operation, name, args, _as_tuple(result), _as_tuple(expected))
        return result

    def _compare(
        self, operation: str, name: str, args: tuple[Any, ...], got: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> None:
        self.calls[name] += 1
        shapes = ", ".join(str(list(arg.shape)) for arg in pytree.tree_leaves(args) if isinstance(arg, Tensor))
        if operation.startswith("akdp_mask"):
            differences, flips = _compare_masks(args, got, expected)
            self.flips += flips
        else:
            differences = _COMPARISONS[operation](args, got, expected)
        for output, value, tolerance in differences:
            difference = Difference(name, output, value, tolerance, shapes)
            if difference.excessive:
                self.mismatches.append(difference)
            before = self.greatest.get((name, output))
            if before is None or not value <= before.value:
                self.greatest[name, output] = difference


_Arguments = tuple[Any, ...]
_Differences = list[tuple[str, float, float]]
"""Output, greatest difference, tolerance."""


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, list | tuple) else (result,)


def _absolute(got: Tensor, expected: Tensor) -> float:
    """Greatest absolute difference; equal infinities, and two NaNs, are equal."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if torch.equal(got, expected):
        return 0.0
    got, expected = got.double(), expected.double()
    equal = (got == expected) | (got.isnan() & expected.isnan())
    return (got - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(equal, 0).max().item()


def _relative(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Greatest difference in units of the expected values, or of `floor` where they are less; 0 / 0 is 0."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    got, expected = got.double(), expected.double()
    equal = (got == expected) | (got.isnan() & expected.isnan())
    ratio = (
        ((got - expected) / expected.abs().clamp(min=floor))
        .abs()
        .nan_to_num(nan=math.inf, posinf=math.inf)
        .masked_fill(equal, 0)
    )
    return ratio.max().item() if ratio.numel() else 0.0


def _unequal(got: Tensor, expected: Tensor) -> float:
    """Number of elements that are not equal."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    return float((got != expected).sum())


def _compare_assignments(_: _Arguments, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Differences:
    return [("assignment (number of anchors)", _unequal(got[0], expected[0]), 0.0)]


def _compare_losses(_: _Arguments, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Differences:
    tolerance = LOSS_TOLERANCE_ULPS * torch.finfo(expected[0].dtype).eps
    return [
        ("loss (relative)", _relative(got[0], expected[0]), tolerance),
        ("number of masked positions", _absolute(got[1], expected[1]), 0.0),
    ]


def _compare_exactly(output: str) -> Callable[[_Arguments, tuple[Tensor, ...], tuple[Tensor, ...]], _Differences]:
    return lambda _, got, expected: [(output, _absolute(got[0], expected[0]), 0.0)]


def _focal_tolerance(args: _Arguments, dtype: torch.dtype) -> float:
    gamma = args[-1]
    return (LOSS_TOLERANCE_ULPS + (0 if gamma == 2 else FOCAL_POWER_ULPS * gamma)) * torch.finfo(dtype).eps


def _compare_focal_losses(args: _Arguments, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Differences:
    return [("loss (relative)", _relative(got[0], expected[0]), _focal_tolerance(args, expected[0].dtype))]


def _compare_focal_gradients(args: _Arguments, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> _Differences:
    computed = torch.finfo(args[0].dtype)
    differences = []
    for level, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        stored = torch.finfo(theirs.dtype)
        # Below, numbers are too coarse for a relative error.
        floor = max(stored.smallest_normal, computed.smallest_normal / computed.eps)
        tolerance = _focal_tolerance(args, args[0].dtype) + (stored.eps if stored.bits < computed.bits else 0)
        differences.append((f"gradient of level {level} (relative)", _relative(ours, theirs, floor), tolerance))
    return differences


_COMPARISONS = {
    "max_iou_assign": _compare_assignments,
    "max_iou_assign_dense": _compare_assignments,
    "pa_l2_loss": _compare_losses,
    "pa_l2_loss_backward": _compare_exactly("gradient"),
    "sigmoid_focal_loss": _compare_focal_losses,
    "sigmoid_focal_loss_backward": _compare_focal_gradients,
    "upsample_nearest2x": _compare_exactly("map"),
    "upsample_nearest2x_backward": _compare_exactly("gradient"),
}


def _compare_masks(
    args: tuple[Any, ...], got: tuple[Tensor, ...], expected: tuple[Tensor, ...]
) -> tuple[_Differences, int]:
    """The differences, and the number of cells that differ within the band of rounding."""
    (mask, lam, max_iou), (expected_mask, expected_lam, expected_max_iou) = got, expected
    wrong, flips = math.inf, 0
    if mask.shape == expected_mask.shape and mask.dtype == expected_mask.dtype:
        different = mask != expected_mask
        undecided = _undecided(args, different, expected_lam, expected_max_iou) if different.any() else different
        wrong, flips = float((different & ~undecided).sum()), int(undecided.sum())
    return [
        ("mask (number of cells, beyond those at the threshold)", wrong, 0.0),
        ("lambda (relative)", _relative(lam, expected_lam), LAMBDA_TOLERANCE),
        ("greatest IoU of a box", _absolute(max_iou, expected_max_iou), 0.0),
    ], flips


def _undecided(args: tuple[Any, ...], cells: Tensor, lam: Tensor, max_iou: Tensor) -> Tensor:
    """Those of the cells, bool[sum of B*H*W], at which an IoU is so near its threshold that rounding decides."""
    boxes, counts = args[:2]
    if isinstance(args[2], Tensor):
        levels = [args[2]]  # [H, W, K, 4]
    else:
        base_anchors, strides, shapes = args[2:5]
        dtype = accumulation_dtype(boxes, *base_anchors)
        levels = [
            grid_boxes(base.to(dtype), strides[2 * i : 2 * i + 2], shapes[2 * i : 2 * i + 2])
            for i, base in enumerate(base_anchors)
        ]
    dtype = accumulation_dtype(boxes, *levels)
    band = THRESHOLD_BAND_ULPS * torch.finfo(dtype).eps + LAMBDA_TOLERANCE
    images = sanitize(boxes, dtype).split(counts)
    parts = cells.split([len(counts) * level.shape[0] * level.shape[1] for level in levels])
    undecided = []
    for i, (level, part) in enumerate(zip(levels, parts, strict=True)):
        result = torch.zeros_like(part).view(len(counts), *level.shape[:2])
        for b, (image, maxima) in enumerate(zip(images, max_iou[i].split(counts), strict=True)):
            chosen = part.view_as(result)[b]
            anchors = sanitize(level[chosen], dtype)  # [n * K, 4]
            threshold = lam[i, b] * maxima.double()
            below, above = torch.zeros(2, len(anchors), dtype=torch.bool, device=anchors.device)
            for run, iou in iou_chunks(anchors, image):
                below[run] = (iou > threshold * (1 - band)).any(1)
                above[run] = (iou > threshold * (1 + band)).any(1)
            below, above = (side.view(-1, level.shape[2]).any(1) for side in (below, above))
            result[b][chosen] = below & ~above
        undecided.append(result.flatten())
    return torch.cat(undecided)
