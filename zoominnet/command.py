"""What the commands share: errors for people, versions, devices, data."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TextIO, TypeVar

import torch
import tyro
from rich.console import Console

from zoominnet.data import (
    DataError,
    Split,
    SyntheticClasses,
    SyntheticScenes,
    divide_split,
    find_splits,
    loader_failure,
    open_split,
)
from zoominnet.errors import EXIT_INTERRUPTED, EXIT_IO_ERROR, EXIT_OUT_OF_MEMORY, EXIT_USER_ERROR, UserError
from zoominnet.kernels import BackendUnavailableError

WIDTH_WITHOUT_TERMINAL = 120
MAX_SCENES = 1_000_000
"""Beyond this it is a slip: to lay them out takes hours, before anything else is done."""


class DeviceError(UserError):
    """There is no such device here."""


class StandingOutput(io.TextIOBase):
    """A stream that may go away, or its disk fill up, without an error: that is reported once.

    For long runs whose files matter more than what they say.

    Args:
        stream: standard output by default.
        name: of the stream, for people.
    """

    def __init__(self, stream: TextIO | None = None, name: str = "standard output") -> None:
        self._stream, self._name = stream or sys.stdout, name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        self._survive(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._survive(self._stream.flush)

    def _survive(self, job: Callable[[], object]) -> None:
        try:
            job()
        except OSError as error:
            self._stream = open(os.devnull, "w")  # noqa: SIM115
            with suppress(OSError):  # standard error may be the same closed pipe
                print(f"{self._name} cannot be written ({error.strerror}); going on without", file=sys.stderr)


def make_console(*, standing: bool = False) -> Console:
    """The terminal as it is; where there is none, lines wide enough for the tables.

    Args:
        standing: go on when standard output goes away, see :class:`StandingOutput`.
    """
    file = StandingOutput() if standing else None
    console = Console(file=file)  # type: ignore[arg-type]
    return console if console.is_terminal else Console(file=file, width=WIDTH_WITHOUT_TERMINAL)  # type: ignore[arg-type]


def run_command(name: str, job: Callable[[], object], *, debug: bool) -> int:
    """Runs `job` and turns its errors into one line on standard error and an exit status.

    Args:
        name: of the command, for the line.
        job: the command.
        debug: show the traceback instead of the line.
    """
    try:
        job()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, BackendUnavailableError, OSError, MemoryError, RuntimeError) as raised:
        error = (loader_failure(raised) if isinstance(raised, RuntimeError) else None) or raised
        status = exit_status(error)
        if status is None:
            raise
        if debug:
            traceback.print_exc()
        else:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            for line in getattr(error, "details", ()):
                print(f"  {line}", file=sys.stderr)
        return status
    return 0


class WithDebug(Protocol):
    """The options of a command."""

    @property
    def debug(self) -> bool: ...


Options = TypeVar("Options", bound=WithDebug)


def run_with_options(
    name: str, options: type[Options], job: Callable[[Options], object], argv: Sequence[str] | None, about: str | None
) -> int:
    """:func:`run_command` with the options that the command line gives.

    Args:
        name: of the command's module.
        options: the dataclass of its options.
        job: the command.
        argv: its words, None for those of this process.
        about: for --help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    given = tyro.cli(options, args=words, prog=f"python -m {name}", description=about)
    return run_command(name, lambda: job(given), debug=given.debug)


def exit_status(error: BaseException) -> int | None:
    """The exit status of a command that `error` ends; None for a fault of this project, to be shown with its traceback."""
    if isinstance(error, UserError | BackendUnavailableError):
        return getattr(error, "exit_status", EXIT_USER_ERROR)
    if isinstance(error, OSError):
        return EXIT_IO_ERROR
    return EXIT_OUT_OF_MEMORY if is_out_of_memory(error) else None


