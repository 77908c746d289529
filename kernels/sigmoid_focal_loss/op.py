"""The focal loss: public function, operator registration, gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .._checks import check_alike, check_device, check_dim, check_floating
from .._dispatch import choose_backend
from .._numerics import accumulation_dtype
from .._schemas import operator, register_operator
from .._triton_state import from_triton
from .reference import sigmoid_focal_loss_backward_reference, sigmoid_focal_loss_reference


def sigmoid_focal_loss(
    logits: Tensor | Sequence[Tensor],
    assigned: Tensor,
    labels: Sequence[Tensor],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    backend: str = "auto",
) -> Tensor:
    """Focal loss of a detector's classes (Lin et al. 2017, RetinaNet), summed over anchors and classes.

    The sum of ``torchvision.ops.sigmoid_focal_loss`` over the anchors that are not ignored, with one-hot targets that are
    never made: an anchor's class is looked up by the box that it was assigned to. Beside the logits and their gradient
    nothing of their size is in memory.

    Args:
        logits: Tensor[B, A, C], floating point, any strides; or a list of the levels' Tensor[B, A_l, C], whose A_l add up
            to A. The gradient goes here.
        assigned: int64[B, A], as :func:`max_iou_assign` gives it for each image: the index of the anchor's box in its
            image, -1 for background, -2 for an anchor that is ignored: it adds no loss, whatever its logits, and its
            gradient is 0.
        labels: B tensors int64[G], the classes 0..C-1 of the image's boxes. G may be 0.
        alpha: weight of the anchor's own class, 0..1; every other class has 1 - alpha.
        gamma: focusing exponent, 0 or more; 0 gives the weighted cross-entropy. 2 is the fastest.
        backend: "auto" or a name of :func:`available_backends`.

    Returns:
        Scalar; float64 for float64 logits, else float32. NaN where an assigned index is no box of the image, -1 or -2,
        where a label that is used is not in 0..C-1, or where a logit is NaN; the gradient of that anchor, or logit, is
        NaN as well. It can be differentiated once; differentiating its gradient raises a RuntimeError.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
        BackendUnavailableError: `backend` names one that cannot run here.

    Numerics:
        In float32 or better, or float64 for float64 logits, from exp(-abs(logit)): right for any finite logit, in the
        tails too. The exact contract stands in `reference.py`.

    Example:
        >>> logits = torch.zeros(1, 2, 3, requires_grad=True)  # probabilities of 1/2: each term is w / 4 * log(2)
        >>> loss = sigmoid_focal_loss(logits, torch.tensor([[0, -2]]), [torch.tensor([1])])
        >>> round(loss.item() / math.log(2), 4)  # (0.75 + 0.25 + 0.75) / 4; the second anchor is ignored
        0.4375
    """
    levels = [logits] if isinstance(logits, Tensor) else logits
    if not isinstance(levels, list | tuple):
        raise TypeError(f"logits must be a tensor or a list of tensors, got {type(logits).__name__}")
    if not levels:
        raise ValueError("logits must hold at least one level, got an empty list")
    for i, level in enumerate(levels):
        name = "logits" if isinstance(logits, Tensor) else f"logits[{i}]"
        check_floating(name, level)
        check_dim(name, level, "[B, A, C]")
        check_alike(name, level, "logits[0]", levels[0])
        if (level.shape[0], level.shape[2]) != (levels[0].shape[0], levels[0].shape[2]):
            raise ValueError(
                f"{name} must have the B and C of logits[0], {list(levels[0].shape)}, got {list(level.shape)}"
            )
    b, anchors = levels[0].shape[0], sum(level.shape[1] for level in levels)
    _check_int64("assigned", assigned)
    if tuple(assigned.shape) != (b, anchors):
        raise ValueError(f"assigned must have shape [B, A], {[b, anchors]}, got {list(assigned.shape)}")
    check_device("assigned", assigned, "logits", levels[0])
    if not isinstance(labels, list | tuple):
        raise TypeError(f"labels must be a list of tensors, one an image, got {type(labels).__name__}")
    if len(labels) != b:
        raise ValueError(f"labels must hold one tensor for each of the {b} images, got {len(labels)}")
    for i, of_image in enumerate(labels):
        _check_int64(f"labels[{i}]", of_image)
        if of_image.dim() != 1:
            raise ValueError(f"labels[{i}] must have shape [G], got {list(of_image.shape)}")
        check_device(f"labels[{i}]", of_image, "logits", levels[0])
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha!r}")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and not negative, got {gamma!r}")
    chosen = choose_backend("sigmoid_focal_loss", backend, levels[0].device.type)
    return _FocalLoss.apply(chosen, assigned, pad_labels(labels, assigned), float(alpha), float(gamma), *levels)


def _check_int64(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(value, 'dtype', type(value).__name__)}")


def pad_labels(labels: Sequence[Tensor], like: Tensor) -> Tensor:
    """int64[B, G]: a row for each image, as long as the longest, filled up with -1, which is no class."""
    if len(labels) == 0:
        return like.new_empty((0, 0))
    return torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-1)


class _FocalLoss(torch.autograd.Function):
    """The operator and its gradient, without the lists that a gradient registered for it has to take apart: of a short
    call these took a third of the time."""

    @staticmethod
    def forward(
        ctx: Any, backend: str, assigned: Tensor, labels: Tensor, alpha: float, gamma: float, *logits: Tensor
    ) -> Tensor:
        ctx.backend, ctx.alpha, ctx.gamma = backend, alpha, gamma
        ctx.save_for_backward(assigned, labels, *logits)
        return operator("sigmoid_focal_loss", backend)(list(logits), assigned, labels, alpha, gamma)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, None, *_gradient(ctx, grad_loss, ctx.backend)


def _gradient(ctx: Any, grad_loss: Tensor, backend: str) -> list[Tensor]:
    assigned, labels, *logits = ctx.saved_tensors
    return operator("sigmoid_focal_loss_backward", backend)(grad_loss, logits, assigned, labels, ctx.alpha, ctx.gamma)


def _register(backend: str, forward: Any, backward: Any) -> None:
    """Both operators of a backend; the gradient of the first is the second."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, assigned, labels, ctx.alpha, ctx.gamma = inputs
        ctx.save_for_backward(assigned, labels, *logits)

    def gradient(ctx: Any, grad_loss: Tensor) -> tuple[list[Tensor], None, None, None, None]:
        return _gradient(ctx, grad_loss, backend), None, None, None, None

    register_operator(
        "sigmoid_focal_loss", backend, forward, fake=_fake, backward=gradient, setup_context=setup_context
    )
    register_operator(
        "sigmoid_focal_loss_backward", backend, backward, fake=_fake_backward, backward=_refuse_second_gradient
    )


def _fake(logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    return logits[0].new_empty((), dtype=accumulation_dtype(*logits))


def _fake_backward(
    grad_out: Tensor, logits: list[Tensor], assigned: Tensor, labels: Tensor, alpha: float, gamma: float
) -> list[Tensor]:
    return [torch.empty_like(level) for level in logits]


def _refuse_second_gradient(ctx: Any, grads: list[Tensor]) -> None:
    raise RuntimeError("sigmoid_focal_loss can be differentiated only once: its gradient has no gradient of its own")


_register("reference", sigmoid_focal_loss_reference, sigmoid_focal_loss_backward_reference)
_register("native", None, None)
_register(
    "triton",
    from_triton(__package__, "sigmoid_focal_loss_triton"),
    from_triton(__package__, "sigmoid_focal_loss_backward_triton"),
)
