"""The distillation losses by name. A new one is a file here and an entry below."""

from zoominnet.distill.losses.interface import DistillLoss, DistillStep
from zoominnet.distill.losses.pa_l2 import PositionAwareL2
from zoominnet.distill.losses.response import Response

LOSSES: dict[str, type[DistillLoss]] = {"pa-l2": PositionAwareL2, "response": Response}

__all__ = ["LOSSES", "DistillLoss", "DistillStep"]
