"""Cross-scale knowledge distillation: a frozen teacher at twice the size, compared at the key positions only."""

from zoominnet.distill.distiller import DistillOptions, DistillOutput, Distiller

__all__ = ["DistillOptions", "DistillOutput", "Distiller"]
