"""Kills a save at each of its file system calls; run with crash_shim.c preloaded. Prints the outcomes as JSON.

Usage: crash_points.py FOLDER
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from zoominnet.engine.checkpoint import (
    ModelInfo,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

NAME, KEEP = "checkpoints", 1
# What is there, as (step, AP) each, and what is saved then.
SCENARIOS: dict[str, tuple[list[tuple[int, float | None]], tuple[int, float | None]]] = {
    "first": ([], (1, None)),
    "next": ([(1, None)], (2, None)),
    "next, with an old one and the best to look after": ([(1, 0.9), (2, 0.1), (3, None)], (4, None)),
    "next, better than the best": ([(1, 0.9), (2, 0.1)], (3, 0.95)),
    "the only one again": ([(1, None)], (1, 0.5)),
    "the last one again": ([(1, 0.9), (2, None)], (2, 0.5)),
}


def save(folder: Path, step: int, ap: float | None, *, prune: bool = True) -> None:
    info = ModelInfo("snet", "resnet18", 2, 32, 8, False, ("a", "b"), (1, 2), {}, ap)
    generator = torch.Generator().manual_seed(step)
    tensors = {f"w{i}": torch.randn(1000 * i + 1, generator=generator) for i in range(6)}
    written = save_checkpoint(folder, step, tensors, info, {"momentum.0": tensors["w5"]}, {"step": step, "ap": ap})
    if prune:
        prune_checkpoints(written, KEEP)


def outcome(folder: Path, before: list[tuple[int, float | None]], new: tuple[int, float | None]) -> str:
    """What can be loaded: "old", "new" or "lost". Fails where that is not what was written."""
    path, problems = newest_checkpoint(folder)
    assert not problems, problems
    if path is None:
        return "lost"
    tensors, momentum, state = load_state(path)
    expected = torch.randn(1, generator=torch.Generator().manual_seed(state["step"]))
    assert torch.equal(tensors["w0"], expected)
    assert torch.equal(tensors["w5"], momentum["momentum.0"])
    found = (state["step"], state["ap"])
    assert found in (new, before[-1] if before else None), found
    for path in list_checkpoints(folder):
        load_state(path)  # half-deleted ones are out of sight
    return "new" if found == new else "old"


def enumerate_points(root: Path, scenario: str) -> dict[str, int]:
    shim = ctypes.CDLL(None)
    before, new = SCENARIOS[scenario]
    template = root / "template"
    for step, ap in before:
        save(template / NAME, step, ap, prune=False)
    counts = {"points": 0, "old": 0, "new": 0, "lost": 0}
    while True:
        run = root / "run"
        shutil.rmtree(run, ignore_errors=True)
        if template.exists():
            shutil.copytree(template, run)
        else:
            run.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            shim.crash_arm(counts["points"] + 1)
            save(run / NAME, *new)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert outcome(run / NAME, before, new) == "new"
            return counts
        assert os.WTERMSIG(status) == signal.SIGKILL
        counts["points"] += 1
        counts[outcome(run / NAME, before, new)] += 1
        # The run goes on: what the crash left is in nobody's way, and goes.
        save(run / NAME, *new)
        assert outcome(run / NAME, before, new) == "new"
        save(run / NAME, 9, None)
        kept = {path.name for path in (run / NAME).iterdir()}
        best = max((*before, new), key=lambda each: -1 if each[1] is None else each[1])
        assert kept == {"step-00000009"} | ({f"step-{best[0]:08d}"} if best[1] is not None else set()), kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({s: enumerate_points(Path(sys.argv[1], str(i)), s) for i, s in enumerate(SCENARIOS)}))
