from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from callbacks.evaluation.statistics import (
    Interval,
    Pair,
    Table,
    average,
    design_effect,
    interval,
    mcnemar,
    newcombe,
    problems,
    tabulate,
    wilson,
)


def alone(verdicts: str) -> list[Pair]:
    """Pairs that stand alone, from letters: `A` only A right, `B` only B, `2` both, `0` neither."""
    return [Pair(letter in "A2", letter in "B2", place) for place, letter in enumerate(verdicts)]


def grouped(*problems_: str) -> list[Pair]:
    return [Pair(pair.a, pair.b, place) for place, letters in enumerate(problems_) for pair in alone(letters)]


def by_bisection(share: float, n: float, side: int) -> float:
    """An end of the score interval: where the score test of a proportion just rejects, found without its formula."""
    within, beyond = share, (0.0 if side < 0 else 1.0)
    for _ in range(200):
        middle = (within + beyond) / 2
        spread = math.sqrt(middle * (1 - middle) / n)
        rejects = spread == 0 or abs(share - middle) / spread > 1.959963984540054
        within, beyond = (within, middle) if rejects else (middle, beyond)
    return within


def newcombe_again(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Newcombe's interval from the verdicts themselves: a correlation by numpy, score intervals by bisection."""
    a = np.repeat([1, 1, 0, 0], [both, only_a, only_b, neither])
    b = np.repeat([1, 0, 1, 0], [both, only_a, only_b, neither])
    n = len(a)
    phi = 0.0
    if a.std() and b.std():
        phi = float(np.corrcoef(a, b)[0, 1])
        if phi > 0:  # the correction takes n / 2 off the determinant of the table
            determinant = np.linalg.det([[both, only_a], [only_b, neither]])
            phi *= max(1 - n / 2 / determinant, 0.0)
    ends = {}
    for name, share in (("a", float(a.mean())), ("b", float(b.mean()))):
        ends[name] = (share - by_bisection(share, n, -1), by_bisection(share, n, 1) - share)
    (a_down, a_up), (b_down, b_up) = ends["a"], ends["b"]
    difference = float(b.mean() - a.mean())
    down = np.array([b_down, -a_up])
    up = np.array([b_up, -a_down])
    relation = np.array([[1, phi], [phi, 1]])
    return difference - math.sqrt(down @ relation @ down), difference + math.sqrt(up @ relation @ up)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),  # the textbook example of 5 in 10
        (0, 10, 0.0, 0.27754),  # z^2 / (10 + z^2) = 3.84146 / 13.84146
        (10, 10, 0.72246, 1.0),
    ],
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_newcombes_interval_of_a_published_example() -> None:
    # Altman and others, Statistics with Confidence (2000), table 6.2: 14, 5, 0 and 22 of 41; 0.011 to 0.226.
    found = newcombe(Table(14, 0, 5, 22))
    assert found.difference == pytest.approx(5 / 41)
    assert (round(found.low, 3), round(found.high, 3)) == (0.011, 0.226)


@pytest.mark.parametrize(
    "counts",
    [
        (14, 0, 5, 22),
        (40, 12, 20, 28),
        (5, 20, 30, 5),  # they disagree more than chance would have it
        (10, 11, 9, 10),  # a correlation that the correction takes away
        (0, 0, 7, 13),
        (30, 0, 0, 0),
        (0, 0, 0, 30),
        (0, 15, 0, 0),
        (400, 50, 80, 470),
    ],
)
def test_newcombes_interval_beside_one_made_another_way(counts: tuple[int, int, int, int]) -> None:
    found = newcombe(Table(*counts))
    assert (found.low, found.high) == pytest.approx(newcombe_again(*counts), abs=1e-9)
    turned = newcombe(Table(counts[0], counts[2], counts[1], counts[3]))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    assert -1 <= found.low <= found.difference <= found.high <= 1


def test_two_models_that_never_differ_may_still_differ() -> None:
    found = interval(alone("2" * 10 + "0" * 10))
    assert found.difference == 0
    assert found.low < 0 < found.high


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),  # twice the tail exceeds 1
        (5, 0, 0.0625),  # 2 / 2^5
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2^10
        (9, 1, 22 / 1024),
        (2, 6, 74 / 256),  # 2 (1 + 8 + 28) / 2^8
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(("only_a", "only_b"), [(40, 70), (300, 420), (2400, 2610), (0, 900)])
def test_mcnemar_in_whole_numbers(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    assert mcnemar(only_a, only_b) == pytest.approx(float(Fraction(2 * tail, 2**n)), rel=1e-8)


def test_mcnemar_of_what_no_benchmark_holds() -> None:
    assert mcnemar(0, 2_000_000) == 0.0
    assert mcnemar(500_000, 500_000) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("pairs", "effect"),
    [
        (alone("AB20BB"), 1.0),
        # Differences 1 1 | 0 0 around 1/2: (1 + 1) 2 / (2 - 1) = 4 with clusters, (4 / 4) 4 / 3 = 4 / 3 without.
        (grouped("BB", "00"), 3.0),
        # 1 | 0 0 0 around 1/4: (9/16 + 9/16) 2 = 9/4, and (9/16 + 3/16) 4 / 3 = 1.
        (grouped("B", "000"), 2.25),
        (grouped("AB", "AB"), 1.0),  # more even than chance: 0, and never below 1
        (grouped("222", "200", "000"), 3.0),  # nothing to estimate it from: rows in a problem
        (grouped("AB20B"), 5.0),
    ],
    ids=["alone", "alike", "uneven", "even", "same", "one"],
)
def test_design_effect_by_hand(pairs: list[Pair], effect: float) -> None:
    assert design_effect(pairs) == pytest.approx(effect)


def test_rows_of_one_problem_count_for_less() -> None:
    pairs = grouped(*["BBBB", "2222", "0000", "BBBB", "0000"] * 4)
    # Whole problems alike: 80 rows are worth not much more than 20 that stand alone.
    assert interval(pairs) == newcombe(tabulate(pairs).scaled(1 / design_effect(pairs)))
    single = interval(alone("B20B0" * 4))
    found = interval(pairs)
    assert (found.difference, single.difference) == pytest.approx((0.4, 0.4))
    assert found.high - found.low == pytest.approx(single.high - single.low, rel=0.05)
    assert interval(alone("BBBB22220000BBBB0000" * 4)).low > found.low + 0.05


def test_the_interval_is_as_wide_as_a_bootstrap_over_problems() -> None:
    rng = np.random.default_rng(5)
    ease = rng.normal(0, 1.5, (300, 1)) + rng.normal(0, 0.8, (300, 1)) * np.array([[[1]], [[-1]]])
    right = rng.random((2, 300, 6)) < 1 / (1 + np.exp(-ease - np.array([[[0.0]], [[0.5]]])))
    pairs = [Pair(bool(right[0, k, i]), bool(right[1, k, i]), k) for k in range(300) for i in range(6)]
    found = interval(pairs)
    differences = (right[1].astype(float) - right[0]).mean(axis=1)
    means = differences[rng.integers(0, 300, (4000, 300))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert design_effect(pairs) > 1.3
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)


def covered(draw: Callable[[np.random.Generator], list[Pair]], truth: float, runs: int) -> float:
    rng = np.random.default_rng(11)
    found = [interval(draw(rng)) for _ in range(runs)]
    return sum(one.low <= truth <= one.high for one in found) / runs


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    def draw(rng: np.random.Generator, clusters: int = 30, size: int = 6) -> list[Pair]:
        # Whole problems fall to one side: with chance 0.3 B is better at one, with 0.1 A; else nobody is.
        gain = rng.choice([1, -1, 0], clusters, p=[0.3, 0.1, 0.6])
        luck = rng.random((clusters, size))
        return [
            Pair(bool(luck[k, i] < 0.5 - 0.3 * gain[k]), bool(luck[k, i] < 0.5 + 0.3 * gain[k]), k)
            for k in range(clusters)
            for i in range(size)
        ]

    # The true difference: (0.3 - 0.1) 0.6.
    assert 0.92 <= covered(draw, 0.12, 400) <= 0.98
    # The same rows taken for independent promise too much.
    assert covered(lambda rng: [Pair(p.a, p.b, i) for i, p in enumerate(draw(rng))], 0.12, 400) < 0.85


def test_the_average_of_benchmarks() -> None:
    # Down: sqrt(3^2 + 4^2) / 2, up: sqrt(2^2 + 1^2) / 2.
    found = average([Interval(10, 7, 12), Interval(20, 16, 21)])
    assert (found.difference, found.low) == (15, 12.5)
    assert found.high == pytest.approx(15 + math.sqrt(5) / 2)
    assert average([Interval(1, 0, 3)]) == Interval(1, 0, 3)


def test_a_problem_is_right_when_all_of_it_is() -> None:
    whole = problems(grouped("22", "2B", "A2", "0", "B"))
    assert [(pair.a, pair.b) for pair in whole] == [
        (True, True),
        (False, True),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert tabulate(whole) == Table(both=1, only_a=1, only_b=2, neither=1)
