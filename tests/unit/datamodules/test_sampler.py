from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules.sampler import EpochSampler, ResumableLoader, StridedSampler, deal

ROWS, BATCH = 26, 4
COSTS = [(7 * row) % 11 + 1 for row in range(ROWS)]


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> int:
        return index


def sampler(rank: int = 0, world_size: int = 1, **changes: Any) -> EpochSampler:
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 1, "shuffle": True} | changes
    return EpochSampler(ROWS, rank=rank, world_size=world_size, **options)


def loader(rank: int = 0, world_size: int = 1, workers: int = 0, **changes: Any) -> ResumableLoader:
    return ResumableLoader(
        Numbers(), sampler=sampler(rank, world_size, **changes), num_workers=workers, collate_fn=list
    )


def epochs(loaders: list[ResumableLoader], start: int, stop: int) -> list[list[int]]:
    """Global batches of some epochs, the ranks' shares dealt back together."""
    found: list[list[int]] = []
    for epoch in range(start, stop):
        for one in loaders:
            one.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for shares in zip(*loaders, strict=True):
            found += [[row for rows in zip(*shares, strict=True) for row in rows]]
    return found


def test_an_epoch_is_a_permutation_without_the_last_incomplete_batch() -> None:
    batches = epochs([loader()], 0, 1)
    rows = [row for batch in batches for row in batch]
    assert len(batches) == len(loader()) == 6
    assert len(set(rows)) == len(rows) == 24
    assert set(rows) < set(range(26))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(5)
    first = epochs([loader()], 0, 2)
    torch.manual_seed(6)
    assert epochs([loader()], 0, 2) == first
    assert first[:6] != first[6:]
    assert epochs([loader(seed=2)], 0, 2) != first
    assert epochs([loader(shuffle=False)], 3, 4) == [list(range(n, n + 4)) for n in range(0, 24, 4)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_each_global_batch_interleaved(world_size: int) -> None:
    loaders = [loader(rank, world_size) for rank in range(world_size)]
    assert {len(one) for one in loaders} == {6}
    assert epochs(loaders, 0, 2) == epochs([loader()], 0, 2)
    order = sampler().order()
    assert list(sampler(1, world_size))[:2] == [order[1], order[1 + world_size]]


def test_the_dearest_row_goes_to_the_rank_with_least() -> None:
    # 9 | 7, then 6 to the second (7 < 9): 13, 5 to the first: 14, 3 to the second: 16, full; 1 to the first: 15.
    assert deal([1, 3, 5, 6, 7, 9], 2) == [[0, 2, 5], [1, 3, 4]]
    # 20 | 3 + 2 + 1: the second is full, and the first takes the rest, though it has most.
    assert deal([20, 3, 2, 1, 1, 1], 2) == [[0, 4, 5], [1, 2, 3]]
    # Equal costs are dealt in turn.
    assert deal([5] * 6, 3) == [[0, 3], [1, 4], [2, 5]]


@given(
    ranks=st.integers(1, 6), each=st.integers(1, 8), costs=st.lists(st.integers(0, 10_000), min_size=48, max_size=48)
)
def test_dealing_by_costs_is_even_in_number_and_no_worse_than_in_turn(ranks: int, each: int, costs: list[int]) -> None:
    del costs[ranks * each :]
    dealt = deal(costs, ranks)
    assert [len(places) for places in dealt] == [each] * ranks
    assert all(places == sorted(places) for places in dealt)
    assert sorted(place for places in dealt for place in places) == list(range(len(costs)))
    in_turn = max(sum(costs[rank::ranks]) for rank in range(ranks))
    assert max(sum(costs[place] for place in places) for places in dealt) <= in_turn + max(costs)


@pytest.mark.parametrize("world_size", [2, 4])
def test_with_costs_the_ranks_share_the_same_global_batches(world_size: int) -> None:
    loaders = [loader(rank, world_size, costs=COSTS) for rank in range(world_size)]
    whole = epochs([loader()], 0, 1)
    dearest: dict[str, int] = {"by costs": 0, "in turn": 0}
    for batch, own in zip(whole, zip(*loaders, strict=True), strict=True):
        assert sorted(row for rows in own for row in rows) == sorted(batch)
        assert {len(rows) for rows in own} == {BATCH // world_size}
        in_turn = [batch[rank::world_size] for rank in range(world_size)]
        for rows in own:
            assert rows == sorted(rows, key=batch.index), "the epoch's order within a rank"
        for name, shares in (("by costs", own), ("in turn", in_turn)):
            dearest[name] += max(sum(COSTS[row] for row in rows) for rows in shares)
    # With a row for each rank there is nothing to choose.
    assert (dearest["by costs"] < dearest["in turn"]) == (world_size < BATCH)


def test_on_one_rank_costs_change_nothing() -> None:
    assert epochs([loader(costs=COSTS)], 0, 2) == epochs([loader()], 0, 2)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_restart_deals_the_rest_alike_and_any_number_of_ranks_takes_over(world_size: int) -> None:
    def global_batches(loaders: list[ResumableLoader]) -> list[list[list[int]]]:
        return [list(own) for own in zip(*loaders, strict=True)]

    straight = [loader(rank, 2, costs=COSTS) for rank in range(2)]
    whole = global_batches(straight)
    stopped = loader(0, 2, costs=COSTS)
    batches = iter(stopped)
    next(batches), next(batches)
    state = stopped.state_dict()
    resumed = [loader(rank, world_size, costs=COSTS) for rank in range(world_size)]
    for one in resumed:
        one.load_state_dict(state)
    rest = global_batches(resumed)
    if world_size == 2:
        assert rest == whole[2:]
    merged = [[sorted(row for rows in own for row in rows) for own in found] for found in (rest, whole[2:])]
    assert merged[0] == merged[1]


def test_costs_are_one_a_row() -> None:
    with pytest.raises(ValueError, match="25 costs for 26 rows"):
        sampler(costs=COSTS[:25])


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 3), (2, 4), (0, 1)])
def test_a_batch_that_ranks_cannot_share_is_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        sampler(0, world_size, batch_size=batch_size)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 5, 6])
def test_a_restart_goes_on_where_the_loop_was_whatever_the_workers_had_ready(workers: int, done: int) -> None:
    whole = epochs([loader()], 1, 3)
    one = loader(workers=workers)
    one.sampler.set_epoch(1)  # type: ignore[attr-defined]
    batches = iter(one)
    assert [next(batches) for _ in range(done)] == whole[:done]
    state = one.state_dict()
    assert state == {"epoch": 1, "batches": done, "rows": 26, "batch_size": 4, "seed": 1}
    del batches
    other = loader(workers=workers)
    other.load_state_dict(state)
    assert len(other) == 6
    if done < 6:
        assert epochs([other], 1, 3) == whole[done:]
    else:
        assert epochs([other], 2, 3) == whole[6:]


