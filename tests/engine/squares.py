"""Images that are easy to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_squares(root: Path, scenes: str = "ab", images: int = 20) -> None:
    """VisDrone images with plain squares of three colours and classes: copies to train on, one of each to validate.

    Scenes "a" and "b" are any; "s" is its own mirror image, so that flips change nothing.
    """
    rng = np.random.default_rng(0)
    colours = {1: (220, 40, 40), 4: (40, 220, 40), 9: (40, 40, 220)}
    layout = {
        "a": [(10, 12, 44, 40, 1), (70, 20, 46, 50, 4), (30, 74, 50, 42, 9)],
        "b": [(16, 60, 44, 50, 4), (66, 8, 48, 44, 1), (76, 70, 40, 48, 9)],
        "s": [(42, 4, 44, 36, 1), (38, 46, 52, 32, 4), (44, 84, 40, 40, 9)],
    }
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True)
        copies = images // len(scenes) if split == "train" else 1
        for name in scenes:
            boxes = layout[name]
            pixels = rng.integers(90, 130, (128, 128, 3), dtype=np.uint8)
            if name == "s":
                pixels[:, 64:] = pixels[:, 63::-1]
            for x, y, w, h, category in boxes:
                pixels[y : y + h, x : x + w] = colours[category]
            text = "".join(f"{x},{y},{w},{h},1,{category},0,0\n" for x, y, w, h, category in boxes)
            for copy in range(copies):
                Image.fromarray(pixels).save(root / split / "images" / f"{name}{copy}.png")
                (root / split / "annotations" / f"{name}{copy}.txt").write_text(text)
