"""Focal loss of the anchors of a detector, from their assignment to boxes."""

from .op import sigmoid_focal_loss

__all__ = ["sigmoid_focal_loss"]
