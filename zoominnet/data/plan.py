"""Which samples make up which batch: a pure function of (seed, epoch, step, rank), with no state to save or restore.

A run can resume at any step, and the global batches are the same on any number of ranks
(RELIABILITY.md, section 0, fact 6). Every rank has the same number of steps, so no rank waits for another at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Key = tuple[int, int]
"""(epoch, index): all that a dataset needs to make a training sample."""

PERMUTATION, AUGMENTATION, COMPOSITION = 1, 2, 3
"""What a stream of random numbers is for; the first word of its key, so that streams never coincide."""


def keyed_rng(purpose: int, *key: int) -> np.random.Generator:
    """A generator that depends on nothing but `purpose` and `key` (integers, 0 or greater)."""
    return np.random.default_rng((purpose, *key))


@lru_cache(maxsize=4)
def _epoch_order(num_samples: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    if shuffle:
        order = keyed_rng(PERMUTATION, seed, epoch).permutation(num_samples)
    else:
        order = np.arange(num_samples)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class BatchPlan:
    """The training batches of every epoch.

    Each epoch goes through a permutation keyed by (seed, epoch). The last batch is filled from the start of the same
    permutation, again and again where there are fewer samples than a batch holds.

    Args:
        num_samples: of the dataset, at least 1.
        batch_size: of the global batch, over all ranks; a multiple of `world_size`.
        seed: 0 or greater.
        world_size, rank: number of processes, and which of them this is.
        shuffle: False keeps the dataset's order.

    Raises:
        ValueError: an argument out of range, or a batch that does not divide evenly over the ranks.
    """

    num_samples: int
    batch_size: int
    seed: int
    world_size: int = 1
    rank: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("batch_size", 1), ("seed", 0), ("world_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"BatchPlan: {name} must be at least {least}, got {getattr(self, name)}")
        _check_rank(self.world_size, self.rank)
        if self.batch_size % self.world_size:
            raise ValueError(
                f"BatchPlan: the global batch_size {self.batch_size} does not divide over {self.world_size} processes; "
                f"choose a multiple of {self.world_size}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank."""
        return -(-self.num_samples // self.batch_size)

    def global_indices(self, epoch: int, step: int) -> list[int]:
        """The sample indices of the whole global batch, `batch_size` of them, the same whatever `world_size` is.

        Raises:
            ValueError: `epoch` is negative, or it has no such `step`.
        """
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(
                f"BatchPlan: no step {step} of epoch {epoch}: an epoch has steps 0 to {self.steps_per_epoch - 1}"
            )
        order = _epoch_order(self.num_samples, self.seed, epoch, self.shuffle)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size) % self.num_samples
        return [int(index) for index in order[positions]]

    def indices(self, epoch: int, step: int) -> list[int]:
        """This rank's share of the global batch: `batch_size / world_size` consecutive entries."""
        share = self.batch_size // self.world_size
        return self.global_indices(epoch, step)[self.rank * share : (self.rank + 1) * share]

    def epoch_batches(self, epoch: int, start_step: int = 0) -> EpochBatches:
        """A batch sampler for `torch.utils.data.DataLoader`: this rank's batches from `start_step` to the end.

        `start_step` may equal `steps_per_epoch`: nothing is left of the epoch then.

        Raises:
            ValueError: `epoch` is negative, or `start_step` beyond its end.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"BatchPlan: cannot start epoch {epoch} at step {start_step}: it has {self.steps_per_epoch} steps"
            )
        return EpochBatches(self, epoch, start_step)


@dataclass(frozen=True)
class EpochBatches:
    """The rest of one epoch as lists of keys (epoch, index); see `BatchPlan.epoch_batches`."""

    plan: BatchPlan
    epoch: int
    start_step: int

    def __len__(self) -> int:
        return self.plan.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.plan.steps_per_epoch):
            yield [(self.epoch, index) for index in self.plan.indices(self.epoch, step)]


def shard_indices(num_samples: int, world_size: int = 1, rank: int = 0) -> list[int]:
    """The samples that this rank evaluates: in order, each sample on exactly one rank, shares differing by at most 1."""
    _check_rank(world_size, rank)
    return list(range(rank, num_samples, world_size))


def shard_batches(num_samples: int, batch_size: int, world_size: int = 1, rank: int = 0) -> list[list[int]]:
    """`shard_indices` cut into batches of at most `batch_size` (on this rank): a batch sampler for evaluation.

    Raises:
        ValueError: `batch_size` is not positive, or `rank` not below `world_size`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    shard = shard_indices(num_samples, world_size, rank)
    return [shard[start : start + batch_size] for start in range(0, len(shard), batch_size)]


def _check_rank(world_size: int, rank: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1} for a world_size of {world_size}, got {rank}")
