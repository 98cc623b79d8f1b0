from __future__ import annotations

from collections import Counter

import pytest

from callbacks.benchmarks.dynamath import DynaMath
from callbacks.benchmarks.interface import EvalRecord
from callbacks.benchmarks.subsets import stratified
from callbacks.benchmarks.wemath import WeMath


def record(name: str, stratum: str = "", group: str | None = None) -> EvalRecord:
    return EvalRecord(
        id=name,
        images=(),
        prompt="",
        question="",
        kind="text",
        choices=(),
        answer="",
        group=None if group is None else (group, name),
        tags={"subject": stratum, "level": name} if stratum else {},
    )


def singles(**sizes: int) -> list[EvalRecord]:
    return [record(f"{stratum}{number}", stratum) for stratum, size in sizes.items() for number in range(size)]


def strata(records: list[EvalRecord], places: list[int]) -> dict[str, int]:
    return dict(Counter(records[place].tags["subject"] for place in places))


def test_shares_follow_the_largest_remainders() -> None:
    # Of 4 rows in 10, shares are 2.0, 1.2 and 0.8: whole parts 2, 1, 0, and the row left goes to the remainder 0.8.
    records = singles(a=5, b=3, c=2)
    assert strata(records, stratified(records, 4, seed=0)) == {"a": 2, "b": 1, "c": 1}
    # Of 3: 1.5, 0.9, 0.6: whole parts 1, 0, 0, then 0.9 and 0.6.
    assert strata(records, stratified(records, 3, seed=0)) == {"a": 1, "b": 1, "c": 1}
    # Of 2 in four equal strata: 0.5 each; ties go by name.
    even = singles(d=3, c=3, b=3, a=3)
    assert strata(even, stratified(even, 2, seed=0)) == {"a": 1, "b": 1}


@pytest.mark.parametrize("rows", [1, 7, 60, 100, 446])
def test_without_groups_the_number_is_exact(rows: int) -> None:
    records = singles(inductive=107, deductive=93, numerical=95, spatial=79, mechanical=73)
    places = stratified(records, rows, seed=3)
    assert len(set(places)) == len(places) == rows
    assert places == sorted(places)


def test_the_choice_depends_on_seed_and_names_alone() -> None:
    records = singles(a=40, b=20)
    chosen = {records[place].id for place in stratified(records, 12, seed=1)}
    turned = records[::-1]
    assert {turned[place].id for place in stratified(turned, 12, seed=1)} == chosen
    assert {records[place].id for place in stratified(records, 12, seed=2)} != chosen
    # printf '1\0row\0black' | sha256sum begins with 07, less than for the other three names.
    tiny = [record(name) for name in ("red", "green", "blue", "black")]
    assert [tiny[place].id for place in stratified(tiny, 1, seed=1)] == ["black"]


def test_all_rows_where_more_are_wanted_than_there_are() -> None:
    records = singles(a=3, b=1)
    assert stratified(records, 4, seed=0) == stratified(records, 99, seed=0) == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [0, -5])
def test_a_subset_is_not_empty(rows: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 row, got {rows}"):
        stratified(singles(a=3), rows, seed=0)


def test_groups_stay_whole_even_where_their_rows_are_scattered() -> None:
    records = [record(f"{seed}/{variant}", "ab"[seed % 2], f"{seed}") for variant in range(3) for seed in range(10)]
    places = stratified(records, 12, seed=0)
    counted = Counter(records[place].id.split("/")[0] for place in places)
    assert set(counted.values()) == {3}
    assert len(counted) == 4
    assert strata(records, places) == {"a": 6, "b": 6}


def test_a_group_larger_than_the_subset_is_taken_whole() -> None:
    records = [record(f"{seed}/{variant}", "a", f"{seed}") for seed in range(2) for variant in range(10)]
    assert len(stratified(records, 3, seed=0)) == 10


def test_dynamath_gives_20_whole_seeds() -> None:
    benchmark = DynaMath()
    subjects = {"plane geometry": 77, "algebra": 51, "graph theory": 48, "statistics": 325}
    names = [subject for subject, size in subjects.items() for _ in range(size)]
    cells = {"question": "?", "answer": "1", "answer_type": "float", "knowledge_level": "high school"}
    records = [
        benchmark.record_from_row(
            {**cells, "index": f"{seed}-{variant}", "qid": seed, "varid": variant, "subject": subject}
        )
        for seed, subject in enumerate(names)
        for variant in range(1, 11)
    ]
    assert len(records) == 5010
    chosen = [records[place] for place in benchmark.subset(records, 200, seed=0)]
    assert len(chosen) == 200
    assert set(Counter(r.group[0] for r in chosen if r.group).values()) == {10}
    # 20/501 of 77, 51, 48, 325: 3.07, 2.04, 1.92, 12.97.
    assert Counter(r.tags["subject"] for r in chosen) == {
        "plane geometry": 30,
        "algebra": 20,
        "graph theory": 20,
        "statistics": 130,
    }


def wemath(short: int, long: int) -> list[EvalRecord]:
    """Problems of two and of three steps."""
    cells = {"question": "?", "answer": "A", "A": "1", "B": "2"}
    return [
        WeMath().record_from_row({**cells, "index": f"{steps}-{n}-{role}", "ID": n, "key": f"{steps}steps_{role}"})
        for steps, problems in ((2, short), (3, long))
        for n in range(problems)
        for role in ("multi", *range(1, steps + 1))
    ]


@pytest.mark.parametrize(
    ("short", "long", "rows", "problems"),
    [
        # The specification's: 25 * 3 + 10 * 4 = 115. The next ways are 21 + 13 and 29 + 7.
        (360, 165, 115, (25, 10)),
        # 48 * 3 + 22 * 4 = 232 in the proportion 24 : 11 exactly.
        (360, 165, 232, (48, 22)),
        # 1740 rows are one too many, 359 * 3 + 165 * 4 = 1737 are two too few.
        (360, 165, 1739, (360, 165)),
        (360, 165, 1, (1, 0)),
        (360, 165, 4, (0, 1)),
        (5, 0, 7, (2, 0)),
        (0, 5, 7, (0, 2)),
    ],
)
def test_wemath_gives_whole_problems_of_both_lengths(
    short: int, long: int, rows: int, problems: tuple[int, int]
) -> None:
    records = wemath(short, long)
    chosen = [records[place] for place in WeMath().subset(records, rows, seed=0)]
    sizes = Counter(Counter(r.group[0] for r in chosen if r.group).values())
    assert (sizes[3], sizes[4]) == problems
    assert sum(sizes.values()) == sum(problems)


def test_wemath_draws_by_seed() -> None:
    records = wemath(40, 20)
    chosen = [{records[place].id for place in WeMath().subset(records, 23, seed)} for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert WeMath().subset(records, 200, seed=0) == list(range(200))
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        WeMath().subset(records, 0, seed=0)
