"""Cross-scale knowledge distillation: a frozen teacher at twice the size, compared at the key positions only."""

from zoominnet.distill.distiller import Distiller, DistillOutput
from zoominnet.distill.losses import LOSSES
from zoominnet.distill.options import DistillOptions

__all__ = ["LOSSES", "DistillOptions", "DistillOutput", "Distiller"]
