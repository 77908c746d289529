"""Short videos of a red rectangle that moves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from finder import Box, scene


def box_at(i: int) -> Box:
    """Where the rectangle is in frame i, from 0."""
    return (10 + 2 * i, 20, 50 + 2 * i, 60)


def write_film(
    path: Path, frames: int = 20, size: tuple[int, int] = (160, 120), rate: int = 10, noise: bool = False
) -> Path:
    """Made with PyAV alone; `noise` makes the file large, so that much of it can be cut off."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "12"}
        for i in range(frames):
            pixels = scene(*size, [box_at(i)])
            if noise:
                pixels[80:] = rng.integers(0, 256, (*pixels[80:].shape[:2], 1))  # grey: nothing to find
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    """Leaves only so large a part of the file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path
