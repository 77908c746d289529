"""The compiled libraries of the `native` backend: where they are, whether they fit this package, loading them.

`setup.py` builds `_C_cpu.so` and `_C_cuda.so` into the package that holds this one, and writes beside them, as
`_build.json`, what it did not build and why. They hold implementations of the operators of `_schemas.py` and no Python,
so one build serves every Python. A library is loaded when a backend is first chosen for a device, never on import.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import struct
import sys
from pathlib import Path

import torch

from ._schemas import stamp

LIBRARIES = {"cpu": "_C_cpu.so", "cuda": "_C_cuda.so"}
"""File of each device type."""
RECORD = "_build.json"
MARK = b"zoominnet library "
"""Stands in each library, followed by the :func:`stamp` of its sources, and a zero byte."""
GPUS_MARK = b"zoominnet gpus "
"""Stands in the library for CUDA, followed by the GPUs it has code for ("75,80": compute capability 7.5 and 8.0), and a
zero byte."""

LIBRARY_DIR_VARIABLE = "ZOOMINNET_LIBRARY_DIR"
"""Environment variable: a folder to take the libraries from, for builds with other options."""

_REBUILD = "run pip install --no-build-isolation --no-deps -e . in the source folder"


_package = sys.modules[__name__.partition(".")[0]]


def library_folder() -> Path:
    """Where the libraries belong, whether they are there or not."""
    return Path(os.environ.get(LIBRARY_DIR_VARIABLE) or _package.__path__[0])


@functools.cache
def library_state(device_type: str) -> str:
    """Loads the library of a device type, once.

    Returns:
        "ok", or the reason why there is none, and after "; " the remedy.
    """
    if device_type not in LIBRARIES:
        return f"not built: there is no library for {device_type} tensors; use backend='auto' or 'reference'"
    path = library_folder() / LIBRARIES[device_type]
    if not path.is_file():
        return _why_missing(path, device_type)
    if (flaw := _flaw(path)) is not None:
        return f"unusable: {path} {flaw}"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        cause = " ".join(str(error.__cause__ or error).split()).replace(";", ",")
        return f"unusable: {path} was built for another torch than {torch.__version__}, or is damaged ({cause}); {_REBUILD}"
    return "ok"


def _why_missing(path: Path, device_type: str) -> str:
    try:
        state = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))[device_type]
    except (OSError, ValueError, KeyError, TypeError):
        state = "built"
    if state == "built":
        return f"not built: there is no {path}; {_REBUILD}"
    return f"not built: {state}"


def _elf_size(header: bytes) -> int:
    """Bytes of an ELF file to the end of its table of sections, which stands last; 0 where `header` is of another kind.

    To load a file that is cut off would end the process without a word.
    """
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        return 0
    (offset,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return offset + size * count


def _flaw(path: Path) -> str | None:
    """What is wrong with a library, as far as its file's bytes tell, and after "; " the remedy; None if nothing."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return f"is empty; {_REBUILD}"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            built, gpus = (_text_after(mark, content) for mark in (MARK, GPUS_MARK))
            cut_off = len(content) < _elf_size(content[:64])
    if built is None:
        return f"is not a library of zoominnet; {_REBUILD}"
    if cut_off:
        return f"is cut off; {_REBUILD}"
    if built != (expected := stamp(_package.__version__)):
        return f"is of another version of zoominnet ({built}, and this is {expected}); {_REBUILD}"
    return None if gpus is None else _flaw_of_gpus([int(gpu) for gpu in gpus.split(",")])


def _text_after(mark: bytes, content: mmap.mmap) -> str | None:
    start = content.find(mark)
    if start < 0:
        return None
    start += len(mark)
    return content[start : content.find(b"\0", start)].decode(errors="replace")


def _flaw_of_gpus(built: list[int]) -> str | None:
    """What is wrong with a library that has code for the GPUs `built`, where none of this machine's can run it.

    Code for a GPU runs on later ones of the same major version; the driver compiles that for the last one anew for any
    that is later.
    """
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    own = sorted({10 * major + minor for major, minor in capabilities})
    if not own or any(
        gpu >= built[-1] or any(gpu // 10 == code // 10 and gpu >= code for code in built) for gpu in own
    ):
        return None
    names = ", ".join(f"sm_{gpu}" for gpu in built)
    return (
        f"was built for other GPUs ({names}) than sm_{own[-1]}, which is here; unset ZOOMINNET_CUDA_ARCHS, see"
        f' that GPUS in setup.py has "{own[-1]}", then {_REBUILD}'
    )
