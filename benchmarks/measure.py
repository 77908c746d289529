"""How the benchmarks measure: rivals in turns, their time, their peak memory, and the facts of the machine.

pytest-benchmark times one function after the other, and between two of them a busy machine may have changed. Here all
rivals of a comparison take turns in one benchmark, A B C A B C ..., and are compared by the ratios of their medians:
:func:`race` gives pytest-benchmark our own kernel to time, and times the turns of all others in that benchmark's
set-up, which is outside its clock. Their medians and quartiles go into the benchmark's `extra_info`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import itertools
import os
import platform
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "triton")

OURS = ("native", "triton", "reference")
"""Rivals of this package; another that fails is left out, with the reason."""
TURN = 0.02
"""Seconds that a turn may take: short calls are repeated, each timed by itself."""
CALLS_PER_TURN = 25
SLEEP = 4_000_000
"""Cycles of a GPU, some 2 ms, that it waits before the device's own time of a call begins: Python has launched the kernels of
most calls by then, and they run without gaps."""
SLOW = 1.0
"""Seconds. A rival whose call takes longer is called once, while its memory is measured, and has no turns."""


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take: seconds for all turns, and the least and the greatest number of rounds."""

    seconds: float
    least: int
    most: int


EFFORT = {"full": Effort(3.0, 9, 60), "tiny": Effort(0.0, 1, 1)}


@dataclass(frozen=True)
class Rival:
    """One way to compute something.

    Attributes:
        name: "native", "triton", "reference" (ours in plain PyTorch, which works in chunks), "eager" (dense, as people
            write it), "compiled" (``torch.compile`` of "eager"), or "copy" (of as many bytes as must be moved).
        run: what is timed; gives the result.
        prepare: gives the arguments of `run`, outside the clock.
    """

    name: str
    run: Callable[..., Any]
    prepare: Callable[[], tuple[Any, ...]] = tuple


class Clock:
    """Times calls on a device; a call ends when the device has nothing left to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        # One thread that never waits takes as much of the processor's time as of anybody's, on an idle machine; other
        # work lengthens the second alone, and long calls, in which it interrupts, more than short ones.
        self.now = time.perf_counter if self.cuda or torch.get_num_threads() > 1 else time.process_time
        # Larger than any cache: the kernels that follow its filling find nothing of their inputs there.
        self._filler = torch.empty(2**28 if self.cuda else 0, dtype=torch.int32, device=device)

    def wait(self) -> None:
        """Returns when the device is idle."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def finished(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, and then :meth:`wait`."""

        def run_and_wait(*arguments: Any) -> Any:
            result = run(*arguments)
            self.wait()
            return result

        return run_and_wait

    def time(self, rival: Rival) -> float:
        """Seconds of one call, as the host sees it."""
        arguments = rival.prepare()
        self.wait()
        start = self.now()
        result = self.finished(rival.run)(*arguments)
        elapsed = self.now() - start
        del result  # freeing it is not part of the call
        return elapsed

    def device_time(self, rival: Rival) -> float:
        """Seconds between CUDA events around one call."""
        arguments = rival.prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._filler.zero_()
        self._filler.sum()  # so that the cache has nothing left to write back
        torch.cuda._sleep(SLEEP)
        start.record()
        result = rival.run(*arguments)
        end.record()
        self.wait()
        del result
        return start.elapsed_time(end) / 1e3

    def peak_memory(self, rival: Rival) -> tuple[Any, float, int | None]:
        """The result of one call, its seconds, and its extra memory.

        That is the bytes at its peak beyond what was there before, its results included. On the CPU it is what the
        process had resident: all memory, not that of PyTorch's allocator alone, to about half a megabyte; None where
        the system is not Linux.
        """
        arguments = rival.prepare()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before, known = torch.cuda.memory_allocated(self.device), True
        else:
            known = forget_peak()
            before = resident("VmRSS") if known else 0
        start = self.now()
        result = self.finished(rival.run)(*arguments)
        elapsed = self.now() - start
        if not known:
            return result, elapsed, None
        peak = torch.cuda.max_memory_allocated(self.device) if self.cuda else resident("VmHWM")
        return result, elapsed, max(peak - before, 0)


def forget_peak() -> bool:
    """Gives freed memory back to the system and sets the process's peak to what is resident now; whether it could."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps would hide the next call's needs
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return False
    return True


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: "VmRSS" is resident now, "VmHWM" was at the peak."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, AttributeError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0]}
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


@dataclass
class Entry:
    """What was measured of a rival."""

    rival: Rival
    calls: int  # a turn
    seconds: list[float]
    device_seconds: list[float]
    extra_memory: int | None

    def warm_up(self, clock: Clock) -> None:
        """One call that does not count, before each turn.

        Memory that was free while the others had theirs may have gone back to the host of a virtual machine, and is slow to
        get again.
        """
        clock.time(self.rival)

    def take_turn(self, clock: Clock) -> None:
        self.warm_up(clock)
        self.seconds += [clock.time(self.rival) for _ in range(self.calls)]
        self.device_seconds += self.device_turn(clock)

    def device_turn(self, clock: Clock) -> list[float]:
        """The device's own seconds of as many calls; nothing on the CPU."""
        return [clock.device_time(self.rival) for _ in range(self.calls if clock.cuda else 0)]

    def summary(self) -> dict[str, Any]:
        result: dict[str, Any] = {**quartiles(self.seconds), "calls": len(self.seconds)}
        if self.device_seconds:
            result["device_median"] = statistics.median(self.device_seconds)
        return {**result, "extra_memory": self.extra_memory}


