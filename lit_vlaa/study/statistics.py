"""Means, differences and intervals of a study: several seeds, each of which answers the same rows.

A value `y[s, i]` is taken for a sum of a common mean, a part of the seed, a part of the row and the rest; seeds and
rows (or clusters of rows that share a picture or a problem) are drawn independently. The variance of the grand mean is
put together from two parts:

- rows: sample variance over rows of their means over seeds, divided by the number of rows,
- seeds: sample variance over seeds of their means over rows, divided by the number of seeds.

Each holds the rest's share too, so that it is counted twice, which makes intervals wider than need be (an estimate
without it would subtract a number that three seeds barely determine). Intervals and p-values are Student's, with the
degrees of freedom of Welch and Satterthwaite, an approximation that is a little bold where both parts are of one size.
Simulated with 2 to 5 seeds, the 95% intervals hold the true value in 93 to 99% of studies. With a single seed only rows
are accounted for.

Everything here is arithmetic on arrays; nothing is known of files or arms.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of all intervals."""

_PRECISION = 1e-14
_NORMAL_QUANTILE = 1.959963984540054
_MANY = 1e7
"""Degrees of freedom from which Student's distribution is taken for the normal one."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a difference with its uncertainty."""

    value: float
    low: float | None
    """End of the 95% interval; None where nothing can be said (a single row, or a single seed of a curve)."""
    high: float | None
    p: float | None
    """Two-sided, against 0, for this number alone; None where there is no interval."""
    stderr: float | None
    df: float | None
    """Degrees of freedom (Welch-Satterthwaite)."""
    rows: int
    """Rows that went into it, 0 for numbers that have none (curves)."""
    clusters: int
    """Rows that stand alone, and groups of rows that do not."""
    seeds: int
    stderr_rows: float | None = None
    stderr_seeds: float | None = None
    """None with one seed."""


