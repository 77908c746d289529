"""The operators' schemas, and the one way to register an operator.

Each operation has one schema. Each backend that implements it is an operator of its own under that schema, named
``zoominnet::<operation>_<backend>``: the operators differ in speed, never in arguments, results or gradients. A
backend written in C++ adds an implementation only; its schema, fake and gradient come from here as well.

Sizes: B images, L levels, H x W cells of a level, K anchors a cell, A anchors in all, G boxes in all images together.
The boxes of a batch are one Tensor[G, 4] (x1, y1, x2, y2 px), image after image, with `counts[b]` boxes for image b.
`strides` and `shapes` hold (y, x) and (H, W) of each level one after the other. No output of an operator shares
memory with another output or with an input.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "zoominnet"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")

_BOXES = "Tensor boxes, SymInt[] counts"
_GRIDS = "Tensor[] base_anchors, float[] strides, SymInt[] shapes"
_MATCHING = "float positive, float negative, bool allow_low_quality, bool own_best"

SCHEMAS: dict[str, str] = {
    # mask: bool[sum of B*H*W], level after level, each [B, H, W]; lam: float64[L, B]; max_iou: IoU dtype [L, G]
    "akdp_mask": f"({_BOXES}, {_GRIDS}, int mode, float factor, bool all_levels)"
    " -> (Tensor mask, Tensor lam, Tensor max_iou)",
    # anchors: [H, W, K, 4]; the outputs are those of one level
    "akdp_mask_dense": f"({_BOXES}, Tensor anchors, int mode, float factor)"
    " -> (Tensor mask, Tensor lam, Tensor max_iou)",
    # int64[B, A]
    "max_iou_assign": f"({_BOXES}, {_GRIDS}, {_MATCHING}) -> Tensor",
    # anchors: [A, 4]
    "max_iou_assign_dense": f"({_BOXES}, Tensor anchors, {_MATCHING}) -> Tensor",
    # student [B, C, h, w], teacher [B, C, H, W], mask bool[B, H, W]; loss: float32 or float64 scalar; count: int64
    # scalar, the masked positions of the batch
    "pa_l2_loss": "(Tensor student, Tensor teacher, Tensor mask, bool channel_mean) -> (Tensor loss, Tensor count)",
    # grad_out: of the loss; result: as student
    "pa_l2_loss_backward": "(Tensor grad_out, Tensor student, Tensor teacher, Tensor mask, Tensor count,"
    " bool channel_mean) -> Tensor",
    # logits: of each level [B, A_l, C]; assigned: int64[B, A]; labels: int64[B, G], with -1 where an image has fewer
    # boxes than another; result: float32 or float64 scalar
    "sigmoid_focal_loss": "(Tensor[] logits, Tensor assigned, Tensor labels, float alpha, float gamma) -> Tensor",
    # grad_out: of the loss; result: as logits
    "sigmoid_focal_loss_backward": "(Tensor grad_out, Tensor[] logits, Tensor assigned, Tensor labels, float alpha,"
    " float gamma) -> Tensor[]",
    # x [B, C, H, W], add and result [B, C, 2H, 2W]
    "upsample_nearest2x": "(Tensor x, Tensor? add) -> Tensor",
    # grad_out [B, C, 2H, 2W], result [B, C, H, W]
    "upsample_nearest2x_backward": "(Tensor grad_out) -> Tensor",
}


def stamp(version: str) -> str:
    """What a compiled library and this package must agree on: the project's version and a digest of the schemas."""
    return f"{version}-{hashlib.sha256(repr(sorted(SCHEMAS.items())).encode()).hexdigest()[:12]}"


def register_operator(
    operation: str,
    backend: str,
    implementation: Callable[..., Any] | None,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Defines the operator ``zoominnet::<operation>_<backend>``.

    Args:
        operation: a key of :data:`SCHEMAS`.
        backend: suffix of the operator.
        implementation: the Python function that runs for tensors of every device; None for a backend whose compiled
            library adds its implementation when it is loaded.
        fake: gives empty outputs of the right shapes, dtypes and strides.
        backward, setup_context: as :func:`torch.library.register_autograd` takes them. None for `backward` is for
            implementations that record no gradient by themselves, which none in Python is: then autograd is passed by,
            which spares its share of a short call.
    """
    name = f"{NAMESPACE}::{operation}_{backend}"
    torch.library.define(name, SCHEMAS[operation], tags=(torch.Tag.pt2_compliant_tag,))
    if implementation is not None:
        torch.library.impl(name, "default", _without_autocast(implementation))
    torch.library.register_fake(name, fake)
    if backward is None:
        _library.impl(f"{operation}_{backend}", torch.library.fallthrough_kernel, "Autograd")
    else:
        torch.library.register_autograd(name, backward, setup_context=setup_context)


def _without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """`implementation`, which under autocast computes what it does without.

    Autocast would change the dtypes of what it calls: on CUDA `interpolate` gives float32 for bfloat16.
    """

    @functools.wraps(implementation)
    def run(*arguments: Any) -> Any:
        first = arguments[0]
        device = (first[0] if isinstance(first, list) else first).device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return implementation(*arguments)
        with torch.autocast(device, enabled=False):
            return implementation(*arguments)

    return run


def operator(operation: str, backend: str) -> Callable[..., Any]:
    """The registered operator ``zoominnet::<operation>_<backend>``."""
    return getattr(torch.ops.zoominnet, f"{operation}_{backend}").default


def register_without_gradient(
    operation: str, fake: Callable[..., Any], reference: Callable[..., Any], triton: Callable[..., Any]
) -> None:
    """Every backend's operator of an operation whose outputs are not differentiable."""
    for backend, implementation in (("reference", reference), ("triton", triton)):
        register_operator(
            operation, backend, implementation, fake=fake, backward=_no_gradient, setup_context=_mark_outputs
        )
    register_operator(operation, "native", None, fake=fake, backward=None)


def _mark_outputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(ctx: Any, *grads: torch.Tensor | None) -> tuple[None, ...]:
    return (None,) * len(ctx.needs_input_grad)
