"""What the commands share: errors for people, devices, data."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable

import torch
from rich.console import Console

from zoominnet.data import MAX_PIXELS, DataError, Split, SyntheticScenes, loader_failure, open_split
from zoominnet.errors import UserError
from zoominnet.kernels import BackendUnavailableError

EXIT_USER_ERROR, EXIT_IO_ERROR, EXIT_INTERRUPTED = 2, 74, 130
"""Exit statuses: options or data that cannot be used; a file that cannot be read or written; Ctrl-C."""


WIDTH_WITHOUT_TERMINAL = 120


class DeviceError(UserError):
    """There is no such device here."""


def make_console() -> Console:
    """The terminal as it is; where there is none, lines wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


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
    except (UserError, BackendUnavailableError, OSError) as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
        return EXIT_IO_ERROR if isinstance(error, OSError) else getattr(error, "exit_status", EXIT_USER_ERROR)
    except RuntimeError as error:
        failure = loader_failure(error)
        if failure is None or debug:
            raise
        print(f"{name}: {failure}", file=sys.stderr)
        return failure.exit_status
    return 0


def one_line(error: BaseException) -> str:
    """The message of `error`; of one that comes from a loader's worker, without the traceback that it carries."""
    text = str(error).strip()
    if "Original Traceback" in text:
        text = re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1].replace("\n", "; ")
    return text


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


def open_data(
    data: str,
    split: str,
    *,
    format: str,
    strict: bool,
    scenes: int,
    scene_size: int,
    seed: int,
    console: Console,
    max_pixels: int = MAX_PIXELS,
) -> Split:
    """The split that --data and its companions name; prints its counts and what was dropped.

    Args:
        data: "synthetic", or a folder or json file.
        split: its name.
        format: of the files, or "auto".
        strict: refuse instead of dropping.
        scenes, scene_size, seed: number, side (px) and seed of synthetic scenes.
        console: for the report.
        max_pixels: larger images are left out.

    Raises:
        DataError: not usable.
    """
    if data == "synthetic":
        opened = SyntheticScenes(scenes, size=scene_size, seed=seed, split=split).split()
    else:
        opened = open_split(
            data, split, strict=strict, format=None if format == "auto" else format, max_pixels=max_pixels
        )
    boxes = sum(len(record.boxes) for record in opened.records)
    regions = sum(len(record.ignored) for record in opened.records)
    console.print(
        f"data {opened.name}: {len(opened.records)} images, {boxes} boxes, {len(opened.class_names)} classes, "
        f"{regions} ignored regions",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for line in opened.report.lines():
        console.print(f"  {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return opened


def check_same_classes(data: str, names: tuple[str, ...], expected: tuple[str, ...], whose: str) -> None:
    """Raises DataError unless `data` has the classes `expected`, in that order."""
    if names != expected:
        raise DataError(
            f"{data}: has the classes {', '.join(names)}, {whose} {', '.join(expected)}; both need the same, in order"
        )
