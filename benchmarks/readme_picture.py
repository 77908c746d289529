"""Draws README's picture: what the shipped models find in three synthetic scenes that none of them has seen.

python benchmarks/readme_picture.py [docs/images/demo.jpg]
"""

import sys
from pathlib import Path

from zoominnet.config import PROFILES
from zoominnet.prediction.comparison import compare_on_scenes

MODELS = {
    "student without distillation": "demo-fa-plain",
    "the same, distilled": "demo-fa",
    "its teacher": "demo-teacher",
}

if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/demo.jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    compare_on_scenes(MODELS, PROFILES["demo"], seed=0, split="test", count=3).save(file, quality=80)
    print(file)
