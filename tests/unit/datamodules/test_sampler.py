from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.sampler import EpochSampler, ResumableLoader, StridedSampler

ROWS, BATCH = 26, 4


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
