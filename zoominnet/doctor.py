"""``python -m zoominnet.doctor``: one table of versions, devices and backends, with the remedy for what is missing."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

import torch
from rich.markup import escape
from rich.table import Table

import zoominnet
from zoominnet.command import installed_version, make_console
from zoominnet.kernels import available_backends

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "tyro", "rich", "pycocotools", "fvcore",
    "tensorboard", "timm", "supervision", "av", "matplotlib", "onnx", "onnxscript", "onnxruntime",
)  # fmt: skip
OPTIONAL = {
    "triton": "comes with torch's CUDA builds for Linux; needed for the triton backend only",
    "timm": "pip install zoominnet[timm]; needed for --backbone timm:NAME only",
    "supervision": "pip install zoominnet[predict]; needed to draw what predict finds",
    "av": "pip install zoominnet[predict]; needed for videos",
    "matplotlib": "pip install zoominnet[report]; needed for reports and for the pictures of tables",
    "onnx": "pip install zoominnet[export]; needed to write ONNX files",
    "onnxscript": "pip install zoominnet[export]; needed to write ONNX files",
    "onnxruntime": "pip install zoominnet[export]; needed to run ONNX files, and for --int8",
}


def rows() -> list[tuple[str, str, str]]:
    """(what, state, remedy) of everything the table shows; the remedy is empty where nothing is amiss."""
    found = [
        ("zoominnet", zoominnet.__version__, ""),
        ("python", platform.python_version(), ""),
        ("platform", platform.platform(), ""),
    ]
    for package in PACKAGES:
        version = installed_version(package)
        if version is None:
            remedy = OPTIONAL.get(package, f"pip install {package}, or make setup")
            found.append((package, "not installed", remedy))
        else:
            found.append((package, version, ""))
    found.append(("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}", ""))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            state = (
                f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
            )
            found.append((f"cuda:{i}", state, ""))
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        remedy = "training runs on the CPU; with a GPU: check its driver (nvidia-smi)"
        if torch.version.cuda is None:
            remedy = "training runs on the CPU; with a GPU: install a CUDA build of torch"
        found.append(("cuda", f"no GPU; {built}", remedy))
    for op, backends in available_backends().items():
        for backend, state in backends.items():
            reason, _, remedy = state.partition("; ")
            found.append((f"{op} / {backend}", reason, remedy))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table. Returns 0."""
    parser = argparse.ArgumentParser(prog="zoominnet doctor", description=__doc__.partition(": ")[2])
    parser.parse_args(argv)
    table = Table(title="zoominnet doctor")
    for column in ("what", "state", "remedy"):
        table.add_column(column, overflow="fold")
    for what, state, remedy in rows():
        table.add_row(escape(what), escape(state), escape(remedy))
    make_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
