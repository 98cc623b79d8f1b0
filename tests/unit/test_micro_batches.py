"""Micro-batches by hand, and what holds for any rows."""

from __future__ import annotations

import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_vlaa.micro_batches import Batching, RowSize, count, divide

LAYOUTS: tuple[Batching, ...] = get_args(Batching)


def rows(*lengths: int) -> list[RowSize]:
    """Rows on their own with a prompt of one token."""
    return [RowSize(1, length - 1, number) for number, length in enumerate(lengths)]


def tokens(part: list[int], sizes: list[RowSize], batching: Batching) -> int:
    """Tokens of a forward pass, padding included."""
    lengths = [sizes[row].prompt + sizes[row].completion for row in part]
    if batching == "padded":
        return len(part) * max(lengths)
    if batching == "packed":
        return sum(lengths)
    prompts = {sizes[row].group: sizes[row].prompt for row in part}
    return sum(prompts.values()) + sum(sizes[row].completion for row in part)


def test_packed_rows_count_without_padding() -> None:
    sizes = rows(4, 4, 6, 6)
    assert count(sizes, 20, "packed") == 1
    assert count(sizes, 20, "padded") == 2  # 4 rows of 6 are 24
    # In order 4 + 4, 6, 6; large ones first 6 + 4 twice.
    assert count(sizes, 10, "packed") == 2
    assert divide(sizes, 2, 10, "packed") == [[0, 2], [1, 3]]


def test_a_shared_prompt_counts_once() -> None:
    # Two groups of three: 10 + 3 * 2 tokens each, against 3 * 12.
    sizes = [RowSize(10, 2, group) for group in (0, 0, 0, 1, 1, 1)]
    assert count(sizes, 32, "shared") == 1
    assert count(sizes, 31, "shared") == 2
    assert divide(sizes, 2, 31, "shared") == [[0, 1, 2], [3, 4, 5]]
    assert count(sizes, 32, "packed") == 3
    assert count(sizes, 72, "packed") == 1


def test_a_group_beyond_the_budget_is_cut_into_branches() -> None:
    # 10 + 2 * 4 = 18 fit, 10 + 3 * 4 = 22 do not: two pieces of two.
    sizes = [RowSize(10, 4, 0)] * 4
    assert count(sizes, 20, "shared") == 2
    assert divide(sizes, 2, 20, "shared") == [[0, 1], [2, 3]]


def test_rows_are_spread_evenly() -> None:
    # First fit would put 8, 2 and 2 together and leave 6 alone; 8 + 2 and 6 + 2 are closer.
    assert divide(rows(8, 6, 2, 2), 2, 12, "packed") == [[0, 3], [1, 2]]


def test_an_even_spread_that_exceeds_the_budget_is_not_taken() -> None:
    # One by one, large ones first, where there is least: 3 + 2 + 2 and 3 + 2. First fit: 3 + 3 and 2 + 2 + 2.
    assert divide(rows(3, 3, 2, 2, 2), 2, 6, "packed") == [[0, 1], [2, 3, 4]]


def test_other_ranks_may_need_more_parts() -> None:
    sizes = [RowSize(10, 2, 0)] * 4
    assert count(sizes, 100, "shared") == 1
    assert divide(sizes, 3, 100, "shared") == [[0], [1], [2, 3]]
    with pytest.raises(ValueError, match=r"divide 4 row\(s\) into 5"):
        divide(sizes, 5, 100, "shared")


@given(
    groups=st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 30), min_size=1, max_size=5)), min_size=1),
    budget=st.integers(1, 120),
    more=st.integers(0, 3),
    batching=st.sampled_from(LAYOUTS),
)
def test_every_row_is_in_one_part_and_no_part_exceeds_the_budget_without_need(
    groups: list[tuple[int, list[int]]], budget: int, more: int, batching: Batching
) -> None:
    sizes = [RowSize(prompt, own, number) for number, (prompt, every) in enumerate(groups) for own in every]
    parts = min(count(sizes, budget, batching) + more, len(sizes))
    division = divide(sizes, parts, budget, batching)
    assert len(division) == parts
    assert all(part == sorted(part) for part in division)
    assert sorted(row for part in division for row in part) == list(range(len(sizes)))
    # One padded row beyond the budget lets the others go up to its length too.
    most = max(budget, *(size.prompt + size.completion for size in sizes)) if batching == "padded" else budget
    for part in division:
        assert part
        assert len(part) == 1 or tokens(part, sizes, batching) <= most


def independent_first_fit(costs: list[int], budget: int) -> list[int]:
    """Loads of first fit from the largest on, by a look at every bin."""
    loads: list[int] = []
    for cost in sorted(costs, reverse=True):
        place = next((number for number, load in enumerate(loads) if load + cost <= budget), len(loads))
        loads += [0] * (place == len(loads))
        loads[place] += cost
    return loads


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), budget=st.integers(1, 100))
def test_rows_go_into_the_first_pass_with_room(lengths: list[int], budget: int) -> None:
    assert count(rows(*lengths), budget, "packed") == len(independent_first_fit(lengths, budget))


def test_work_grows_little_faster_than_rows() -> None:
    """A look at all passes for each row, or at all rows of a group for each of them, would take a minute here."""
    started = time.process_time()
    apart = [RowSize(100, 1 + number % 300, number) for number in range(2**15)]
    together = [RowSize(100, 1 + number % 300, 0) for number in range(2**15)]
    cases: list[tuple[list[RowSize], int, Batching]] = [
        (apart, 500, "packed"),
        (together, 10**9, "shared"),
        (apart, 500, "padded"),
    ]
    for sizes, budget, batching in cases:
        parts = min(2 * count(sizes, budget, batching), len(sizes))
        assert len(divide(sizes, parts, budget, batching)) == parts
    assert time.process_time() - started < 20
