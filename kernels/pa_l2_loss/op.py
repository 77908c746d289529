"""The PA-L2 loss: public function, operator registration, gradient."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_alike, check_device, check_dim, check_floating
from .._dispatch import choose_backend
from .._numerics import accumulation_dtype
from .._schemas import operator, register_operator
from .._triton_state import from_triton
from .reference import pa_l2_loss_backward_reference, pa_l2_loss_reference


def pa_l2_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    channel_reduction: Literal["sum", "mean"] = "sum",
    backend: str = "auto",
) -> Tensor:
    """Squared distance of student and teacher features at the key positions of one level (position-aware L2).

    ``sum over masked positions and channels of (S - T)^2 / number of masked positions in the batch`` (paper, equations
    20 and 21). Where nothing is masked it is exactly 0 and still in the graph, with a gradient of zeros. What stands
    at unmasked positions has no influence, NaN and infinity included.

    Args:
        student: Tensor[B, C, h, w], floating point, any strides. The gradient goes here only.
        teacher: Tensor[B, C, H, W] of the same dtype and device, detached; (H, W) is (h, w) or (2h, 2w). In the second
            form the student's map is compared as if it were upsampled by 2 to the nearest neighbour.
        mask: bool[B, H, W], such as :func:`akdp_mask` gives.
        channel_reduction: "sum" over the channels, or "mean", which divides the loss by C.
        backend: "auto" or a name of :func:`available_backends`.

    Returns:
        Scalar; float64 for float64 features, else float32. It can be differentiated once; differentiating its
        gradient raises a RuntimeError.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device, or the teacher requires grad.
        BackendUnavailableError: `backend` names one that cannot run here.

    Numerics:
        Differences and sums in float32, or float64 for float64 features; the gradient is rounded once, to the
        student's dtype. The exact contract stands in `reference.py`.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.ones(1, 2, 2, 2)
        >>> mask = torch.tensor([[[True, False], [False, True]]])
        >>> pa_l2_loss(student, teacher, mask).item()  # 2 positions of 2 channels, each 1 away, over 2 positions
        2.0
    """
    check_floating("student", student)
    check_floating("teacher", teacher)
    check_dim("student", student, "[B, C, h, w]")
    check_dim("teacher", teacher, "[B, C, H, W]")
    check_alike("teacher", teacher, "student", student)
    if teacher.requires_grad:
        raise ValueError("teacher must not require grad, since only the student gets a gradient; pass teacher.detach()")
    (b, c, h, w), teacher_shape = student.shape, tuple(teacher.shape)
    if teacher_shape not in ((b, c, h, w), (b, c, 2 * h, 2 * w)):
        raise ValueError(
            f"teacher must have shape {[b, c, h, w]} or {[b, c, 2 * h, 2 * w]} for a student of {[b, c, h, w]},"
            f" got {list(teacher_shape)}"
        )
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if tuple(mask.shape) != (b, *teacher_shape[2:]):
        raise ValueError(
            f"mask must have the teacher's shape [B, H, W], {[b, *teacher_shape[2:]]}, got {list(mask.shape)}"
        )
    check_device("mask", mask, "student", student)
    if channel_reduction not in ("sum", "mean"):
        raise ValueError(f"channel_reduction must be 'sum' or 'mean', got {channel_reduction!r}")
    chosen = choose_backend("pa_l2_loss", backend, student.device.type)
    loss, _ = operator("pa_l2_loss", chosen)(student, teacher, mask, channel_reduction == "mean")
    return loss


def _register(backend: str, forward: Any, backward: Any) -> None:
    """Both operators of a backend; the gradient of the first is the second."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        student, teacher, mask, ctx.channel_mean = inputs
        ctx.save_for_backward(student, teacher, mask, output[1])
        ctx.mark_non_differentiable(output[1])

    def gradient(ctx: Any, grad_loss: Tensor, _grad_count: Tensor | None) -> tuple[Tensor, None, None, None]:
        grad = operator("pa_l2_loss_backward", backend)(grad_loss, *ctx.saved_tensors, ctx.channel_mean)
        return grad, None, None, None

    register_operator("pa_l2_loss", backend, forward, fake=_fake, backward=gradient, setup_context=setup_context)
    register_operator("pa_l2_loss_backward", backend, backward, fake=_fake_backward, backward=_refuse_second_gradient)


def _fake(student: Tensor, teacher: Tensor, mask: Tensor, channel_mean: bool) -> tuple[Tensor, Tensor]:
    return student.new_empty((), dtype=accumulation_dtype(student)), student.new_empty((), dtype=torch.int64)


def _fake_backward(
    grad_out: Tensor, student: Tensor, teacher: Tensor, mask: Tensor, count: Tensor, channel_mean: bool
) -> Tensor:
    return torch.empty_like(student)


def _refuse_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("pa_l2_loss can be differentiated only once: its gradient has no gradient of its own")


_register("reference", pa_l2_loss_reference, pa_l2_loss_backward_reference)
_register("native", None, None)
_register(
    "triton", from_triton(__package__, "pa_l2_loss_triton"), from_triton(__package__, "pa_l2_loss_backward_triton")
)
