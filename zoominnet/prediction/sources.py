"""What SOURCE names: images and videos, in files, folders and patterns; and the images read ahead."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from zoominnet.data import ImageError
from zoominnet.data.images import IMAGE_SUFFIXES
from zoominnet.errors import UserError
from zoominnet.prediction.inputs import is_address, to_pixels

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv"})
"""The file names taken for videos."""


@dataclass(frozen=True)
class SourceFile:
    """An image or a video.

    Attributes:
        path: of the file.
        name: relative to the deepest folder that holds all files of a run, for what is written about it.
    """

    path: Path
    name: PurePosixPath

    @property
    def is_video(self) -> bool:
        """By its name."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_files(sources: Sequence[str], *, without: Path) -> list[SourceFile]:
    """The images and videos that `sources` name, each once, in their order, those of a folder or pattern sorted.

    Args:
        sources: files of any name, folders, which are searched with all below, or patterns such as "day1/*.jpg" or
            "day*/**/*.png".
        without: a folder whose files are left out where a folder or pattern finds them: that of the results.

    Raises:
        UserError: one names nothing, or nothing that is an image or video by its name.
    """
    if not sources:
        raise UserError("SOURCE: name one or more images, videos, folders or patterns")
    found: dict[Path, Path] = {}
    roots = []
    out = without.resolve()
    for source in sources:
        paths = _named_by(source)
        path = Path(source)
        roots.append([path] if path.is_dir() else [each.parent for each in paths])
        for each in paths:
            real = each.resolve()
            if path.is_file() or not real.is_relative_to(out):
                found.setdefault(real, each)
        if not found:
            raise UserError(f"{source}: holds no images or videos but those in --out; name another source")
    root = os.path.commonpath([os.path.abspath(each) for group in roots for each in group])
    return [SourceFile(path, PurePosixPath(Path(os.path.abspath(path)).relative_to(root))) for path in found.values()]


def _named_by(source: str) -> list[Path]:
    """The files of one source, sorted; one at least."""
    path = Path(source)
    if is_address(source):
        raise UserError(f"{source}: addresses are not opened; download the file and give its path")
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _in_folder(path)
        if not found:
            kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise UserError(
                f"{source}: holds no images or videos (looked here and below for {kinds}); name another folder"
            )
        return found
    if glob.has_magic(source):
        matches = [Path(each) for each in glob.glob(source, recursive=True)]
        found = [each for each in matches if each.is_file() and _is_known(each.name)]
        if not found:
            told = f"matches {len(matches)} files, none an image or video" if matches else "matches no file"
            raise UserError(f"{source}: {told}; look at the pattern")
        return sorted(found)
    raise UserError(f"{source}: no such file or folder; name an image, a video, a folder or a pattern")


def _is_known(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _in_folder(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:  # os.walk would leave the folder out without a word
        raise error

    return sorted(
        Path(directory, name)
        for directory, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if _is_known(name)
    )


def read_ahead(
    files: Sequence[SourceFile], *, workers: int, max_pixels: int
) -> Iterator[tuple[SourceFile, Tensor | ImageError]]:
    """Each image's pixels, uint8 [3, H, W], or why it cannot be used, in order.

    Args:
        workers: threads that decode while the model is at work, two images ahead each; 0 decodes when asked.
        max_pixels: larger images are refused before they are decoded.
    """

    def read(file: SourceFile) -> Tensor | ImageError:
        try:
            return to_pixels(file.path, max_pixels=max_pixels)
        except ImageError as error:
            return error

    if not workers:
        yield from ((file, read(file)) for file in files)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from _in_order(pool.submit, read, files, 2 * workers)


def _in_order(
    submit: Callable[..., Future[Tensor | ImageError]],
    read: Callable[[SourceFile], Tensor | ImageError],
    files: Sequence[SourceFile],
    ahead: int,
) -> Iterator[tuple[SourceFile, Tensor | ImageError]]:
    waiting: deque[tuple[SourceFile, Future[Tensor | ImageError]]] = deque()
    try:
        for file in files:
            waiting.append((file, submit(read, file)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:  # where the caller has stopped
            future.cancel()
