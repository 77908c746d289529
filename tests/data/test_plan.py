"""The batch plan, against its promises: equal steps, the same global batches for any number of ranks, exact resume."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from zoominnet.data.plan import BatchPlan, shard_batches, shard_indices

numbers = st.integers(1, 17)
worlds = st.sampled_from([1, 2, 3, 4])
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 1000)


def plans(num_samples: int, batch: int, seed: int, world: int, shuffle: bool = True) -> list[BatchPlan]:
    return [BatchPlan(num_samples, batch, seed, world, rank, shuffle) for rank in range(world)]


@pytest.mark.parametrize("world", range(1, 5))
@pytest.mark.parametrize("num_samples", range(1, 18))
@given(share=st.integers(1, 5), seed=seeds, epoch=epochs)
@settings(deadline=None, max_examples=10)
def test_f17_every_rank_has_the_same_steps_and_every_sample_is_seen(
    num_samples: int, share: int, world: int, seed: int, epoch: int
) -> None:
    batch = share * world
    ranks = plans(num_samples, batch, seed, world)
    steps = {plan.steps_per_epoch for plan in ranks}
    assert steps == {-(-num_samples // batch)}
    assert {len(plan.epoch_batches(epoch)) for plan in ranks} == steps
    batches = [list(plan.epoch_batches(epoch)) for plan in ranks]
    assert all(len(keys) == share for rank in batches for keys in rank)
    assert all(key_epoch == epoch for rank in batches for keys in rank for key_epoch, _ in keys)
    seen = Counter(index for rank in batches for keys in rank for _, index in keys)
    assert set(seen) == set(range(num_samples))
    assert sum(seen.values()) == steps.pop() * batch
    assert max(seen.values()) - min(seen.values()) <= 1  # wrapping repeats nothing more than needed


@given(num_samples=numbers, batch=st.sampled_from([8, 16, 24]), seed=seeds, epoch=epochs)
@settings(deadline=None)
def test_f18_global_batches_do_not_depend_on_the_world_size(
    num_samples: int, batch: int, seed: int, epoch: int
) -> None:
    alone = BatchPlan(num_samples, batch, seed)
    for step in range(alone.steps_per_epoch):
        whole = alone.indices(epoch, step)
        for world in (1, 2, 4, 8):
            ranks = plans(num_samples, batch, seed, world)
            assert [index for plan in ranks for index in plan.indices(epoch, step)] == whole
            assert all(plan.global_indices(epoch, step) == whole for plan in ranks)


@given(num_samples=numbers, share=st.integers(1, 3), world=worlds, seed=seeds, epoch=epochs, data=st.data())
@settings(deadline=None)
def test_resuming_gives_the_same_tail(
    num_samples: int, share: int, world: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    for plan in plans(num_samples, share * world, seed, world):
        start = data.draw(st.integers(0, plan.steps_per_epoch))
        whole = list(plan.epoch_batches(epoch))
        rest = plan.epoch_batches(epoch, start)
        assert list(rest) == whole[start:]
        assert len(rest) == len(whole) - start


def test_last_batch_wraps_to_the_start_of_the_same_epoch() -> None:
    plan = BatchPlan(5, 4, seed=1, shuffle=False)
    assert [plan.indices(3, step) for step in range(2)] == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert BatchPlan(2, 5, seed=1, shuffle=False).indices(0, 0) == [0, 1, 0, 1, 0]
    shuffled = BatchPlan(5, 4, seed=1)
    first, second = shuffled.indices(0, 0), shuffled.indices(0, 1)
    assert second[1:] == first[:3]
    assert sorted(first + second[:1]) == [0, 1, 2, 3, 4]


def test_order_changes_with_epoch_and_seed_and_nothing_else() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return BatchPlan(100, 100, seed).indices(epoch, 0)

    orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    assert order(0, 1) == order(0, 1)
    # Every position is about equally likely to hold sample 0: 1000 epochs, 10 positions, 5 standard deviations.
    places = Counter(BatchPlan(10, 10, seed=0).indices(epoch, 0).index(0) for epoch in range(1000))
    assert all(abs(count - 100) < 5 * 9.5 for count in places.values())


def test_plan_is_a_batch_sampler_of_the_stock_loader() -> None:
    plan = BatchPlan(3, 2, seed=0, shuffle=False)

    class Echo:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
            return key

    loader = DataLoader(Echo(), batch_sampler=plan.epoch_batches(7), collate_fn=list)  # type: ignore[arg-type]
    assert list(loader) == [[(7, 0), (7, 1)], [(7, 2), (7, 0)]]
    assert len(loader) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"batch_size": 6, "world_size": 4}, "6 does not divide over 4 processes; choose a multiple of 4"),
        ({"world_size": 2, "rank": 2}, "rank must be 0 to 1"),
        ({"world_size": 0}, "world_size must be at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchPlan(**({"num_samples": 8, "batch_size": 4, "seed": 0} | arguments))


def test_steps_outside_the_epoch_are_refused() -> None:
    plan = BatchPlan(5, 2, seed=0)
    for epoch, step in ((0, 3), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match="steps 0 to 2"):
            plan.indices(epoch, step)
    with pytest.raises(ValueError, match="it has 3 steps"):
        plan.epoch_batches(0, 4)


@given(num_samples=st.integers(0, 17), world=worlds, batch=st.integers(1, 5))
def test_evaluation_takes_each_sample_once(num_samples: int, world: int, batch: int) -> None:
    shards = [shard_indices(num_samples, world, rank) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(num_samples))
    assert all(shard == sorted(shard) for shard in shards)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for rank, shard in enumerate(shards):
        batches = shard_batches(num_samples, batch, world, rank)
        assert [index for group in batches for index in group] == shard
        assert all(len(group) == batch for group in batches[:-1])
        assert all(1 <= len(group) <= batch for group in batches)


def test_bad_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="rank must be 0 to 1"):
        shard_indices(5, 2, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        shard_batches(5, 0)
