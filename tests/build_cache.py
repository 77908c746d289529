"""What takes long to build and changes seldom, kept from one run of the tests to the next."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def kept(
    config: pytest.Config, name: str, made_of: Iterable[str | Path], make: Callable[[Path], None] = lambda folder: None
) -> Path:
    """A folder of pytest's cache that `make` has filled, now or in an earlier run.

    It is filled anew when anything in `made_of` has changed, and its predecessor is deleted: the texts, and the contents
    of the files and of all files in the folders, each with its name. `make` that raises leaves nothing behind. Without
    pytest's cache (`-p no:cacheprovider`, as `make gpu-check` runs the tests) it is filled for this process alone.
    """
    sha = hashlib.sha256()
    for part in made_of:
        files = sorted(part.rglob("*")) if isinstance(part, Path) and part.is_dir() else [part]
        for file in files:
            if isinstance(file, str):
                content = file.encode()
            elif file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
            else:
                continue
            sha.update(f"{file if isinstance(file, str) else file.name} {len(content)}\n".encode() + content)
    if hasattr(config, "cache"):
        whole = config.cache.mkdir(name)  # type: ignore[union-attr]
    else:
        whole = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        atexit.register(shutil.rmtree, whole, ignore_errors=True)
    folder = whole / sha.hexdigest()[:32]
    if not folder.exists():
        for old in whole.iterdir():
            shutil.rmtree(old, ignore_errors=True)
        making = Path(tempfile.mkdtemp(dir=whole))
        try:
            make(making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder
