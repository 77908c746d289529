"""Mask of the key positions for distillation, from anchors and ground-truth boxes."""

from .op import AkdpStats, akdp_mask, akdp_stats

__all__ = ["AkdpStats", "akdp_mask", "akdp_stats"]
