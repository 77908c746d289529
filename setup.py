"""Build of ZoomInNet. Everything but the packages' map and the compiled libraries is in pyproject.toml.

Environment variables: ZOOMINNET_BUILD: `none`; `cpu`, the C++ library; `cuda`, that and the CUDA library; or `auto` (the
default), what torch and the compilers at hand can build. A visible GPU has no part in it. ZOOMINNET_CUDA_ARCHS: for which
GPUs, such as `90` or `86,90` (compute capability without its point); by default all of `GPUS`, which takes minutes.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LIBRARIES = {"cpu": "zoominnet._C_cpu", "cuda": "zoominnet._C_cuda"}
GPUS = ("75", "80", "86", "89", "90", "100", "120")
REMEDY = "run pip install --no-build-isolation --no-deps -e . in the source folder"
BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"} & set(sys.argv)


def version() -> str:
    """The version string of zoominnet/__init__.py, read as text so that building imports nothing."""
    text = (ROOT / "zoominnet" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('zoominnet/__init__.py has no line __version__ = "..."')
    return match.group(1)


def cannot_build_cpu() -> str:
    """Why the C++ library cannot be built here, and after "; " the remedy; empty if it can."""
    if sys.platform == "win32":
        return "the C++ sources need GCC or Clang; use backend='auto' or 'reference'"
    if importlib.util.find_spec("torch") is None:
        return f"torch was not there at build time, as in pip's isolated builds; {REMEDY}, where torch is installed"
    from torch.utils.cpp_extension import get_cxx_compiler

    compiler = get_cxx_compiler()
    if shutil.which(compiler.split()[0]) is None:
        return f"there was no C++ compiler {compiler!r}; install one (g++) or name it in CXX, then {REMEDY}"
    return ""


def cannot_build_cuda() -> str:
    """The same for the CUDA library."""
    if reason := cannot_build_cpu():
        return reason
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not list(ROOT.glob("csrc/*/*_cuda.cu")):
        return "this version of zoominnet has no CUDA sources; use backend='auto' or 'reference'"
    if torch.version.cuda is None:
        return "torch is a build without CUDA; install a CUDA build of torch, then " + REMEDY
    nvcc = Path(CUDA_HOME or "", "bin", "nvcc")
    if not nvcc.is_file():
        return f"there was no nvcc; install the CUDA {torch.version.cuda} toolkit, then {REMEDY}"
    found = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if found is None or found.group(1) != torch.version.cuda.split(".")[0]:
        release = f"release {found.group(1)}" if found else "of unknown release"
        return (
            f"nvcc is {release} and torch is built for CUDA {torch.version.cuda}; install that toolkit or set CUDA_HOME,"
            f" then {REMEDY}"
        )
    return ""


def decide() -> dict[str, str]:
    """For each library "built", or why it is not, and after "; " the remedy."""
    choice = os.environ.get("ZOOMINNET_BUILD", "auto")
    if choice not in ("auto", "none", "cpu", "cuda"):
        raise SystemExit(f"ZOOMINNET_BUILD must be auto, none, cpu or cuda, got {choice!r}")
    states = {}
    for name, probe in (("cpu", cannot_build_cpu), ("cuda", cannot_build_cuda)):
        if choice == "none" or (choice == "cpu" and name == "cuda"):
            states[name] = f"left out by ZOOMINNET_BUILD={choice}; {REMEDY}, without ZOOMINNET_BUILD"
        elif not (reason := probe()):
            states[name] = "built"
        elif choice == "auto":
            states[name] = reason
        else:
            raise SystemExit(f"ZOOMINNET_BUILD={choice}: cannot build the {name} library: {reason}")
    return states


def architectures(known: list[str]) -> list[str]:
    """The GPUs to build for, of those whose code nvcc knows; `known` is empty where it does not tell."""
    asked = os.environ.get("ZOOMINNET_CUDA_ARCHS", "").replace(",", " ").split()
    if wrong := [gpu for gpu in asked if gpu not in GPUS]:
        raise SystemExit(f"ZOOMINNET_CUDA_ARCHS: {wrong[0]!r} is none of {', '.join(GPUS)}")
    # The first toolkits of CUDA 12 know none after 90.
    gpus = [gpu for gpu in GPUS if gpu in (asked or GPUS) and (not known or f"sm_{gpu}" in known)]
    if not gpus:
        raise SystemExit(f"ZOOMINNET_CUDA_ARCHS: this nvcc knows none of {', '.join(asked or GPUS)}")
    return gpus


def extension(device: str) -> Extension:
    """The library of a device: plain shared object, LibTorch's stable ABI of torch 2.11, no Python in it."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    spec = importlib.util.spec_from_file_location("schemas", ROOT / "kernels" / "_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    schemas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schemas)
    torch_folder = Path(torch.__file__).parent
    # Headers of others are no business of -Werror. Contraction to fused multiply-add would change the results' bits.
    common = ["-std=c++17", "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    common += [f'-DZOOMINNET_STAMP="{schemas.stamp(version())}"', "-isystem", str(torch_folder / "include")]
    cxx = ["-g0", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    cxx += ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    nvcc = ["-DUSE_CUDA", "--fmad=false", "--threads=0", "-Xcompiler=-Wall,-Wextra,-Werror", "--Werror=all-warnings"]
    sources = [ROOT / "csrc" / "library.cpp", *sorted(ROOT.glob(f"csrc/*/*_{device}.c*"))]
    libraries, folders = ["c10", "torch_cpu"], [str(torch_folder / "lib")]
    if device == "cuda":
        libraries += ["torch_cuda", "cudart"]
        nvcc_path = Path(CUDA_HOME or "", "bin", "nvcc")
        known = subprocess.run([nvcc_path, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
        gpus = architectures(known)
        nvcc += [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
        nvcc += [f"-gencode=arch=compute_{gpu},code=compute_{gpu}" for gpu in gpus[-1:]]
        cxx += [f'-DZOOMINNET_GPUS="{",".join(gpus)}"']
        # nvcc tells where its toolkit is; CUDA_HOME may hold no more than a link to nvcc, or a script that calls it.
        told = subprocess.run([nvcc_path, "--dryrun", "--x=cu", os.devnull], capture_output=True, text=True).stderr
        top = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
        folders += [str(Path(top.group(1) if top else CUDA_HOME or "", "lib64"))]
    return Extension(
        LIBRARIES[device],
        sources=[str(source.relative_to(ROOT)) for source in sources],
        depends=[str(header.relative_to(ROOT)) for header in sorted(ROOT.rglob("csrc/**/*.h"))],
        extra_compile_args={"cxx": [*common, *cxx], "nvcc": [*common, *nvcc]},
        libraries=libraries,
        library_dirs=folders,
        language="c++",
    )


def write_record(folder: Path) -> None:
    """Writes what was built and why not, for `available_backends`, and takes away libraries of an earlier build."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(STATES, indent=2) + "\n", encoding="utf-8")
    for device, state in STATES.items():
        if state != "built":
            (folder / LIBRARIES[device].replace("zoominnet.", "")).with_suffix(".so").unlink(missing_ok=True)


class BuildPy(build_py):
    """Adds the record of what was built."""

    def run(self) -> None:
        super().run()
        write_record((ROOT if self.editable_mode else Path(self.build_lib)) / "zoominnet")


class Wheel(bdist_wheel):
    """The libraries depend on the platform, but on no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


STATES: dict[str, str] = decide() if BUILDING else {}
extensions = [extension(device) for device, state in STATES.items() if state == "built"]
commands: dict[str, type[Command]] = {"build_py": BuildPy, "bdist_wheel": Wheel}
if extensions:
    from torch.utils.cpp_extension import BuildExtension

    class BuildLibraries(BuildExtension):
        """Names the files without a tag of Python, and writes the record for builds of nothing but extensions."""

        def get_ext_filename(self, name: str) -> str:
            return str(Path(*name.split(".")).with_suffix(".so"))

        def run(self) -> None:
            super().run()
            write_record((ROOT if self.inplace else Path(self.build_lib)) / "zoominnet")

    commands["build_ext"] = BuildLibraries
for device, state in STATES.items():
    print(f"zoominnet: {device} library: {state}", file=sys.stderr)

# kernels/ stands at the root of the repository and is imported as zoominnet.kernels. The committed symlink
# zoominnet/kernels serves a plain checkout; this map serves wheels and checkouts without symlinks.
packages = find_packages(include=["zoominnet", "zoominnet.*"], exclude=["zoominnet.kernels", "zoominnet.kernels.*"])
packages += ["zoominnet.kernels", *(f"zoominnet.kernels.{name}" for name in find_packages("kernels"))]

arguments: dict[str, Any] = {"ext_modules": extensions} if extensions else {}
setup(
    version=version(),
    packages=packages,
    package_dir={"zoominnet.kernels": "kernels"},
    package_data={
        "zoominnet": ["py.typed"],
        "zoominnet.models.shipped": ["models.json", "*.safetensors"],
        "zoominnet.reporting": ["page.html", "page.css", "page.js"],
    },
    cmdclass=commands,
    **arguments,
)
