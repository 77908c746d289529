"""The models that come with the package, small ones for synthetic scenes, and what is known of them.

``benchmarks/train_demo_models.py`` makes the files of this folder, with `models.json`.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def shipped_models() -> dict[str, dict[str, Any]]:
    """By name "file", "summary", "AP" and the other scores, "gflops", "parameters", "bytes", and how it was made."""
    models: dict[str, dict[str, Any]] = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))["models"]
    return models


def shipped_file(name: str) -> Path | None:
    """The file of a shipped model, None where there is none of that name."""
    entry = shipped_models().get(name)
    return None if entry is None else FOLDER / entry["file"]
