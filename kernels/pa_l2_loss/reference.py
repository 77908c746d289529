"""The specification of the PA-L2 loss (paper, equations 20 and 21) in plain PyTorch.

Numerics, for every backend: the accumulation dtype is float64 where the features are float64, else float32. With P
the number of masked positions of the whole batch and D = max(P, 1), or max(P * C, 1) where `channel_mean`::

    loss = sum over masked positions and channels of (S - T)^2 / D
    d loss / d S = (S - T) * (2 * grad_out / D) at masked positions, exactly 0 elsewhere

The order of the loss's sum is free, but fixed. In the form with H = 2h and W = 2w, position (i, j) compares with
student position (i // 2, j // 2), and the four gradients t[i % 2][j % 2] of one student position are summed as
``(t00 + t01) + (t10 + t11)`` before they are rounded to the student's dtype: gradients are the same bits on every
backend. What stands at unmasked positions has no influence, NaN and infinity included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._numerics import accumulation_dtype, ordered_sum


def pa_l2_loss_reference(student: Tensor, teacher: Tensor, mask: Tensor, channel_mean: bool) -> tuple[Tensor, Tensor]:
    """Loss and number of masked positions; arguments and results as in `_schemas.py`."""
    count = mask.sum()
    total = student.new_zeros((), dtype=accumulation_dtype(student))
    for student_b, teacher_b, mask_b in zip(student, teacher, mask, strict=True):
        for teacher_phase, mask_phase in _phases(student_b, teacher_b, mask_b):
            difference = _difference(student_b, teacher_phase)
            total += ordered_sum(torch.where(mask_phase, difference, 0).square())
    return total / _divisor(count, student, channel_mean), count


def pa_l2_loss_backward_reference(
    grad_out: Tensor, student: Tensor, teacher: Tensor, mask: Tensor, count: Tensor, channel_mean: bool
) -> Tensor:
    """Gradient of the loss in the student's features; arguments and results as in `_schemas.py`."""
    scale = 2 * grad_out / _divisor(count, student, channel_mean)
    grad = torch.empty_like(student)
    for grad_b, student_b, teacher_b, mask_b in zip(grad, student, teacher, mask, strict=True):
        terms = [
            torch.where(mask_phase, _difference(student_b, teacher_phase) * scale, 0)
            for teacher_phase, mask_phase in _phases(student_b, teacher_b, mask_b)
        ]
        grad_b.copy_(terms[0] if len(terms) == 1 else (terms[0] + terms[1]) + (terms[2] + terms[3]))
    return grad


def _phases(student: Tensor, teacher: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The positions of teacher [C, H, W] and mask [H, W] as parts of the student's size: one, or four in row order."""
    step = 1 if teacher.shape == student.shape else 2
    return [(teacher[:, i::step, j::step], mask[i::step, j::step]) for i in range(step) for j in range(step)]


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    dtype = accumulation_dtype(student)
    return student.to(dtype) - teacher.to(dtype)


def _divisor(count: Tensor, student: Tensor, channel_mean: bool) -> Tensor:
    return (count * student.shape[1] if channel_mean else count).clamp(min=1)
