"""Squared feature distance at the key positions, for distillation."""

from .op import pa_l2_loss

__all__ = ["pa_l2_loss"]
