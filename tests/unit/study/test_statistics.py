from __future__ import annotations

import math

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from lit_vlaa.study.quantities import variance_without_difference
from lit_vlaa.study.statistics import Estimate, Values, estimate, estimate_of_seeds, holm, pooled, t_p_value, t_quantile
from lit_vlaa.study.tables import Stratum


def array(*rows: list[float]) -> Values:
    return np.array(rows, dtype=np.float64)


def ends(found: Estimate) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


# Two-sided 5% points of Student's t as tables print them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 60: 2.000, 120: 1.980}


@pytest.mark.parametrize(("df", "point"), TABLE.items())
def test_quantiles_are_those_of_published_tables(df: int, point: float) -> None:
    assert round(t_quantile(df), 3) == point
    assert t_p_value(t_quantile(df), df) == pytest.approx(0.05, rel=1e-10)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert t_quantile(math.inf) == 1.959963984540054
    assert t_p_value(1.959963984540054, math.inf) == pytest.approx(0.05, rel=1e-12)
    assert t_quantile(9.9e6) == pytest.approx(1.95996, abs=1e-5)


@pytest.mark.parametrize("df", [1, 1.7, 2, 3.5, 10, 100, 12345.6])
@pytest.mark.parametrize("t", [1e-3, 0.5, -2.0, 6.0, 60.0])
def test_p_values_beside_mpmath(t: float, df: float) -> None:
    x = mpmath.mpf(df) / (df + mpmath.mpf(t) ** 2)
    assert t_p_value(t, df) == pytest.approx(float(mpmath.betainc(df / 2, 0.5, 0, x, regularized=True)), rel=1e-9)


def test_t_of_zero_is_sure() -> None:
    assert t_p_value(0.0, 3) == 1.0


def test_rows_and_seeds_by_hand() -> None:
    # Seeds [1, 0, 1] and [1, 0, 0]: means over seeds [1, 0, 1/2], over rows 2/3 and 1/3.
    # Rows: variance 1/4 of three numbers, over 3 = 1/12. Seeds: variance 1/18 of two, over 2 = 1/36.
    found = estimate(array([1, 0, 1], [1, 0, 0]))
    assert found.value == pytest.approx(1 / 2)
    assert found.stderr_rows == pytest.approx(math.sqrt(1 / 12))
    assert found.stderr_seeds == pytest.approx(math.sqrt(1 / 36))
    assert found.stderr == pytest.approx(1 / 3)
    # Welch and Satterthwaite: (1/9)^2 / ((1/12)^2 / 2 + (1/36)^2 / 1) = 16/1296 / (4.5/1296 + 1/1296) = 32/11.
    assert found.df == pytest.approx(32 / 11)
    half = t_quantile(32 / 11) / 3
    assert ends(found) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.p == pytest.approx(t_p_value(1.5, 32 / 11))
    assert (found.rows, found.clusters, found.seeds) == (3, 3, 2)


def test_one_seed_has_the_error_of_rows_alone() -> None:
    # The textbook's interval of a mean: 2 +- 4.3027 * sqrt(1 / 3).
    found = estimate(array([1, 2, 3]))
    assert found.stderr_seeds is None
    assert found.df == 2
    assert ends(found) == pytest.approx((2 - 4.30265273 / math.sqrt(3), 2 + 4.30265273 / math.sqrt(3)))


def test_clusters_by_hand() -> None:
    # Pairs of rows that say the same are worth one: means 0, 1, 1 of three clusters, as of three rows.
    by_cluster = estimate(array([0, 0, 1, 1, 1, 1]), clusters=["a", "a", "b", "b", "c", "c"])
    assert by_cluster.stderr == pytest.approx(estimate(array([0, 1, 1])).stderr)
    assert by_cluster.clusters == 3
    assert by_cluster.df == 2
    # Off the mean 2/3 in sum: -4/3, 2/3, 2/3; 3/2 * (16 + 4 + 4)/9 / 36 = 1/9.
    assert by_cluster.stderr == pytest.approx(1 / 3)


def test_unequal_clusters_by_hand() -> None:
    # Mean 2/4; cluster a of three rows is 1/2 off in sum, b of one row -1/2: 2 * (1/4 + 1/4) / 16 = 1/16.
    found = estimate(array([1, 1, 0, 0]), clusters=[0, 0, 0, 1])
    assert found.stderr == pytest.approx(1 / 4)


def test_sets_have_equal_weight() -> None:
    # Set a: mean 1/2 of two rows, variance of it 1/4; set b: mean 3 of three rows, variance of it 1/3.
    found = estimate(array([0, 1, 2, 3, 4]), strata=["a", "a", "b", "b", "b"])
    assert found.value == pytest.approx(1.75)
    assert found.stderr == pytest.approx(math.sqrt((1 / 4 + 1 / 3) / 4))
    assert found.df == 3


def test_rows_that_all_say_the_same_are_no_proof() -> None:
    # The error is that of one row in n + 1 being off by 1.
    found = estimate(array([0.0] * 9), span=1.0, bounds=(0.0, 1.0))
    assert found.stderr == pytest.approx(1 / 10)
    assert ends(found) == pytest.approx((0.0, t_quantile(8) / 10))
    assert found.p == 1.0
    always = estimate(array([1.0] * 9))
    assert always.stderr == pytest.approx(1 / 10)
    assert always.p == pytest.approx(t_p_value(10, 8))
    never = estimate(array([0.0] * 9))
    assert ends(never) == (0.0, 0.0)
    assert never.p == 1.0


