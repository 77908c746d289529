"""The CUDA files without a GPU: nvcc takes them without a warning, and their kernels are right when a CPU plays the GPU."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools
import torch
from build_cache import kept

import zoominnet
from zoominnet.kernels import _schemas

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).parent / "cuda_emulation"
SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
OPERATIONS = [source.parent.name for source in SOURCES]
TORCH = Path(torch.__file__).parent
COMPILERS = [
    f"torch {torch.__version__} {torch.version.git_version}",
    subprocess.run(["g++", "-v"], capture_output=True, text=True, check=False).stderr if shutil.which("g++") else "",
]
"""What the results are made with, beside the commands: a new one makes them anew."""
PACKED_KERNELS = {"pa_l2_loss": 12, "sigmoid_focal_loss": 6, "upsample_nearest2x": 12}
"""How many kernels of an operation write maps in packs, each pack in one instruction."""


def run(*command: str | Path, **environment: str) -> str:
    """Standard output and errors of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def nvcc_options(cuda_home: Path | None = None) -> list[str]:
    """The options that setup.py gives to nvcc, the usual one or that of a toolkit."""
    with pytest.MonkeyPatch.context() as patch:
        if cuda_home:
            patch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(cuda_home))
        patch.setattr(setuptools, "setup", lambda **_: None)
        patch.setattr(sys, "argv", ["setup.py"])
        patch.chdir(ROOT)
        return runpy.run_path("setup.py")["extension"]("cuda").extra_compile_args["nvcc"]


@pytest.fixture(scope="module")
def options() -> list[str]:
    return nvcc_options()


def test_options_keep_the_bits_and_refuse_warnings(options: list[str]) -> None:
    assert {"--fmad=false", "--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"} <= set(options)
    assert not any("fast" in option for option in options)


def test_only_gpus_that_nvcc_knows_are_named(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nprintf 'sm_50\\nsm_75\\nsm_80\\nsm_90\\n'\n")
    nvcc.chmod(0o755)
    assert [option for option in nvcc_options(tmp_path) if option.startswith("-gencode")] == [
        *(f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in (75, 80, 90)),
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_the_gpus_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOMINNET_CUDA_ARCHS", "90, 86")
    assert [option for option in nvcc_options() if option.startswith("-gencode")] == [
        *(f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in (86, 90)),
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("ZOOMINNET_CUDA_ARCHS", "9.0")
    with pytest.raises(SystemExit, match=r"^ZOOMINNET_CUDA_ARCHS: '9\.0' is none of 75, 80"):
        nvcc_options()


def packs_read_together(ptx: str) -> list[int]:
    """Of each kernel of the loss that reads packs: how many of them are on their way before it subtracts, at the most; with
    up to two of the mask."""
    result = []
    for entry in ptx.split(".entry ")[1:]:
        tokens = re.findall(r"ld\.global(?:\.\w+)*\.v\d|sub\.(?:rn\.)?f32", entry)
        runs = [len(list(run)) for load, run in itertools.groupby(tokens, lambda token: token.startswith("ld")) if load]
        if runs:
            result.append(max(runs))
    return result


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvcc(source: Path, options: list[str], pytestconfig: pytest.Config) -> None:
    # For the oldest GPU of those that setup.py names; it has no instruction that another lacks.
    gpus = sorted(int(gpu) for gpu in re.findall(r"code=sm_(\d+)", " ".join(options)))
    chosen = [option for option in options if not option.startswith(("-gencode", "-O"))]
    target = f"-gencode=arch=compute_{gpus[0]},code=compute_{gpus[0]}"
    command = ["nvcc", *chosen, target, "-O1", "-Xcompiler=-fPIC"]

    def compile_source(folder: Path) -> None:
        keep = ["-keep", f"-keep-dir={folder}"]
        run(*command, *keep, "-c", source, "-o", folder / "object.o")
        for file in folder.iterdir():
            if file.suffix != ".ptx":
                file.unlink()

    made_of = [*command, run("nvcc", "--version"), *COMPILERS, source, ROOT / "csrc"]
    folder = kept(pytestconfig, f"nvcc_{source.stem}", made_of, compile_source)
    if packed := PACKED_KERNELS.get(source.parent.name):
        (ptx,) = folder.glob("*.ptx")
        stores = [re.findall(r"st\.global\S*", entry) for entry in ptx.read_text().split(".entry ")[1:]]
        whole = [names for names in stores if any(".v" in name for name in names)]
        assert len(whole) == packed
        assert all(".v" in name for names in whole for name in names)
        if source.parent.name == "pa_l2_loss":
            assert min(packs_read_together(ptx.read_text())) >= 8


@pytest.fixture(scope="module")
def library_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library for CPU tensors that is made of the CUDA files, and checks its accesses to memory."""
    objects_folder = tmp_path_factory.mktemp("emulation")
    stamp = f'-DZOOMINNET_STAMP="{_schemas.stamp(zoominnet.__version__)}"'
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    common = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *checks, stamp]
    common += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(TORCH / "include")]
    emulation = [
        "-I",
        str(EMULATION),
        "-include",
        "cuda_runtime.h",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]

    def compile_source(source: Path) -> Path:
        extra = emulation if source.suffix == ".cu" else []
        run("g++", "-x", "c++", *common, *extra, "-c", source, "-o", objects_folder / f"{source.stem}.o")
        return objects_folder / f"{source.stem}.o"

    link = ["-L", str(TORCH / "lib"), "-ltorch_cpu", "-lc10"]

    def build(folder: Path) -> None:
        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compile_source, [*SOURCES, ROOT / "csrc" / "library.cpp"]))
        run("g++", "-shared", *checks, *objects, *link, "-o", folder / "_C_cpu.so")

    made_of = [*common, *emulation, *link, *COMPILERS, ROOT / "csrc", EMULATION]
    return kept(pytestconfig, "cuda_emulation", made_of, build)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux")
def test_kernels_on_the_cpu(library_folder: Path) -> None:
    sanitizers = [run("g++", f"-print-file-name=lib{name}.so").strip() for name in ("asan", "ubsan")]
    if not all(map(os.path.isabs, sanitizers)):
        pytest.skip("needs the sanitizers of GCC")
    # Without those that measure the process, or take long here and show nothing that the others do not.
    left_out = ("memory", "repeats", "32_bits", "gradcheck", "many_images", "whole_140")
    few = "many_images and not all or whole_2 or awkward or any_values or dense_anchors or kernel_sizes and upsample"
    files = [f"tests/kernels/test_{name}.py" for name in (*OPERATIONS, "kernel_sizes")]

    def test(chosen: str, **environment: str) -> str:
        chosen = f"native and not cuda and ({chosen})"
        return run(
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files),
            LD_PRELOAD=":".join(sanitizers),
            # Where there is a driver of NVIDIA's, it needs the addresses that the sanitizer keeps free.
            ASAN_OPTIONS="detect_leaks=0,detect_stack_use_after_return=0,protect_shadow_gap=0",
            ZOOMINNET_LIBRARY_DIR=str(library_folder),
            CUDA_VISIBLE_DEVICES="",
            **environment,
        )

    with ThreadPoolExecutor() as pool:
        # With three blocks each has several tasks, far apart. The losses count their blocks and must get them all.
        in_turns = pool.submit(test, f"not pa_l2_loss and ({few})", ZOOMINNET_EMULATED_BLOCKS="3")
        told = test(" and ".join(f"not {name}" for name in left_out))
    assert "passed" in in_turns.result()
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None, told
    assert int(passed.group(1)) > 400, told
