"""Cross-scale knowledge distillation: a frozen teacher at twice the size, compared at the key positions only."""

from zoominnet.distill.distiller import Distiller, DistillOptions, DistillOutput

__all__ = ["DistillOptions", "DistillOutput", "Distiller"]
