"""Assignment of anchors to ground-truth boxes by IoU."""

from .op import max_iou_assign
from .reference import BELOW, BETWEEN

__all__ = ["BELOW", "BETWEEN", "max_iou_assign"]
