"""By what a run was made: code, libraries, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import zoominnet
from zoominnet.command import installed_version


def here() -> dict[str, Any]:
    """JSON-ready: "zoominnet" (its version), "commit" (:func:`commit`), "python", "torch", "device" and "cores"."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "zoominnet": zoominnet.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "device": ", ".join(names) or processor(),
        "cores": os.cpu_count(),
    }


def commit() -> str | None:
    """Of the checkout that this package lies in, with "+" where something tracked is changed; of a copy without git what
    the environment's ZOOMINNET_COMMIT says, or None."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "zoominnet/__init__.py") is None:  # installed below another checkout
        return os.environ.get("ZOOMINNET_COMMIT")
    changed = git("status", "--porcelain", "--untracked-files=no", "zoominnet", "kernels", "csrc")
    return f"{git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
