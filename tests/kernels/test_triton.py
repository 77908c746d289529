"""The Triton kernels on a machine without a GPU: in the interpreter, compiled for GPUs, and told apart where they cannot run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from build_cache import kept

from zoominnet.kernels import BackendUnavailableError, _dispatch, _triton_state, akdp_mask

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SOURCES = sorted(ROOT.joinpath("kernels").rglob("*triton*.py"))

# The same on every machine: without a GPU that would have tests of its own.
INTERPRETED = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process with this folder on its path, without Triton's interpreter unless `environment` asks for it."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**inherited, **path, **environment},
        check=False,
    )


TESTED = (*_dispatch.OPERATIONS, "kernel_operators")


@pytest.mark.slow
@needs_triton
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "names",
    [TESTED[:1], TESTED[1:]],  # two processes of about the same length; to start one takes seconds
    ids=" ".join,
)
def test_every_test_of_the_operations_in_the_interpreter(names: tuple[str, ...]) -> None:
    # The interpreter knows nothing of alignment, for which alone layouts are tested with numbers of two bytes.
    chosen = ("-p", "no:cacheprovider", "-k", "not (test_layouts and float16)")
    files = [str(HERE / f"test_{name}.py") for name in names]
    done = python("-m", "pytest", "-v", "-p", "triton_interpreter", *chosen, *files, **INTERPRETED)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert all(re.search(rf"test_{name}\.py::.* PASSED", done.stdout) for name in names)
    assert "skipped" not in done.stdout


OFFSETS = """
import torch, triton_interpreter
from zoominnet.kernels import akdp_mask, max_iou_assign, pa_l2_loss, sigmoid_focal_loss, upsample_nearest2x

FAR = 2**30 + 5

def far(x, dim):
    # Neighbours along `dim` are 2^30 elements apart; the memory between is never touched, so it need not exist.
    strides = [1] * x.dim()
    strides[dim] = FAR
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x)

three = torch.tensor([1.0, 2.0, 3.0])
kept = torch.tensor([True, False, True])
for dim in range(4):
    shape = [1] * 4
    shape[dim] = 3
    x = three.half().view(shape)
    mask = kept.view(3, 1, 1) if dim == 0 else (kept.view(1, 3, 1) if dim == 2 else kept.view(1, 1, 3))
    if dim == 1:
        mask = torch.ones(1, 1, 1, dtype=torch.bool)
    for student, teacher in ((far(x, dim), torch.zeros_like(x)), (torch.zeros_like(x), far(x, dim))):
        loss = pa_l2_loss(student, teacher, mask, backend="triton")
        assert loss.item() == (14 if dim == 1 else 5), (dim, loss)
    assert torch.equal(upsample_nearest2x(far(x, dim), backend="triton"), upsample_nearest2x(x, backend="reference"))

logits, assigned, labels = torch.eye(3)[None].half(), torch.tensor([[0, -1, 0]]), torch.tensor([[2, 0]])
expected = sigmoid_focal_loss(logits, assigned, list(labels), backend="triton")
for dim in (1, 2):
    leaf = far(logits, dim).requires_grad_()
    assert sigmoid_focal_loss(leaf, assigned, list(labels), backend="triton") == expected
assert sigmoid_focal_loss(logits, far(assigned, 1), list(labels), backend="triton") == expected
images = [x.transpose(0, 1) for x in (logits, assigned[..., None], labels[..., None])]  # [3, 1, 3], [3, 1, 1], [2, 1, 1]
spread = far(images[0], 0), far(images[1], 0)[..., 0], list(labels[:, :1]) * 3
near = images[0], images[1][..., 0], list(labels[:, :1]) * 3
assert torch.equal(*(sigmoid_focal_loss(*arguments, backend="triton") for arguments in (spread, near)))

boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 8.0, 4.0, 12.0]])
near, distant = boxes.half(), far(boxes.half(), 0)
for a, b in ((near, distant), (distant, near)):
    assert max_iou_assign(a, b, backend="triton").tolist() == [0, 1, 2]
anchors = distant.as_strided((1, 3, 1, 4), (1, FAR, 1, 1))
assert akdp_mask(anchors, near[:1], threshold=0.5, backend="triton").tolist() == [[True, False, False]]
"""


@pytest.mark.slow
@needs_triton
def test_offsets_beyond_32_bits_in_the_interpreter() -> None:
    # An offset cut to 32 bits would end the process with a segmentation fault.
    done = python("-c", OFFSETS, **INTERPRETED)
    assert done.returncode == 0, done.stderr[-3000:]


COMPILED = """
import torch, triton_interpreter
from kernel_oracles import pyramid, random_boxes
from zoominnet.kernels import akdp_mask, max_iou_assign

(grid,) = pyramid([(3, 2)], anchors=1)

def function(boxes):
    return akdp_mask([grid], [boxes], backend="triton")[0], max_iou_assign(grid, boxes, backend="triton")

compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
for count in (3, 5):
    boxes = random_boxes(count, 12)
    assert all(map(torch.equal, compiled(boxes), function(boxes)))
