"""The ways to import the kernels, and what the package needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zoominnet.kernels

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import zoominnet.kernels.akdp_mask; assert callable(zoominnet.kernels.akdp_mask)",
        "import sys, torch; from zoominnet.kernels.akdp_mask import akdp_mask, akdp_stats; import zoominnet.kernels as k\n"
        "assert k.akdp_mask is akdp_mask and k.akdp_stats is akdp_stats\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not any(name.startswith(('torchvision', 'zoominnet.models', 'zoominnet.data')) for name in sys.modules)",
    ],
)
def test_forms(code: str) -> None:
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["import kernels", "import kernels.akdp_mask", "from kernels import akdp_mask"])
def test_top_level_name_is_refused(code: str) -> None:
    done = python(code)
    assert done.returncode == 1
    assert "ImportError: these kernels are imported as zoominnet.kernels, not as kernels" in done.stderr


@pytest.mark.parametrize(
    "name", ["akdp_mask", "max_iou_assign", "pa_l2_loss", "sigmoid_focal_loss", "upsample_nearest2x"]
)
def test_functions_cover_their_packages(name: str) -> None:
    function = getattr(zoominnet.kernels, name)
    assert function is getattr(sys.modules[f"zoominnet.kernels.{name}"], name)
    assert function.__module__ == f"zoominnet.kernels.{name}.op"


def test_needs_torch_alone() -> None:
    for path in KERNELS.rglob("*.py"):
        needed = {"torch", "triton"} if "triton" in path.name else {"torch"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in needed or top in sys.stdlib_module_names, f"{path}:{node.lineno} imports {name}"
