"""Nearest 2x upsampling: public function, operator registration, gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._checks import check_alike, check_dim, check_floating
from .._dispatch import choose_backend
from .._schemas import operator, register_operator
from .._triton_state import from_triton
from .reference import (
    empty_downsampled,
    empty_upsampled,
    upsample_nearest2x_backward_reference,
    upsample_nearest2x_reference,
)


def upsample_nearest2x(x: Tensor, add: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Doubles height and width, each value four times, and adds a map of that size.

    Equal to ``F.interpolate(x, scale_factor=2, mode="nearest") + add``, the top-down step of an FPN.

    Args:
        x: Tensor[B, C, H, W], floating point, any strides.
        add: Tensor[B, C, 2H, 2W] of the same dtype and device, or None.
        backend: "auto" or a name of :func:`available_backends`.

    Returns:
        Tensor[B, C, 2H, 2W] of the dtype of `x`, in channels_last where `x` is. Differentiable, any number of times,
        in `x` and `add`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        BackendUnavailableError: `backend` names one that cannot run here.

    Example:
        >>> upsample_nearest2x(torch.tensor([[[[1.0, 2.0]]]]))
        tensor([[[[1., 1., 2., 2.],
                  [1., 1., 2., 2.]]]])
    """
    check_floating("x", x)
    check_dim("x", x, "[B, C, H, W]")
    if add is not None:
        check_floating("add", add)
        check_alike("add", add, "x", x)
        b, c, h, w = x.shape
        if tuple(add.shape) != (b, c, 2 * h, 2 * w):
            raise ValueError(
                f"add must have shape {[b, c, 2 * h, 2 * w]} for x of {list(x.shape)}, got {list(add.shape)}"
            )
    return operator("upsample_nearest2x", choose_backend("upsample_nearest2x", backend, x.device.type))(x, add)


def _register(backend: str, forward: Any, backward: Any) -> None:
    """Both operators of a backend; the operation is linear, so each is the gradient of the other."""

    def gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        needs_x, needs_add = ctx.needs_input_grad
        return operator("upsample_nearest2x_backward", backend)(grad) if needs_x else None, grad if needs_add else None

    def gradient_of_backward(ctx: Any, grad: Tensor) -> Tensor:
        return operator("upsample_nearest2x", backend)(grad, None)

    register_operator("upsample_nearest2x", backend, forward, fake=_fake, backward=gradient)
    register_operator(
        "upsample_nearest2x_backward", backend, backward, fake=empty_downsampled, backward=gradient_of_backward
    )


def _fake(x: Tensor, add: Tensor | None) -> Tensor:
    return empty_upsampled(x)


_register("reference", upsample_nearest2x_reference, upsample_nearest2x_backward_reference)
_register("native", None, None)
_register(
    "triton",
    from_triton(__package__, "upsample_nearest2x_triton"),
    from_triton(__package__, "upsample_nearest2x_backward_triton"),
)