OUT_OF_MEMORY = r"can't allocate memory|CUDA error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
"""What torch's allocator for the CPU, the driver, and the libraries beside torch say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not get memory; all but torch's allocator for GPUs say so in words only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(OUT_OF_MEMORY, str(error)) is not None


REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room: the quota is used up",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "look at the permissions",
    errno.EPERM: "look at the permissions",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "look at the name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower --workers",
}


def one_line(error: BaseException) -> str:
    """The message of `error`; of one that comes from a loader's worker, without the traceback that it carries."""
    text = str(error).strip()
    if is_out_of_memory(error):
        return f"out of memory ({text.splitlines()[0] if text else 'Python'}); lower --batch-size or --image-size"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}; {REMEDIES.get(error.errno or 0, 'look at the file and its disk')}"
    if "Original Traceback" in text:
        text = re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1]
    return "; ".join(text.splitlines())


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def choose_device(name: str) -> torch.device:
    """The device of --device.

    Raises:
        DeviceError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device: {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device: {name!r} is not here ({torch.cuda.device_count()} GPUs found); use --device cpu")
    return device


class DataOptions(Protocol):
    """The options of a command that say which data it works on, as `TrainConfig` explains them."""

    @property
    def data(self) -> str: ...
    @property
    def data_format(self) -> str: ...
    @property
    def images(self) -> str | None: ...
    @property
    def strict(self) -> bool: ...
    @property
    def keep_doubtful(self) -> bool: ...
    @property
    def frame_step(self) -> int: ...
    @property
    def max_megapixels(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def data_seed(self) -> int | None: ...
    @property
    def synthetic_zoom(self) -> float | None: ...
    @property
    def synthetic_classes(self) -> SyntheticClasses | None: ...


def wanted_format(options: DataOptions) -> str | None:
    """The format that --data-format names; None for "auto"."""
    return None if options.data_format == "auto" else options.data_format


def seed_of_data(options: DataOptions) -> int:
    """The seed of synthetic scenes and of a division into parts."""
    return options.seed if options.data_seed is None else options.data_seed


def open_data(options: DataOptions, split: str, *, scenes: int, scene_size: int, console: Console) -> Split:
    """The split that --data and its companions name; prints its counts and what was dropped.

    Args:
        options: of the command.
        split: its name.
        scenes, scene_size: number and side (px) of synthetic scenes.
        console: for the report.

    Raises:
        DataError: not usable.
    """
    if options.data == "synthetic":
        if options.images is not None:
            raise DataError("--images: synthetic scenes are not in files; leave it out, or give --data")
        if scenes > MAX_SCENES:
            raise DataError(f"--synthetic-images: {scenes} is over {MAX_SCENES}")
        opened = SyntheticScenes(
            scenes,
            size=scene_size,
            seed=seed_of_data(options),
            split=split,
            zoom=options.synthetic_zoom or 1.0,
            classes=options.synthetic_classes or "visdrone",
        ).split()
    else:
        with console.status(f"reading {options.data} {split}", spinner="line"):
            opened = _open_files(options, split)
    _print_counts(opened, split, console)
    _print_report(opened, console)
    return opened


def _open_files(options: DataOptions, split: str) -> Split:
    return open_split(
        options.data,
        split,
        strict=options.strict,
        format=wanted_format(options),
        images=options.images,
        max_pixels=round(options.max_megapixels * 1e6),
        keep_doubtful=options.keep_doubtful,
        frame_step=options.frame_step,
    )


def open_parts(options: DataOptions, split: str, fraction: float, *, console: Console) -> tuple[Split, Split]:
    """The parts to train on and to validate on, divided from one split as --val-fraction asks; prints their counts.

    Args:
        options: of the command.
        split: name of the split to divide, where the data set has several; its only one is taken whatever it is called.
        fraction: share of the images to validate on.
        console: for the report.

    Raises:
        DataError: not usable, or nothing to divide.
    """
    if options.data == "synthetic":
        raise DataError("--val-fraction: synthetic scenes have two splits; leave it out, or give --data")
    found = find_splits(options.data, wanted_format(options))
    name = split if len(found) > 1 else next(iter(found))
    with console.status(f"reading {options.data} {name}", spinner="line"):
        whole = _open_files(options, name)
    train, val = divide_split(whole, fraction, seed_of_data(options))
    for part in (whole, train, val):
        _print_counts(part, part.name, console)
    _print_report(whole, console)
    return train, val


def _print_counts(split: Split, asked: str, console: Console) -> None:
    called = f"data {split.name}" + (f" (for {asked})" if asked != split.name else "")
    counts = f"{len(split.records)} scenes, drawn when they are needed, {len(split.class_names)} classes"
    if not split.generated:
        boxes = sum(len(record.boxes) for record in split.records)
        regions = sum(len(record.ignored) for record in split.records)
        counts = (
            f"{len(split.records)} images, {boxes} boxes, {len(split.class_names)} classes, {regions} ignored regions"
        )
    console.print(
        f"{called}: {counts}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _print_report(split: Split, console: Console) -> None:
    for line in split.report.lines():
        console.print(f"  {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def left_out_of(split: Split) -> dict[str, int]:
    """The images of a split that are not among its records, by the reason, for results."""
    return split.report.of_kind("image")


def check_same_classes(data: str, names: tuple[str, ...], expected: tuple[str, ...], whose: str) -> None:
    """Raises DataError unless `data` has the classes `expected`, in that order."""
    if names != expected:
        raise DataError(
            f"{data}: has the classes {', '.join(names)}, {whose} {', '.join(expected)}; both need the same, in order"
        )
