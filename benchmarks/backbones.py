"""GFLOPs, parameters and the time of one image for detectors on several backbones, with random weights.

    python benchmarks/backbones.py [--student snet] [--channels 64] [--image-size 512] [--rounds 15] [--json FILE] [NAME ...]

Prints a table in Markdown. Needs `pip install zoominnet[timm]` for names that begin with "timm:". The time is the CPU
time of the process with one thread, so that other work on the machine does not count: of the whole detector, from an image
in memory to its boxes. All models take turns in each round; the table has the medians and quartiles.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import zoominnet
from zoominnet.command import installed_version
from zoominnet.evaluation import count_gflops, count_parameters
from zoominnet.models import STUDENTS, build_model

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = (
    "resnet50",
    "resnet18",
    "resnet18-quarter",
    "timm:convnext_atto",
    "timm:repvit_m0_9",
    "timm:efficientnet_lite0",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv4_conv_small",
    "timm:mobilenetv3_small_050",
)


def main() -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=BACKBONES)
    parser.add_argument("--student", choices=STUDENTS, default="snet")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.image_size
    models, rows = {}, {}
    for name in options.names:
        torch.manual_seed(0)
        model = build_model(options.student, name, 10, size, channels=options.channels).eval()
        rows[name] = {
            "gflops": count_gflops(model, size),
            "parameters": count_parameters(model),
            "backbone_parameters": count_parameters(model.backbone),
        }
        models[name] = model.place(torch.device("cpu"))
    times: dict[str, list[float]] = {name: [] for name in models}
    image = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for turn in range(options.rounds + 1):
            for name, model in models.items():
                start = time.process_time()
                model([image])
                if turn:  # the first does not count
                    times[name].append((time.process_time() - start) * 1e3)
    print(
        f"| `--backbone` | GFLOPs | M params | of these the backbone's | ms a {size} px image |\n|---|---|---|---|---|"
    )
    for name, row in rows.items():
        low, median, high = np.percentile(times[name], [25, 50, 75]).tolist()
        row |= {"median_ms": median, "quartiles_ms": [low, high]}
        print(
            f"| `{name}` | {row['gflops']:.2f} | {row['parameters'] / 1e6:.2f} | {row['backbone_parameters'] / 1e6:.2f} "
            f"| {median:.0f} ({low:.0f} to {high:.0f}) |"
        )
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = ", ".join(f"{package} {installed_version(package)}" for package in ("torch", "torchvision", "timm"))
    result = {
        "command": " ".join(["python", "benchmarks/backbones.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, 1 thread, {torch.backends.cpu.get_cpu_capability()}",
        "versions": f"zoominnet {zoominnet.__version__}, {versions}",
        "student": options.student,
        "channels": options.channels,
        "image_size": size,
        "rounds": options.rounds,
        "backbones": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