def test_one_row_or_one_cluster_has_no_interval() -> None:
    for found in (estimate(array([1.0], [0.0])), estimate(array([1.0, 0.0]), clusters=["a", "a"])):
        assert found.value == 0.5
        assert (found.low, found.high, found.p) == (None, None, None)


def test_bounds_cut_the_interval() -> None:
    assert ends(estimate(array([0, 0, 0, 1]), bounds=(0.0, 1.0)))[0] == 0.0
    assert ends(estimate(array([0, 0, 0, 1])))[0] < 0


@pytest.mark.parametrize(
    "values", [np.zeros((0, 3)), np.zeros(3), np.array([[math.nan, 1.0]])], ids=["empty", "flat", "nan"]
)
def test_what_is_no_table_of_numbers_is_refused(values: Values) -> None:
    with pytest.raises(ValueError, match="an estimate takes"):
        estimate(values)


def test_labels_must_be_one_a_row() -> None:
    with pytest.raises(ValueError, match="2 rows have 1 labels"):
        estimate(array([1, 2]), clusters=["a"])


def test_curves_have_seeds_alone() -> None:
    # Mean 2, variance 1 of three: 2 +- 4.3027 / sqrt(3).
    found = estimate_of_seeds([1.0, 2.0, 3.0])
    assert ends(found) == pytest.approx((2 - 4.30265273 / math.sqrt(3), 2 + 4.30265273 / math.sqrt(3)))
    assert found.df == 2
    assert found.rows == 0
    one = estimate_of_seeds([1.0])
    assert (one.value, one.low, one.p) == (1.0, None, None)
    # Two equal numbers tell nothing of the spread of seeds, least of all that there is none.
    same = estimate_of_seeds([0.3, 0.3])
    assert (same.value, same.low, same.high, same.p) == (0.3, None, None, None)


def test_pooled_by_hand() -> None:
    # Rows: mean of the variances 0.04; seeds: variance 0.02 of two numbers, over 2 = 0.01.
    found = pooled([0.2, 0.4], [0.03, 0.05], rows=11)
    assert found.value == pytest.approx(0.3)
    assert found.stderr == pytest.approx(math.sqrt(0.05))
    assert found.df == pytest.approx(0.05**2 / (0.04**2 / 10 + 0.01**2))
    with pytest.raises(ValueError, match="one value and one variance a seed"):
        pooled([0.1], [], rows=3)


def test_variance_of_equal_rates_by_hand() -> None:
    # Three rows with the property, two without, two wrong: 3 * 2 * 2 * 3 / (25 * 4) = 0.36, weight 6/5.
    assert variance_without_difference([Stratum(3, 2, 2, 0)]) == pytest.approx(0.36 / 1.2**2)
    assert variance_without_difference([Stratum(3, 2, 2, 0), Stratum(5, 5, 0, 0)]) == pytest.approx(0.36 / 1.2**2)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 = 0.03, 0.04, 0.04.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # A later one is never below an earlier one, and none above 1.
    assert holm([0.03, 0.029, 0.9]) == pytest.approx([0.087, 0.087, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_row", "rest"),
    [
        pytest.param(3, 0.0, 1.0, 0.0, id="rows"),
        pytest.param(3, 0.12, 1.0, 1.0, id="all"),
        pytest.param(3, 0.3, 1.0, 1.0, id="seeds"),
        pytest.param(3, 0.0, 0.0, 1.0, id="rest"),
        pytest.param(5, 0.07, 1.0, 0.5, id="five-seeds"),
        pytest.param(2, 0.12, 1.0, 1.0, id="two-seeds"),
    ],
)
def test_intervals_cover_the_truth(seeds: int, of_seed: float, of_row: float, rest: float) -> None:
    # 1,500 studies: the share that covers is known to +-1.1%. Nominal is 95%; where most of the variance is the rest's,
    # which both parts count, 99%.
    generator = np.random.default_rng(5)
    draws, rows = 1500, 150
    covered = 0
    for _ in range(draws):
        part = of_seed * generator.normal(size=(seeds, 1)) + of_row * generator.normal(size=(1, rows))
        low, high = ends(estimate(0.25 + part + rest * generator.normal(size=(seeds, rows))))
        covered += low <= 0.25 <= high
    assert 0.925 <= covered / draws <= 0.995


def test_p_values_are_as_small_as_they_should_be_without_a_difference() -> None:
    generator = np.random.default_rng(6)
    found = []
    for _ in range(1000):
        a, b = (0.1 * generator.normal(size=(3, 1)) + generator.normal(size=(3, 120)) for _ in range(2))
        found.append(estimate(a - b).p)
    assert sum(p is not None and p < 0.05 for p in found) / len(found) <= 0.055


def test_clusters_widen_what_shares_a_picture() -> None:
    # Three questions a picture, all answered alike: without clusters a quarter of the studies would miss the truth.
    generator = np.random.default_rng(7)
    covered, narrow = 0, 0
    for _ in range(1000):
        values = np.repeat(generator.normal(size=(1, 60)), 3, axis=1)
        low, high = ends(estimate(values, clusters=[place // 3 for place in range(180)]))
        covered += low <= 0 <= high
        low, high = ends(estimate(values))
        narrow += low <= 0 <= high
    assert 0.93 <= covered / 1000 <= 0.97
    assert narrow / 1000 < 0.8
