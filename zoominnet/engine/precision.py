"""Which number format a run computes in."""

from __future__ import annotations

import torch

from zoominnet.config import Amp

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Of --amp; with another value nothing is cast."""
_CPU_FEATURES = ("avx512_bf16", "amx_bf16")


def choose_amp(amp: Amp, device: torch.device) -> Amp:
    """--amp, with "auto" as what it comes to on `device`."""
    if amp != "auto":
        return amp
    return "bf16" if has_bf16(device) else "off"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; where it does not, float32 is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in _CPU_FEATURES)