def test_the_world_size_may_change_at_a_restart() -> None:
    whole = epochs([loader()], 0, 1)
    first = [loader(rank, 2) for rank in range(2)]
    iterators = [iter(one) for one in first]
    for _ in range(2):
        for iterator in iterators:
            next(iterator)
    state = first[0].state_dict()
    second = [loader(rank, 4) for rank in range(4)]
    for one in second:
        one.load_state_dict(state)
    assert epochs(second, 0, 1) == whole[2:]


def test_a_loader_that_was_not_started_keeps_its_place() -> None:
    one = loader()
    one.load_state_dict(one.state_dict() | {"epoch": 3, "batches": 2})
    iter(one)
    iter(one)
    assert one.state_dict()["batches"] == 2
    assert len(list(one)) == 4
    one.sampler.set_epoch(4)  # type: ignore[attr-defined]
    assert one.state_dict()["batches"] == 0
    assert one.state_dict()["epoch"] == 4


@pytest.mark.parametrize("change", [{"rows": 27}, {"batch_size": 2}, {"seed": 9}])
def test_a_place_counted_over_other_data_is_refused(change: dict[str, int]) -> None:
    one = loader()
    with pytest.raises(ValueError, match=next(iter(change))):
        one.load_state_dict(one.state_dict() | change)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(workers=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_rows_are_dealt_in_turn() -> None:
    dealt = [list(StridedSampler(6, rank=rank, world_size=3)) for rank in range(3)]
    assert dealt == [[0, 3], [1, 4], [2, 5]]
    assert len(StridedSampler(6, rank=0, world_size=4)) == 2
