"""Training by several processes: torchrun starts them, DDP averages their gradients, and here is what stands between.

A *rank* is one process. Ranks share each global batch (`BatchPlan`) and agree by one small sum a step on the loss'
normalisers, on whether the step is finite, and on whether to stop. The first rank alone writes files and speaks.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoominnet.command import DeviceError, choose_device
from zoominnet.errors import EXIT_LOST_RANKS, UserError
from zoominnet.models.interfaces import Backbone

BEGUN, REFUSED = "zoominnet-run-begun", "zoominnet-run-refused"
PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others between steps: while they start, load data or write a checkpoint. One that dies
is noticed at once."""


class LostRanksError(UserError):
    """Another process of the run has ended, or answers no more."""

    exit_status = EXIT_LOST_RANKS


class LaunchError(UserError):
    """The processes were not started in a way that can work."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them: one, unless torchrun started more.

    Every method must be called by all of them, in the same order.

    Attributes:
        device: of this process.
        rank, size: which one this is, of how many.
        begun: torchrun has started this group anew after a failure, and its earlier processes had begun the run.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    begun: bool = False
    _patient: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values`, on `device`, summed over the ranks in place; the same bits on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Returns when every rank has come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self._patient)

    def share(self, value: Any) -> Any:
        """The first rank's `value`, anything that JSON can hold, on every rank."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor(len(text))
        dist.broadcast(length, 0, group=self._patient)
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.first else torch.empty(int(length)).byte()
        dist.broadcast(data, 0, group=self._patient)
        return json.loads(bytes(data.tolist()))

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Every rank's `rows`, [N, ...] on the CPU, N its own, in order of rank."""
        if self.size == 1:
            return [rows]
        counts = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor(len(rows)), group=self._patient)
        padded = rows.new_zeros(max(int(count) for count in counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self._patient)
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    def share_buffers(self, model: nn.Module) -> None:
        """Every rank takes the first one's buffers: BatchNorm's statistics where each has collected its own."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, module: nn.Module, *, deterministic: bool) -> nn.Module:
        """`module` whose gradients are averaged over the ranks; with the first rank's weights and buffers.

        Args:
            module: every parameter that trains takes part in every loss, on every rank.
            deterministic: sum in an order that does not depend on when this process was started.
        """
        if self.size == 1:
            return module
        wrapped = DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=False)
        if deterministic:
            wrapped.register_comm_hook(None, _average_each_gradient)
        return wrapped

    def synchronise_batchnorm(self, model: nn.Module) -> str | None:
        """Makes BatchNorm in training mode see the whole global batch, where torch can (on GPUs).

        Args:
            model: not yet wrapped; changed in place.

        Returns:
            Where it cannot: a line that says what happens instead.
        """
        model.train()
        if self.size == 1 or not any(
            isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules()
        ):
            return None
        if self.device.type == "cuda":
            for name, part in model.named_children():
                if isinstance(part, Backbone):
                    part.synchronise_batchnorm()
                else:
                    setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))
            return None
        return (
            f"BatchNorm trains on each process' share of the batch, so results depend on the number of processes "
            f"({self.size}): torch cannot synchronise BatchNorm on the CPU; give --weights and keep --norm-eval, or use "
            "one process"
        )

    def mark_begun(self) -> None:
        """From here on a restart of the group by torchrun goes on with the run."""
        if (marker := _launch_marker(BEGUN)) is not None and not marker.exists():
            marker.touch()


@contextmanager
def join_ranks(device: str, timeout: float) -> Iterator[Ranks]:
    """Meets the other processes that torchrun started; alone where it did not.

    Args:
        device: as --device; GPUs are given out by LOCAL_RANK.
        timeout: seconds that a rank waits for the others in a step.

    Raises:
        DeviceError, LaunchError: the processes cannot work together here.
        LostRanksError: another process was lost, now or within the context.
    """
    launched = dist.is_torchelastic_launched()
    if not launched and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torchrun did not start this process; start it with torchrun, "
            "or unset WORLD_SIZE"
        )
    own = own_device(device)
    marker = _launch_marker(BEGUN)
    begun = marker is not None and marker.exists()
    if not launched or int(os.environ["WORLD_SIZE"]) == 1:
        yield Ranks(own, begun=begun)
        return
    try:
        _init_process_group(own, timedelta(seconds=timeout))
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        ranks = Ranks(own, dist.get_rank(), dist.get_world_size(), _patient=patient)
        begun_anywhere = any(bool(flag.any()) for flag in ranks.gather(torch.tensor([begun])))
        yield Ranks(own, ranks.rank, ranks.size, begun_anywhere, patient)
        ranks.wait()
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostRanksError(
            f"rank {os.environ['RANK']}: another process of the run was lost ({reason}); the one that ended first says why"
        ) from error


def launch_warnings() -> list[str]:
    """What is unwise in the way that torchrun was started."""
    environment = os.environ.get
    if (
        int(environment("GROUP_WORLD_SIZE", "1")) > 1
        and int(environment("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
        and _uses_agent_store()
    ):
        return [
            "torchrun --max-restarts on several nodes: a restarted group can meet the addresses of dead processes and "
            "hang until it times out; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 wherever torchrun starts"
        ]
    return []


def _uses_agent_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _init_process_group(device: torch.device, timeout: timedelta) -> None:
    """The store that torchrun keeps outlives a restart, and with it the addresses of dead ranks (torch 2.11).

    On one node every process knows the same count of restarts, and a prefix of it gives each group a store of its own.
    The agents of several nodes count for themselves: there the variable of `launch_warnings` makes the store anew.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        store = dist.PrefixStore(f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if store.add("arrived", 1) == size:  # importing torch may take some much longer than others
        store.set("all arrived", "")
    store.wait(["all arrived"], PATIENCE)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )


def own_device(name: str) -> torch.device:
    """The device of this process: with several on a node, a GPU each."""
    device = choose_device(name)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cpu" or local_size == 1:
        return device
    if device.index is not None:
        raise DeviceError(
            f"--device: {name!r} is one GPU for {local_size} processes; give --device cuda, and each takes its own"
        )
    if local_size > torch.cuda.device_count():
        raise DeviceError(
            f"--nproc-per-node: {local_size} processes for {torch.cuda.device_count()} GPUs; start as many as there are "
            "GPUs, or give --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def refused_before() -> bool:
    """Whether an earlier attempt of this launch ended by a user's error; torchrun takes it for a crash and tries again."""
    marker = _launch_marker(REFUSED)
    return marker is not None and marker.exists()


def mark_refused() -> None:
    """Later attempts of this launch need not look at options and data again.

    On several nodes they must, lest the others wait for this one; and once a run is begun, another attempt may do better.
    """
    marker, begun = _launch_marker(REFUSED), _launch_marker(BEGUN)
    if marker is not None and begun is not None and not begun.exists() and os.environ["GROUP_WORLD_SIZE"] == "1":
        marker.touch()


def _launch_marker(name: str) -> Path | None:
    """A file in the folder that torchrun keeps for one launch, over all restarts of its processes.

    A count of restarts would not do: on several nodes an agent does not count the failures of the others, and a folder
    that was refused because it holds another run must be refused again.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is None or error_file == os.devnull or not dist.is_torchelastic_launched():
        return None
    return Path(error_file).parents[2] / name  # <launch>/attempt_<n>/<local rank>/error.json


def _average_each_gradient(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook (which DDP wants annotated, not in strings): sums each gradient by itself.

    DDP packs gradients anew after a process' first step, and the order in which three or more ranks' terms are added
    depends on the place in the pack: a resumed run would differ in the last bit.
    """
    flat = bucket.buffer().div_(dist.get_world_size())
    for part in flat.split([gradient.numel() for gradient in bucket.gradients()]):
        dist.all_reduce(part)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(flat)
    return done


def _is_lost_connection(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or bool(
        re.search(r"gloo|nccl|connection (closed|reset|refused)|socket", str(error), re.IGNORECASE)
    )
