"""Which number format a run computes in."""

from __future__ import annotations

import torch

from zoominnet.config import Amp

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Of --amp; with another value nothing is cast."""


def choose_amp(amp: Amp, device: torch.device) -> Amp:
    """--amp, with "auto" as what it comes to on `device`."""
    if amp != "auto":
        return amp
    return "bf16" if faster_in_bf16(device) else "off"


def faster_in_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, and faster than in float32: Intel's AVX512-BF16 without AMX is slower
    (measured: docs/training.md)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    avx512 = found.get("avx512_bf16", False) and "intel" not in str(found.get("cpu_name", "")).lower()
    return bool(found.get("amx_bf16", False) or avx512)
