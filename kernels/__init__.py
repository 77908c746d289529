"""ZoomInNet's kernels: anchor masks, matching, distillation and focal loss, upsampling, for any PyTorch code.

Each function is a registered operator with gradients and works under ``torch.compile(fullgraph=True)`` and autocast.
Its `backend` is "auto" or a name of :func:`available_backends`; a named backend runs or raises, and never turns into
another one. The package depends on torch only.
"""

if __name__ == "kernels":
    raise ImportError(
        "these kernels are imported as zoominnet.kernels, not as kernels; install the project or put the folder that"
        " holds zoominnet/ on the path"
    )

from ._dispatch import BackendUnavailableError, available_backends, choose_backend
from .akdp_mask import AkdpStats, akdp_mask, akdp_stats
from .anchor_grid import AnchorGrid
from .max_iou_assign import max_iou_assign
from .pa_l2_loss import pa_l2_loss
from .sigmoid_focal_loss import sigmoid_focal_loss
from .upsample_nearest2x import upsample_nearest2x

__all__ = [
    "AkdpStats",
    "AnchorGrid",
    "BackendUnavailableError",
    "akdp_mask",
    "akdp_stats",
    "available_backends",
    "choose_backend",
    "max_iou_assign",
    "pa_l2_loss",
    "sigmoid_focal_loss",
    "upsample_nearest2x",
]
