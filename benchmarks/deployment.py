"""What a deployed model keeps: boxes, scores, AP and speed of ONNX in float32, float16 and int8, beside PyTorch.

    python benchmarks/deployment.py [--models demo-fa ...] [--scenes 200] [--repeats 50]

writes benchmarks/results/deployment-cpu.json, of which benchmarks/report.py makes the table of docs/deployment.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console

from zoominnet.benchmark import BenchmarkConfig, benchmark
from zoominnet.engine.provenance import here
from zoominnet.export import ExportConfig, export

RESULTS = Path(__file__).parent / "results" / "deployment-cpu.json"
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"half": True},
    "int8": {"int8": True},
}


def measure(name: str, scenes: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """The rows of a model: PyTorch, then each precision."""
    files, found = [], []
    for precision, options in PRECISIONS.items():
        file = folder / f"{name}-{precision}.onnx"
        config = ExportConfig(Path(name), out=file, data="synthetic", synthetic_images=scenes, **options)
        found.append(export(config, console=Console()))
        files.append(file)
    speed = benchmark(
        BenchmarkConfig((Path(name), *files), batch_sizes=(1, 16), runtimes=("eager", "compiled"), repeats=repeats),
        console=Console(),
    )["models"]
    first, *others = speed
    rows = []
    for runtime in ("eager", "compiled"):
        times = [row for row in first["speed"] if row["runtime"] == runtime]
        ap = next(iter(found[0]["AP"].values()))
        rows.append({"model": name, "what": f"PyTorch, {runtime}", "AP": ap, "speed": times})
    for precision, result, timed in zip(PRECISIONS, found, others, strict=True):
        rows.append(
            {
                "model": name,
                "what": f"ONNX, {precision}",
                "AP": list(result["AP"].values())[-1],
                "difference": result["difference"],
                "bytes": result["bytes"],
                "speed": timed["speed"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo-fa", "demo-snet"])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    command = f"python benchmarks/deployment.py --scenes {given.scenes} --repeats {given.repeats}"
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in given.models for row in measure(name, given.scenes, given.repeats, Path(folder))]
    given.out.write_text(json.dumps({"command": command, **about(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def about() -> dict[str, Any]:
    """The code and the machine."""
    return {
        **here(),
        "date": f"{date.today()}",
        "onnxruntime": onnxruntime.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
