"""Training runs in processes of their own, small and quick to start, to be killed, stopped and starved.

A fork server imports the package once and forks a clean process for each run. The backbone is a ResNet in which one
depthwise and one pointwise convolution stand for each stage, so that checkpoints are small: everything around it is the
real thing, from the command line on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import scenes
import torch
from safetensors.torch import load_file
from small_run import SMALL_RUN
from torch import Tensor, nn
from torchvision.models import ResNet

from zoominnet.data.synthetic import SyntheticScenes
from zoominnet.engine.checkpoint import MODEL, OPTIMIZER, STATE, newest_checkpoint
from zoominnet.models.backbones import resnet
from zoominnet.train import main as train_main

TINY = [
    *SMALL_RUN,
    "--student",
    "snet",
    "--image-size",
    "32",
    "--channels",
    "8",
    "--batch-size",
    "2",
    "--synthetic-images",
    "12",
    "3",
    "--workers",
    "0",
    "--warmup-steps",
    "0",
    "--log-every",
    "1",
    "--checkpoint-every",
    "4",
    "--deterministic",
    "--teacher-epochs",
    "3",
    "--epochs",
    "7",
    "--device",
    "cpu",
]
"""18 steps of a teacher and 42 of a student that learns from it, in epochs of 6."""
STEPS = 60
QUICK = ["--teacher-epochs", "2", "--epochs", "3"]
"""After `TINY`: 12 steps and 18."""
PHASES = ("teacher", "student")
LIMIT_S = 300
"""Longest wait for anything, generous for a loaded machine."""

Hook = Callable[[], None]
HERE = Path(__file__).parent


def fork_server() -> ForkServerContext:
    """The processes of this context are forks of one that has imported preloaded.py."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # The server looks for it on its own path, which before Python 3.13 is not this process' one.
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
        forkserver.ensure_running()
    return context


class _Stage(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int = 1, downsample: object = None, *rest: object) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(self.depthwise(x))))


def small_backbone() -> None:
    """Puts the small ResNet into the place of resnet18."""
    resnet.RESNETS["resnet18"] = lambda weights=None: ResNet(_Stage, [1, 1, 1, 1])  # type: ignore[arg-type]


@contextmanager
def small_resnet18() -> Iterator[None]:
    """Within, resnet18 is the small ResNet."""
    before = resnet.RESNETS["resnet18"]
    small_backbone()
    try:
        yield
    finally:
        resnet.RESNETS["resnet18"] = before


def paint_scenes() -> None:
    """Those that runs with the options `TINY` train and validate on."""
    for split, count in (("train", 12), ("val", 3)):
        painted = SyntheticScenes(count, size=64, seed=0, split=split)
        for record in painted:
            painted.render(record)


def _train(arguments: list[str], output: Path, hook: Hook | None) -> None:
    multiprocessing.set_start_method("fork", force=True)  # for the workers, as in a run that was not forked
    os.setsid()  # a process group of its own, with the loader's workers
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    small_backbone()
    scenes.keep()
    if hook is not None:
        hook()
    sys.exit(train_main(arguments))


class TinyRun:
    """One process that trains in `out`.

    Args:
        out: of the run.
        options: more options of the command, after those of `TINY`.
        hook: called in the process before it trains: a module's function, or a partial of one.
    """

    def __init__(self, out: Path, *options: str, hook: Hook | None = None) -> None:
        self.out = out
        self.output = out.with_name(f"{out.name}.txt")
        self.process: BaseProcess = fork_server().Process(
            target=_train, args=([*TINY, "--out", str(out), *options], self.output, hook)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self) -> int:
        """The exit status; minus the number of the signal that killed it."""
        self.process.join(LIMIT_S)
        assert self.process.exitcode is not None, f"still running after {LIMIT_S} s:\n{self.text()}"
        return self.process.exitcode

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; fails when the run ends before that."""
        for _ in patience():
            if condition():
                return
            assert self.process.is_alive(), f"ended by {self.process.exitcode} before its time:\n{self.text()}"

    def text(self) -> str:
        """What it has written to standard output and standard error so far, of all runs in `out`."""
        return self.output.read_text() if self.output.exists() else ""

    def family(self) -> list[psutil.Process]:
        """Its process and the loader's workers."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]


def patience(limit_s: float = LIMIT_S) -> Iterator[float]:
    """Yields the seconds that have gone by, a few hundred times a second; fails at the limit."""
    start = time.monotonic()
    while (gone := time.monotonic() - start) < limit_s:
        yield gone
        time.sleep(0.003)
    raise AssertionError(f"nothing happened in {limit_s} s")


def steps_done(out: Path) -> int:
    """Logged training steps of all phases."""
    files = [out / phase / "metrics.jsonl" for phase in PHASES]
    return sum(file.read_bytes().count(b'"kind": "train"') for file in files if file.exists())


def digest(out: Path) -> dict[str, str]:
    """Of each phase: weights, momentum, the rest of the state (scaler, counters) and the metrics, as hashes."""
    hashes = {}
    for phase in PHASES:
        path, problems = newest_checkpoint(out / phase / "checkpoints")
        assert path is not None
        assert not problems
        for name in (MODEL, OPTIMIZER):
            sha = hashlib.sha256()
            for key, tensor in sorted(load_file(path / name).items()):
                sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
            hashes[f"{phase} {name}"] = sha.hexdigest()
        for file in (path / STATE, out / phase / "metrics.jsonl"):
            hashes[f"{phase} {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def metrics(out: Path, phase: str = "student") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / phase / "metrics.jsonl").read_text().splitlines()]


# Hooks: functions that a run's process calls before it trains.


def slow_validation(marker: Path) -> None:
    """Leaves `marker` when a validation begins, and takes at least 0.2 s a batch from there on."""
    from zoominnet.engine import run

    predict = run.predict_split

    def slow(*arguments: Any, progress: Callable[[int], None], **options: Any) -> Any:
        marker.touch()

        def wait(done: int) -> None:
            time.sleep(0.2)
            progress(done)

        return predict(*arguments, progress=wait, **options)

    run.predict_split = slow


def slow_writing(marker: Path) -> None:
    """Leaves `marker` when a checkpoint is being written, which takes at least 1 s."""
    from zoominnet.engine.checkpoint import format

    write = format._write_files

    def slow(*arguments: Any) -> None:
        marker.touch()
        time.sleep(1)
        write(*arguments)

    format._write_files = slow


def hang(step: int, marker: Path) -> None:
    """The step after `step` never ends; leaves `marker` then."""
    from zoominnet.engine.trainer import Phase

    train_step = Phase._train_step

    def hanging(phase: Phase, *arguments: Any) -> dict[str, Any]:
        if phase.step == step:
            marker.touch()
            time.sleep(LIMIT_S)
        return train_step(phase, *arguments)

    Phase._train_step = hanging  # type: ignore[method-assign]


def limit_file_size(step: int, size: int) -> None:
    """From `step` on, once its checkpoint is written, no file can grow beyond `size` bytes."""
    import resource

    from zoominnet.engine.trainer import Phase

    train_step = Phase._train_step

    def limited(phase: Phase, *arguments: Any) -> dict[str, Any]:
        if phase.step == step:
            next(_ for _ in patience() if (phase.checkpoints / f"step-{step:08}").exists())
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return train_step(phase, *arguments)

    Phase._train_step = limited  # type: ignore[method-assign]
