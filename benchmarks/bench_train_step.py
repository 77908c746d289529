"""One training step of a student with its teacher: the trainer's, and the same by torchvision's RetinaNet.

Each rival is a process of its own (`train_step.py`), and they take turns. With `--before COMMIT` the trainer's step as of
that commit takes turns too.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import pytest
import torch
from conftest import Before
from measure import Clock, Effort, Rival, quartiles
from shapes import BOXES
from train_step import RIVALS, SEARCHED, Process, Work, check_losses

from zoominnet.kernels import available_backends

EFFORT = {"full": Effort(30.0, 5, 30), "tiny": Effort(0.0, 1, 1)}
MATRIX_SIDE = {"full": {"cpu": 2048, "cuda": 8192}, "tiny": {"cpu": 64, "cuda": 64}}
"""Of the product that the machine's rate of multiply-adds is measured by."""
MATRIX_CALLS = 3


def matrix_product(precision: str, size: str, clock: Clock) -> Rival:
    """A product of two square matrices; in float32 with TF32 where convolutions may use it."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = MATRIX_SIDE[size][clock.device.type]
    left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    return Rival("matrix product", lambda: left @ right)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("student", ["snet", "fa"])
def test_train_step(
    student: str,
    precision: str,
    size: str,
    device: torch.device,
    clock: Clock,
    before: Before | None,
    benchmark: Any,
    request: pytest.FixtureRequest,
) -> None:
    states = available_backends(device.type)["akdp_mask"]
    left_out = {name: state for name, state in states.items() if state != "ok"}
    if not request.config.getoption("--compile"):
        left_out["native, compiled"] = "not asked for"
    if device.type != "cuda" or "native" in left_out:
        left_out[SEARCHED] = "is for GPUs, and native kernels"
    work = Work("", student, precision, device.type, torch.get_num_threads(), size)
    rounding = "tf32" if (precision, device.type) == ("fp32", "cuda") else precision
    with ExitStack() as stack:

        def start(rival: str, tree: Path) -> Process:
            return stack.enter_context(Process(dataclasses.replace(work, rival=rival), tree))

        rivals = {name: start(name, measure.ROOT) for name in RIVALS if name not in left_out}
        ours = next(name for name in ("native", "triton", "reference") if name in rivals)
        if before is not None:
            rivals[f"{ours} at {before.commit}"] = start(ours, before.tree)
        for name, rival in rivals.items():
            assert rival.ask("source") == str(rival.tree / "zoominnet"), f"{name}: runs another package"
        losses = {name: rival.ask("losses") for name, rival in rivals.items()}
        for name in [name for name in rivals if name == SEARCHED or name.startswith("torchvision")]:
            try:
                check_losses({ours: losses[ours], name: losses.pop(name)}, rounding)
            except AssertionError as error:
                left_out[name] = f"failed: {error}"
                rivals.pop(name)
        check_losses(losses, rounding)
        if benchmark.disabled:
            benchmark.pedantic(lambda: rivals[ours].ask("turn"))
            return
        memory = {name: rival.ask("memory") for name, rival in rivals.items()}
        product = matrix_product(precision, size, clock)
        products: list[float] = []
        seconds: dict[str, list[float]] = {name: [] for name in rivals}

        def turn_of(name: str) -> None:
            seconds[name].append(rivals[name].ask("turn"))

        def turns_of_others() -> None:
            for name in rivals:
                if name != ours:
                    turn_of(name)
            products.extend([clock.time(product) for _ in range(MATRIX_CALLS + 1)][1:])

        start_of_turns = time.perf_counter()
        turns_of_others()
        turn_of(ours)
        elapsed, effort = time.perf_counter() - start_of_turns, EFFORT[size]
        rounds = max(effort.least, min(int(effort.seconds / elapsed), effort.most)) - 1
        benchmark.pedantic(lambda: turn_of(ours), setup=turns_of_others, rounds=max(rounds, 1))
        side = MATRIX_SIDE[size][device.type]
        benchmark.group = "training step"
        benchmark.extra_info |= {
            "op": "training step",
            "shape": student,
            "sizes": work.describe(),
            "dtype": precision,
            "direction": "both",
            **measure.facts(device),
            "boxes": BOXES,
            "before": None if before is None else before.commit,
            "batch": work.shape.batch,
            "rounds": len(products) // MATRIX_CALLS,
            "rivals": {
                name: {**quartiles(times), "calls": len(times), "extra_memory": memory[name]}
                for name, times in seconds.items()
            },
            "left_out": left_out,
            "flops": {name: rivals[name].ask("flops") for name in (ours, "torchvision") if name in rivals},
            "flops_per_second": 2 * side**3 / quartiles(products)["median"],
            "breakdown": rivals[ours].ask("breakdown"),
            "decode": rivals[ours].ask("decode"),
        }
