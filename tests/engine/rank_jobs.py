"""Ranks for the tests: train_main in several processes, with faults; also a script for torchrun.

    torchrun ... tests/engine/rank_jobs.py FAULTS OPTION...

FAULTS is a JSON list of {"do", "rank", "phase", "step", "attempt"}: before optimiser step `step` (0 is the first) of
`phase`, on `rank`, at the launch's restart `attempt`, "kill" sends SIGKILL to the process itself, "exit" leaves it with
status 3, "term" sends it SIGTERM, "nan" makes its losses NaN from there on, "hang" sleeps. In the phase "validation"
every fault is a SIGTERM after the first batch of a validation.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fault_runs import fork_server

from zoominnet.data import Batch, open_split
from zoominnet.engine import run, trainer
from zoominnet.engine.checkpoint import load_model
from zoominnet.engine.distributed import PATIENCE, Ranks, _init_process_group, join_ranks
from zoominnet.engine.inference import predict_split
from zoominnet.engine.update import StepOutcome
from zoominnet.train import main as train_main

Fault = dict[str, Any]


def arm(faults: list[Fault]) -> None:
    """Makes this process fail as `faults` say."""
    train_step = trainer.Phase._train_step
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])

    def step(self: trainer.Phase, batch: Batch, measure: bool) -> Callable[[], StepOutcome]:
        for fault in faults:
            if (fault["rank"], fault["phase"], fault.get("attempt", 0)) != (rank, self.name, attempt):
                continue
            if fault["do"] == "nan" and self.step >= fault["step"]:
                sums = self.model.loss_sums
                self.model.loss_sums = lambda *a, sums=sums: (  # type: ignore[method-assign]
                    {name: value * math.nan for name, value in sums(*a)[0].items()},
                    sums(*a)[1],
                )
                values = train_step(self, batch, measure)
                del self.model.loss_sums
                return values
            if self.step != fault["step"]:
                continue
            if fault["do"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault["do"] == "exit":
                os._exit(3)
            if fault["do"] == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if fault["do"] == "hang":
                time.sleep(600)
        return train_step(self, batch, measure)

    trainer.Phase._train_step = step  # type: ignore[method-assign]
    predict = run.predict_split

    def predict_and_fail(*arguments: Any, progress: Callable[[int], None], **options: Any) -> Any:
        def after_batch(done: int) -> None:
            if ("validation", rank) in [(fault["phase"], fault["rank"]) for fault in faults]:
                os.kill(os.getpid(), signal.SIGTERM)
            progress(done)

        return predict(*arguments, progress=after_batch, **options)

    run.predict_split = predict_and_fail


def predict(run: str, data: str, out: str) -> int:
    """Saves what this rank gets of the detections of all images."""
    with join_ranks("cpu", 60) as ranks:
        model, _ = load_model(Path(run), score_threshold=0.0, max_detections=7)
        found, _ = predict_split(model, open_split(data, "val"), ranks=ranks)
        arrays = [np.column_stack((d.boxes, d.scores, d.labels)) for d in found]
        np.savez(f"{out}/{ranks.size}-{ranks.rank}.npz", *arrays)
    return 0


def exchange_alone(name: str) -> int:
    """All that ranks exchange in a step, in a group of this process alone: by NCCL on a GPU, by Gloo on the CPU.

    `Ranks` exchange nothing when they are told that they are one, so they are told otherwise.
    """
    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    _init_process_group(device, timedelta(seconds=60))
    ranks = Ranks(device, 0, 2, _patient=dist.new_group(backend="gloo", timeout=PATIENCE))
    ranks.wait()
    assert ranks.share({"a": [1, "ü"]}) == {"a": [1, "ü"]}
    assert ranks.sum(torch.tensor([1.5, 2.0], dtype=torch.float64, device=device)).tolist() == [1.5, 2.0]
    expected = None
    for deterministic in (None, False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
        model.to(device).to(memory_format=torch.channels_last)
        module = model if deterministic is None else ranks.wrap(model, deterministic=deterministic)
        for _ in range(3):  # DDP packs the gradients anew after the first
            module.zero_grad()
            module(torch.ones(2, 3, 8, 8, device=device).cumsum(3)).square().sum().backward()
        ranks.share_buffers(model)
        gradients = [parameter.grad.cpu() for parameter in model.parameters()]
        expected = expected or gradients
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other)
    ranks.wait()
    print(f"exchanged by {dist.get_backend()} on {device}")
    dist.destroy_process_group()
    return 0


def collect(out: str) -> int:
    """Saves what this rank gets of values that tell the ranks apart. Of rank 1 alone torchrun's folder says that the run
    had begun, and it comes late to the wait."""
    rank, folder = int(os.environ["RANK"]), Path(out)
    launch = folder / f"launch{rank}"
    launch.mkdir()
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(launch / "attempt_0" / "0" / "error.json")
    if rank == 1:
        (launch / "zoominnet-run-begun").touch()
    with join_ranks("cpu", 60) as ranks:
        if rank == 1:
            time.sleep(0.5)
            (folder / "late").touch()
        ranks.wait()
        norm = torch.nn.BatchNorm2d(1)
        norm.running_mean.fill_(5 + rank)  # type: ignore[union-attr]
        found = {
            "waited": (folder / "late").exists(),
            "begun": ranks.begun,
            "shared": ranks.share({"é": rank}),
            "sum": ranks.sum(torch.tensor([1.0, rank])).tolist(),
            "gathered": [rows.tolist() for rows in ranks.gather(torch.full((2 * rank, 1), rank))],
        }
        ranks.share_buffers(norm)
        found["buffer"] = norm.running_mean.tolist()  # type: ignore[union-attr]
        for deterministic in (False, True):
            layer = torch.nn.Linear(1, 1, bias=False)
            layer.weight.data.fill_(7 + rank)
            wrapped = ranks.wrap(layer, deterministic=deterministic)
            wrapped(torch.tensor([[2.0 + 4 * rank]])).sum().backward()
            found[f"wrapped {deterministic}"] = [layer.weight.item(), layer.weight.grad.item()]  # type: ignore[union-attr]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    return 0


def _rank(
    rank: int,
    size: int,
    port: int,
    faults: list[Fault],
    job: Callable[..., int],
    arguments: tuple[Any, ...],
    talk: Path,
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }  # fmt: skip
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = talk.open("w")
    arm(faults)
    sys.exit(job(*arguments))


def train_in_ranks(
    size: int, options: list[str], talk: Path, faults: list[Fault] | None = None, limit: float = 240
) -> tuple[list[int | None], list[str]]:
    """`run_in_ranks` of the training command."""
    return run_in_ranks(train_main, size, talk, options, faults=faults, limit=limit)


def run_in_ranks(
    job: Callable[..., int],
    size: int,
    talk: Path,
    *arguments: Any,
    faults: list[Fault] | None = None,
    limit: float = 240,
) -> tuple[list[int | None], list[str]]:
    """Calls `job` in `size` processes of this machine, started as torchrun would start them.

    They are forked from a server that has imported everything once.

    Args:
        talk: folder for what they print.
        limit: seconds; who is not done by then is killed and has the exit status None.

    Returns:
        Exit statuses and outputs in order of rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_server()
    talk.mkdir(parents=True, exist_ok=True)
    files = [talk / f"rank{rank}.txt" for rank in range(size)]
    processes = [
        context.Process(target=_rank, args=(rank, size, port, faults or [], job, arguments, files[rank]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit
    statuses: list[int | None] = []
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        statuses.append(process.exitcode)
    for process in processes:
        process.kill()
        process.join()
    return statuses, [file.read_text() for file in files]


if __name__ == "__main__":
    torch.set_num_threads(1)
    arm(json.loads(sys.argv[1]))
    sys.exit(train_main(sys.argv[2:]))