"""


@pytest.mark.slow
@needs_triton
def test_compiled_in_one_graph() -> None:
    done = python("-c", COMPILED, **INTERPRETED)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_program_ids_are_64_bit(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    widened = {
        call.func.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call).endswith(".to(tl.int64)")
        and isinstance(call.func, ast.Attribute)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "tl.program_id":
            assert call in widened, f"{path}:{call.lineno}: tl.program_id without .to(tl.int64)"


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("architectures", "dtypes"), [("90", "float32 float64 bfloat16"), ("80,120", "bfloat16")])
def test_compiles_for_gpus(architectures: str, dtypes: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    # Triton itself finds what it has compiled by the sources, its version, the target and all options.
    cache = str(kept(pytestconfig, "triton", SOURCES))
    done = python(
        str(HERE / "triton_compile.py"), str(tmp_path), architectures, *dtypes.split(), TRITON_CACHE_DIR=cache
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    kernels = {name for path in SOURCES for name in jitted_kernels(path)}
    assert len(kernels) == 15
    for architecture in map(int, architectures.split(",")):
        assert {record["kernel"] for record in records if record["arch"] == architecture} == kernels
    for record in records:
        assert record["spilled"] == 0, record
        assert not record["late"], record  # no number of boxes or images is compiled for anew
        assert not record["fused"], record
        exact = not record["kernel"].startswith(("window_stats", "_window_mask"))  # they divide to find the window
        for instruction in record["instructions"]:
            # IEEE operations alone, none that flushes denormal numbers, and none contracted; those that are written as
            # fused multiply-adds are in sums whose order and rounding are free.
            assert ".ftz" not in instruction, record
            assert instruction != "div.full.f32" or not exact, record
            assert not instruction.startswith(("div.approx", "rcp", "sqrt.approx")), record
            if instruction.startswith("fma.rn.f32"):
                assert record["kernel"] == "_loss_kernel", record
        if record["positions"]:  # a warp reads neighbours in a row
            assert set(map(tuple, record["threads"])) == {("32", "1")}, record
    assert {record["kernel"] for record in records if record["positions"]} == {
        "_loss_kernel",
        "_gradient_kernel",
        "_downsample_kernel",
    }
    wide = [record["instructions"] for record in records if record["kernel"] == "_upsample_kernel"]
    assert any("st.global.v4.b32" in instructions for instructions in wide)


def jitted_kernels(path: Path) -> list[str]:
    """Names of the functions of a module that are launched: with @triton.jit, and a program of their own."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return [function.name for function in functions if function.name.endswith("_kernel")]


BLOCKED = """
import sys
sys.modules["triton"] = None
import torch
from zoominnet.kernels import BackendUnavailableError, akdp_mask, available_backends
for states in available_backends("cuda").values():
    assert states["triton"].startswith("unusable: Triton cannot be imported ("), states
    assert "; run pip install 'triton>=3.6,<3.7'" in states["triton"], states
cells, boxes = torch.zeros(1, 1, 1, 4), torch.zeros(1, 4)
assert akdp_mask(cells, boxes, backend="reference").tolist() == [[False]]
try:
    akdp_mask(cells, boxes, backend="triton")
except BackendUnavailableError as error:
    assert "akdp_mask: backend 'triton' is unusable: Triton cannot be imported" in str(error), error
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_package_works_without_triton() -> None:
    done = python("-c", BLOCKED)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_import_takes_no_triton_module_of_the_package() -> None:
    done = python("-c", "import sys, zoominnet.kernels; print([name for name in sys.modules if 'triton_impl' in name])")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(
    ("environment", "tensors", "state"),
    [
        ({"TRITON_INTERPRET": "1"}, "cpu", "ok"),
        ({"TRITON_INTERPRET": "1"}, "cuda", "unusable: TRITON_INTERPRET is set, which serves CPU tensors; unset it"),
        ({}, "cpu", "unusable: it serves CUDA tensors, not cpu; move the tensors to a GPU, or set TRITON_INTERPRET=1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cuda", "unusable: Triton finds no GPU that it can use ("),
    ],
)
def test_state(environment: dict[str, str], tensors: str, state: str) -> None:
    code = f"from zoominnet.kernels import available_backends; print(available_backends({tensors!r})['akdp_mask']['triton'])"
    assert python("-c", code, **environment).stdout.startswith(state)


@needs_triton
def test_named_backend_needs_a_gpu() -> None:
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("TRITON_INTERPRET is set")
    with pytest.raises(
        BackendUnavailableError, match="akdp_mask: backend 'triton' is unusable: it serves CUDA tensors"
    ):
        akdp_mask(torch.zeros(1, 1, 1, 4), torch.zeros(1, 4), backend="triton")


@needs_triton
@pytest.mark.parametrize("version", ["3.5.1", "3.7.0", "4.0.0+git123"])
def test_other_versions_of_triton_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", version)
    state = _triton_state.triton_state.__wrapped__("cuda")
    assert state.startswith(f"unusable: the kernels are tested with Triton 3.6, and this is {version}; run pip install")
