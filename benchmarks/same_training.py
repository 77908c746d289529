"""Trains the same runs at two commits and compares weights, momentum and losses bit for bit.

    python benchmarks/same_training.py BASE [--steps 20] [--json FILE]

For a change that must not change what is computed. BASE is checked out into a temporary worktree, which takes this
tree's compiled library along: what both commits run must be the same `csrc/`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "--ignored honour --backbone resnet18 --weights none --channels 64 --lr 0.02 --decay-at 0.7 0.9 --clip-grad-norm 10 "
    "--epochs 4 --deterministic --synthetic-images 16 4 --workers 0 --image-size 128 --batch-size 2 --log-every 1 "
    "--device cpu"
)
CASES = {
    "snet": "--student snet --fused-kernels",
    "la": "--student la --fused-kernels",
    "fa-thin": "--student fa-thin --fused-kernels",
    "fa": "--student fa --fused-kernels",
    "snet, towers, wang2019": "--student snet --distill-at tower --mask-threshold 0.5 --distill-divisor 2 "
    "--distill-warmup-steps 5 --distill-levels mean --resize letterbox",
    "la, plain predictor, best level": "--student la --la-predictor plain --mask-boxes best-level --distill-channels mean",
    "fa, bf16, per box": "--student fa --amp bf16 --mask-scope per_gt --fused-kernels",
    "fa, all levels, no distillation": "--student fa --mask-scope all --no-distill",
}


def train(tree: Path, options: str, steps: int, out: Path) -> None:
    """One run of the `zoominnet` in `tree`."""
    command = [sys.executable, "-m", "zoominnet.train", *COMMON.split(), "--max-steps", str(steps), *options.split()]
    done = subprocess.run(
        [*command, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tree}: {options}: {done.stderr.strip() or done.stdout.strip()}")


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Every tensor of a run's last checkpoints, and every line of its logs."""
    tensors: dict[str, torch.Tensor] = {}
    lines: list[dict[str, Any]] = []
    for phase in sorted(path.parent for path in out.glob("*/checkpoints")):
        checkpoint = max((phase / "checkpoints").glob("step-*"))
        for file in ("model", "optimizer"):
            found = load_file(checkpoint / f"{file}.safetensors")
            tensors |= {f"{phase.name} {checkpoint.name} {file} {name}": tensor for name, tensor in found.items()}
        log = (phase / "metrics.jsonl").read_text().splitlines()
        lines += [{"phase": phase.name, **json.loads(line)} for line in log]
    return tensors, lines


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Returns 0 where all runs are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=20, help="of teacher and of student")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    base, head = (git("rev-parse", "--short=12", name) for name in (options.base, "HEAD"))
    if git("status", "--porcelain", "zoominnet", "kernels", "csrc"):
        head += " and uncommitted changes"
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "base"
        git("worktree", "add", "--detach", str(before), base)
        try:
            for file in (*(ROOT / "zoominnet").glob("*.so"), ROOT / "zoominnet" / "_build.json"):
                shutil.copy(file, before / "zoominnet")
            for name, case in CASES.items():
                outs = [Path(folder) / f"{name} {which}" for which in ("before", "after")]
                for tree, out in zip((before, ROOT), outs, strict=True):
                    train(tree, case, options.steps, out)
                (tensors, lines), (new_tensors, new_lines) = map(outcome, outs)
                differing = [
                    key
                    for key in sorted(tensors.keys() | new_tensors.keys())
                    if key not in tensors or key not in new_tensors or not torch.equal(tensors[key], new_tensors[key])
                ]
                rows[name] = {
                    "options": case,
                    "tensors": len(tensors),
                    "values": sum(tensor.numel() for tensor in tensors.values()),
                    "differing": differing,
                    "lines_of_metrics": len(lines),
                    "metrics_equal": lines == new_lines,
                }
                verdict = "bit-equal" if not differing and lines == new_lines else "DIFFERENT"
                print(f"{name}: {verdict} ({len(tensors)} tensors, {len(lines)} lines of metrics)", flush=True)
        finally:
            git("worktree", "remove", "--force", str(before))
    result = {
        "command": " ".join(["python", "benchmarks/same_training.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "common_options": COMMON,
        "steps": options.steps,
        "before": base,
        "after": head,
        "runs": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(row["differing"] or not row["metrics_equal"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