def estimate(
    values: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    span: float = 0.0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean over seeds and rows, with its interval.

    Args:
        values: `[seeds, rows]`, without NaN: scores, or paired differences of scores.
        clusters: Of each row, what it has in common with others (None: every row stands alone).
        strata: Of each row, the set that it belongs to: the mean is that of the sets' means, each of equal weight.
        span: How far off one more row could be. Where all rows of a set say the same their variance is no estimate:
            the error is then that of one row in n + 1 being off by `span` (or, where it is 0, by the mean itself).
        bounds: Of what is possible; the interval is cut there.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"an estimate takes [seeds, rows] values, got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("an estimate takes finite values")
    seeds, rows = values.shape
    cluster_of = _codes(clusters, rows)
    parts = [np.flatnonzero(_codes(strata, rows, one=True) == code) for code in range(_count(strata))]
    variance_rows, df_rows, total_clusters = 0.0, 0, 0
    by_seed = np.zeros(seeds)
    for columns in parts:
        part = values[:, columns]
        variance, count = _variance_of_mean(part.mean(axis=0), cluster_of[columns], span)
        variance_rows += variance / len(parts) ** 2
        df_rows += count - 1
        total_clusters += count
        by_seed += part.mean(axis=1) / len(parts)
    value = float(by_seed.mean())
    variance_seeds = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else None
    return _finish(
        value, variance_rows, float(df_rows), variance_seeds, seeds, rows=rows, clusters=total_clusters, bounds=bounds
    )


def estimate_of_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one number a seed, such as the end of a training curve; seeds are all of its uncertainty.

    Where all seeds say the same their spread is not known, and there is no interval.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError("an estimate takes one finite value a seed")
    seeds = len(numbers)
    variance = float(numbers.var(ddof=1)) / seeds if seeds > 1 and np.ptp(numbers) > 0 else None
    return _finish(float(numbers.mean()), 0.0, 0.0, variance, seeds, rows=0, clusters=0)


def pooled(values: Sequence[float], variances: Sequence[float], *, rows: int) -> Estimate:
    """The mean over seeds of a number that comes with a variance over rows (a stratified difference of risks).

    All seeds answer the same rows, so that their mean is not taken for better determined by rows than one seed is.

    Args:
        values: One a seed.
        variances: Of each, over rows.
        rows: Of one seed.
    """
    if not values or len(values) != len(variances):
        raise ValueError(f"one value and one variance a seed, got {len(values)} and {len(variances)}")
    numbers, seeds = np.asarray(values, dtype=np.float64), len(values)
    variance_seeds = float(numbers.var(ddof=1)) / seeds if seeds > 1 else None
    variance_rows = float(np.mean(np.asarray(variances, dtype=np.float64)))
    return _finish(
        float(numbers.mean()), variance_rows, float(rows - 1), variance_seeds, seeds, rows=rows, clusters=rows
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: with all results below 0.05, one or more of them is false in at most 5% of studies.

    Returns:
        The adjusted p-values in the given order, never below what was given nor above 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def t_p_value(t: float, df: float) -> float:
    """How likely Student's t with `df` degrees of freedom is as far from 0 as this, on either side."""
    if df >= _MANY:
        return math.erfc(abs(t) / math.sqrt(2))
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5) if t else 1.0


def t_quantile(df: float) -> float:
    """The t that is exceeded, on either side, with probability 0.05.

    Newton's steps from the normal quantile, which lies below; they rise towards the solution since the tail is convex.
    """
    t, alpha = _NORMAL_QUANTILE, 1 - LEVEL
    if df >= _MANY:
        return t
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(200):
        step = (t_p_value(t, df) - alpha) / (2 * scale * (1 + t * t / df) ** (-(df + 1) / 2))
        t += step
        if step < _PRECISION * t:
            break
    return t


def _finish(
    value: float,
    variance_rows: float,
    df_rows: float,
    variance_seeds: float | None,
    seeds: int,
    *,
    rows: int,
    clusters: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Puts both parts of the variance together."""
    known = (df_rows > 0 or not rows) and math.isfinite(variance_rows) and (rows > 0 or variance_seeds is not None)
    if not known:
        return Estimate(value, None, None, None, None, None, rows, clusters, seeds)
    seeds_part = variance_seeds or 0.0
    variance = variance_rows + seeds_part
    weights = (variance_rows**2 / df_rows if rows else 0.0) + (seeds_part**2 / (seeds - 1) if seeds > 1 else 0.0)
    df = variance**2 / weights if weights else (df_rows if rows else float(seeds - 1))
    stderr = math.sqrt(variance)
    half = t_quantile(df) * stderr
    p = t_p_value(value / stderr, df) if stderr else float(value == 0)
    return Estimate(
        value=value,
        low=max(value - half, bounds[0]),
        high=min(value + half, bounds[1]),
        p=p,
        stderr=stderr,
        df=df,
        rows=rows,
        clusters=clusters,
        seeds=seeds,
        stderr_rows=math.sqrt(variance_rows) if rows else None,
        stderr_seeds=None if variance_seeds is None else math.sqrt(variance_seeds),
    )


def _variance_of_mean(means: Values, clusters: NDArray[np.int64], span: float) -> tuple[float, int]:
    """Variance of the mean of `means` under clusters (linearised), infinite for one cluster; and their number."""
    codes = np.unique(clusters, return_inverse=True)[1]
    count, rows, mean = int(codes.max()) + 1, len(means), float(means.mean())
    if count == 1:
        return math.inf, 1
    off = np.bincount(codes, weights=means - mean)
    squares = float(off @ off)
    if squares <= (_PRECISION * max(1.0, abs(mean)) * rows) ** 2:
        return ((span or abs(mean)) / (count + 1)) ** 2, count
    return count / (count - 1) * squares / rows**2, count


def _codes(labels: Sequence[Hashable] | None, rows: int, *, one: bool = False) -> NDArray[np.int64]:
    """A number for each different label; without labels all the same (`one`) or all different."""
    if labels is None:
        return np.zeros(rows, dtype=np.int64) if one else np.arange(rows, dtype=np.int64)
    if len(labels) != rows:
        raise ValueError(f"{rows} rows have {len(labels)} labels")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def _count(labels: Sequence[Hashable] | None) -> int:
    return 1 if labels is None else len(set(labels))


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function by its continued fraction (DLMF 8.17.22, evaluated from the front)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the complement converges faster (DLMF 8.17.4)
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    numerator, denominator, fraction = 1.0, 0.0, 1.0
    for place in range(1, 1000):
        term = _beta_term(place, x, a, b)
        denominator = 1 / (1 + term * denominator)
        numerator = 1 + term / numerator
        factor = numerator * denominator
        fraction *= factor
        if abs(factor - 1) < _PRECISION:
            break
    return math.exp(log_front) / (a * fraction)


def _beta_term(place: int, x: float, a: float, b: float) -> float:
    """Numerator `place` of the continued fraction 1 + d1/(1 + d2/(1 + ...)), whose inverse DLMF 8.17.22 has."""
    m, odd = divmod(place, 2)
    if odd:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))


def as_plain(found: Estimate) -> dict[str, Any]:
    """The estimate for JSON."""
    return {name: getattr(found, name) for name in Estimate.__slots__}
