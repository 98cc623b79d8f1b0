"""The queue, the slots and the sizes, worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lit_vlaa.generation.cache import Capacity, capacity, capacity_within
from lit_vlaa.generation.scheduler import Row, Scheduler


def test_rows_come_in_order_and_a_prompt_is_read_with_its_first() -> None:
    scheduler = Scheduler([7, 5, 9], group_size=2, size=Capacity(rows=3, prompts=2))
    first = scheduler.admit(0)
    assert first.prompts == [(7, 0), (5, 1)]
    assert first.rows == [(Row(7, 0), 0, 0), (Row(7, 1), 1, 0), (Row(5, 0), 2, 1)]
    assert scheduler.members() == [[0, 1], [2]]
    scheduler.release([0])
    # The other row of 7 still needs its prompt; 5 is held already.
    assert scheduler.admit(4) == ([], [(Row(5, 1), 0, 1)])
    scheduler.release([2])
    assert scheduler.admit(5).rows == [], "9 must wait for a prompt slot"
    scheduler.release([1])
    assert scheduler.admit(6) == ([(9, 0)], [(Row(9, 0), 1, 0), (Row(9, 1), 2, 0)])
    assert (scheduler.live, scheduler.free, scheduler.queue) == (3, 0, [])
    assert scheduler.longest(10) == 10 - 4


def test_holes_are_filled_from_the_end() -> None:
    scheduler = Scheduler([0, 1, 2], group_size=2, size=Capacity(rows=6, prompts=3))
    scheduler.admit(0)
    scheduler.release([0, 1, 3])
    # Rows 4 and 5 of prompt 2 take slots 0 and 1, row 2 stays; prompt 2 takes slot 0.
    assert scheduler.compact() == ([(4, 0), (5, 1)], [(2, 0)])
    assert (scheduler.used_rows, scheduler.used_prompts) == (3, 2)
    assert scheduler.members() == [[0, 1], [2]] or scheduler.members() == [[1, 0], [2]]
    assert {slot: scheduler.rows[slot] for slot in range(3)} == {0: Row(2, 0), 1: Row(2, 1), 2: Row(1, 0)}


@pytest.mark.parametrize("seed", range(5))
def test_every_row_has_its_turn_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    prompts, group_size, rows = 11, 3, rng.randrange(1, 12)
    scheduler = Scheduler(range(prompts), group_size, capacity(prompts, group_size, rows))
    seen: list[Row] = []
    held: set[int] = set()
    step = 0
    while scheduler.queue or scheduler.live:
        admitted = scheduler.admit(step)
        held |= {prompt for prompt, _ in admitted.prompts}
        assert {row.prompt for row, _, _ in admitted.rows} <= held
        seen += [row for row, _, _ in admitted.rows]
        assert scheduler.live <= rows
        assert len(scheduler.prompts) <= scheduler.size.prompts
        assert scheduler.live, "a queue without room would wait for ever"
        scheduler.release(rng.sample(sorted(scheduler.rows), rng.randrange(1, scheduler.live + 1)))
        if rng.random() < 0.5:
            scheduler.compact()
            assert sorted(scheduler.rows) == list(range(scheduler.live))
        step += 1
    assert seen == [Row(prompt, sample) for prompt in range(prompts) for sample in range(group_size)]


@pytest.mark.parametrize(
    ("prompts", "group_size", "max_rows", "expected"),
    [
        (8, 4, 256, (32, 8)),  # All of it.
        (64, 8, 256, (256, 64)),  # 3 * 32 is more than there are.
        (512, 8, 256, (256, 96)),  # 3 * 32
        (10, 1, 4, (4, 4)),  # A row has one prompt.
        (10, 8, 3, (3, 3)),  # Fewer rows than a group.
    ],
)
def test_slots(prompts: int, group_size: int, max_rows: int, expected: tuple[int, int]) -> None:
    assert capacity(prompts, group_size, max_rows) == Capacity(*expected)


def test_slots_within_a_size() -> None:
    options: dict[str, Any] = {"prompts": 64, "group_size": 4, "token_bytes": 2, "prompt_tokens": 100, "new_tokens": 50}
    # 20 rows of 50 tokens and 3 * 5 prompts of 100: 2500 tokens; with 21 rows 3 * 6 prompts: 2850.
    assert capacity_within(2 * 2849, max_rows=256, **options) == Capacity(20, 15)
    assert capacity_within(2 * 2850, max_rows=256, **options) == Capacity(21, 18)
    assert capacity_within(10**9, max_rows=16, **options) == Capacity(16, 12)
    assert capacity_within(2 * 150, max_rows=16, **options) == Capacity(1, 1)
    with pytest.raises(
        ValueError, match=r"--model\.generator\.memory_gb .*: one completion of 50 tokens after a prompt"
    ):
        capacity_within(2 * 149, max_rows=16, **options)
