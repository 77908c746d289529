"""Trains twice, by the reference and with --fused-kernels, and compares every loss of every step and the weights.

    python benchmarks/fused_vs_reference.py --json FILE -- --data ../shared/data/visdrone-mini --image-size 128 ...

What stands behind ``--`` are options of ``python -m zoominnet.train``. Exits with 1 where the two differ by more than
:data:`TOLERANCE`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zoominnet.engine.checkpoint import list_checkpoints
from zoominnet.train import main as train_main

TOLERANCE = 1e-5
"""Relative, of each loss of each step. The distillation loss is a float32 sum taken in two orders, which differ by some
1e-7; the focal loss' terms and gradient are rounded otherwise by a few units, which training spreads. All else is the
same bits."""
LOSSES = ("loss", "classification", "bbox_regression", "distill", "grad_norm")


def losses_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The logged steps of each phase of a run."""
    phases = {}
    for file in sorted(run.glob("*/metrics.jsonl"), reverse=True):  # teacher, student
        lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        phases[file.parent.name] = [line for line in lines if line["kind"] == "train"]
    return phases


def same_weights(run: Path, other: Path) -> dict[str, bool]:
    """Of each phase: whether the last checkpoints hold the same bits."""
    same = {}
    for phase in losses_of(run):
        a, b = (load_file(list_checkpoints(r / phase / "checkpoints")[-1] / "model.safetensors") for r in (run, other))
        same[phase] = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return same


def compare(reference: Path, fused: Path) -> dict[str, Any]:
    """The losses of two runs side by side, and the greatest relative difference of each; ends where one is not finite."""
    steps: dict[str, list[dict[str, Any]]] = {}
    greatest = dict.fromkeys(LOSSES, 0.0)
    theirs = losses_of(fused)
    for phase, lines in losses_of(reference).items():
        steps[phase] = []
        for line, other in zip(lines, theirs[phase], strict=True):
            row: dict[str, Any] = {"step": line["step"]}
            for name in LOSSES:
                if name in line:
                    a, b = line[name], other[name]
                    row[name] = {"reference": a, "fused": b}
                    if not (math.isfinite(a) and math.isfinite(b)):
                        raise SystemExit(
                            f"{phase} step {row['step']}: {name} is {a} by the reference and {b} with the fast kernels, "
                            "which compares nothing; try a lower --lr or --clip-grad-norm 10"
                        )
                    greatest[name] = max(greatest[name], abs(a - b) / abs(a) if a != b else 0.0)
            steps[phase].append(row)
    return {
        "greatest_relative_difference": greatest,
        "weights_bit_equal": same_weights(reference, fused),
        "steps": steps,
    }


def cpu_name() -> str:
    """Of this machine's processor, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("options", nargs="+", help="-- and options of zoominnet.train, without --out")
    arguments = parser.parse_args()
    options = [*arguments.options, "--log-every", "1"]
    extra = {"reference": ["--no-fused-kernels"], "fused": ["--fused-kernels", "--verify-kernels", "1"]}
    with tempfile.TemporaryDirectory() as folder:
        for name, more in extra.items():
            if (status := train_main([*options, *more, "--out", f"{folder}/{name}"])) != 0:
                return status
        found = compare(Path(folder, "reference"), Path(folder, "fused"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    result = {
        "what": "the same training by the reference and with --fused-kernels: losses of every step, last weights",
        "command": f"python benchmarks/fused_vs_reference.py --json {arguments.json.name} -- {shlex.join(arguments.options)}",
        "hardware": f"{torch.get_num_threads()} virtual cores of an {cpu_name()}, no GPU used",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "tolerance": TOLERANCE,
        **found,
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    worst = max(found["greatest_relative_difference"].values())
    print(f"greatest relative difference {worst:.2g}, tolerance {TOLERANCE:g}; weights {found['weights_bit_equal']}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
