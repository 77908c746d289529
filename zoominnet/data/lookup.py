"""Image files by the names that annotation files give them, which other machines and tools wrote."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from zoominnet.data.images import IMAGE_SUFFIXES
from zoominnet.data.records import split_kind

OF_ANOTHER_MACHINE = "path of another machine, found below the data folder"
"""The verdict on an image that a label file names by a path that is not there, and that was found by its last parts."""

# Label Studio puts eight digits of a hash before the name of an uploaded file: 3f2a1b4c-frame.jpg.
_UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")
# Label Studio's own address of a local file: /data/local-files/?d=folder%2Fframe.jpg.
_LOCAL_FILES = re.compile(r"^.*[?&]d=")


def plain_name(name: str) -> str:
    """`name` with slashes for a Windows path's backslashes, and without the rest of an address around it."""
    if _LOCAL_FILES.match(name):
        name = unquote(_LOCAL_FILES.sub("", name, count=1).partition("&")[0])
    elif "://" in name:
        name = unquote(name.partition("?")[0])
    if "\\" in name:
        name = PureWindowsPath(name).as_posix()
    return name


def leads_elsewhere(name: str) -> bool:
    """Whether a plain name is a path of a machine, not one below the data folder: absolute, an address, or with ".."."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", name))


def has_upload_hash(name: str) -> bool:
    """Whether a plain name ends in a file name with Label Studio's hash before it."""
    return bool(_UPLOAD_HASH.match(PurePosixPath(name).name))


class FileIndex:
    """The image files below a folder, found by the last parts of a path. Symbolic links to folders are not followed.

    Args:
        root: the folder.
        kind: "train", "val" or "test": files in a folder named for another kind of split are not found.
    """

    def __init__(self, root: Path, kind: str | None = None) -> None:
        self.root = root
        self.kind = kind
        self._by_end: dict[tuple[str, ...], list[tuple[str, ...]]] | None = None

    def find(self, name: str) -> tuple[Path, int] | None:
        """The one file whose path shares the most last parts with a plain `name`, at least the file's name.

        A hash that Label Studio put before the name is left off where there is no such file with it.

        Returns:
            Its path and the number of parts that are the same; None where there is no such file, or several.
        """
        parts = PurePosixPath(name).parts
        if not parts:
            return None
        ends = self._ends()
        if parts[-1:] not in ends:
            parts = (*parts[:-1], _UPLOAD_HASH.sub("", parts[-1]))
        files = ends.get(parts[-2:]) or ends.get(parts[-1:], [])
        if len(files) > 1 and files is ends.get(parts[-1:]) and len(parts) > 1:
            return None  # they share the file's name alone
        shared = [_shared_end(parts, file) for file in files]
        best = max(shared, default=0)
        if shared.count(best) != 1:
            return None
        return self.root.joinpath(*files[shared.index(best)]), best

    def _ends(self) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """The files by their last part, and by their last two."""
        if self._by_end is None:
            self._by_end = defaultdict(list)
            for directory, subfolders, names in os.walk(self.root):
                subfolders[:] = sorted(name for name in subfolders if not self._is_another_kind(name))
                folder = Path(directory).relative_to(self.root).parts
                for name in names:
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                        self._by_end[(name,)].append((*folder, name))
                        if folder:
                            self._by_end[(folder[-1], name)].append((*folder, name))
        return self._by_end

    def _is_another_kind(self, folder: str) -> bool:
        return self.kind is not None and split_kind(folder) not in (None, self.kind)


def _shared_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