def race(
    benchmark: Any,
    clock: Clock,
    effort: Effort,
    rivals: Sequence[Rival],
    check: Callable[[str, Any], None],
    left_out: Mapping[str, str],
    bytes_moved: int,
) -> dict[str, Any]:
    """Checks each rival's result, then lets them take turns.

    Args:
        benchmark: pytest-benchmark's fixture; it times the first of "native", "triton" and "reference" that takes part.
        clock: of the device.
        effort: how long it may take.
        rivals: all of them.
        check: raises an AssertionError where a result, of the rival of that name, is not close to what it must be.
        left_out: why others take no part.
        bytes_moved: the least that must be read and written; a "copy" that moves as many is added.

    Returns:
        What belongs into `extra_info`: for each rival median, quartiles and number of calls (seconds), the median of the
        device's own seconds, and the peak of its extra memory (bytes).
    """
    ours = next(rival for name in OURS for rival in rivals if rival.name == name)
    # Not of zeros, which may be quicker to move than what is moved in earnest.
    source = torch.randint(256, (bytes_moved // 2,), dtype=torch.uint8, device=clock.device)
    copy = source.clone()
    first, left_out = {}, dict(left_out)
    for rival in rivals:
        try:
            result, *first[rival.name] = clock.peak_memory(rival)
            check(rival.name, result)
            del result
        except Exception as error:
            if rival.name in OURS:
                raise
            left_out[rival.name] = f"failed: {type(error).__name__}: {error}".partition("\n")[0]
            warnings.warn(f"{rival.name} {left_out[rival.name]}", stacklevel=2)
    rivals = [rival for rival in rivals if rival.name not in left_out]
    if benchmark.disabled:
        benchmark.pedantic(clock.finished(ours.run), setup=lambda: (ours.prepare(), {}))
        return {}

    entries, only_once = [], []
    for rival in [*rivals, Rival("copy", lambda: copy.copy_(source))]:
        elapsed, extra = first.get(rival.name, (0.0, None))
        if elapsed <= SLOW or rival.name in ("compiled", "triton"):  # whose first call compiles
            result, elapsed, extra = clock.peak_memory(rival)
            del result
        if elapsed > SLOW:
            only_once.append(Entry(rival, 1, [elapsed], [], extra))
        else:
            elapsed = max(min(elapsed, clock.time(rival)), 1e-6)
            entries.append(Entry(rival, max(1, min(int(TURN / elapsed), CALLS_PER_TURN)), [], [], extra))
    mine = next(entry for entry in [*entries, *only_once] if entry.rival is ours)
    others = [entry for entry in entries if entry is not mine]
    start = clock.now()
    for entry in [*others, mine]:
        entry.take_turn(clock)
    rounds = max(effort.least, min(int(effort.seconds / (clock.now() - start)), effort.most))
    calls = itertools.count()

    def prepare() -> tuple[tuple[Any, ...], dict[str, Any]]:
        if next(calls) % mine.calls == 0:
            for entry in others:
                entry.take_turn(clock)
            mine.warm_up(clock)
            mine.device_seconds += mine.device_turn(clock)
        arguments = ours.prepare()
        clock.wait()
        return arguments, {}

    def timed(*arguments: Any) -> Any:
        start = clock.now()
        result = clock.finished(ours.run)(*arguments)
        mine.seconds.append(clock.now() - start)
        return result

    benchmark.pedantic(timed, setup=prepare, rounds=rounds * mine.calls)
    summaries = {entry.rival.name: entry.summary() for entry in [mine, *others, *only_once]}
    return {"rivals": summaries, "left_out": left_out, "bytes": bytes_moved, "rounds": rounds}


def facts(device: torch.device) -> dict[str, Any]:
    """Hardware, number of threads, versions and commit that a measurement belongs to."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        hardware = f"{processor_name()}, {os.cpu_count()} cores, {capability}"
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": read_commit(),
    }


def processor_name() -> str:
    """As the system tells it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


@functools.cache  # of what is running, whatever is edited meanwhile
def read_commit() -> str:
    """Of the source tree, with a mark where tracked files other than results differ from it.

    Where git does not know, as in a copy of the files alone, what ZOOMINNET_COMMIT says, or "unknown".
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!*.md")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("ZOOMINNET_COMMIT", "unknown")
    return f"{commit}, changed" if changed else commit
