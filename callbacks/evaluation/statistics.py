"""Comparing two models on the same questions: paired differences of accuracy, their intervals, McNemar's test.

All of it is arithmetic on right and wrong; nothing is known of benchmarks or files.

Intervals are Newcombe's: Wilson's score intervals of both accuracies, put together under their correlation ("Improved
confidence intervals for the difference between binomial proportions based on paired data", Statistics in Medicine 17,
1998, method 10). Questions that belong together, such as the variants of one problem, are less evidence than as many
problems: there the interval is that of fewer questions, their number divided by the design effect of the difference.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""Of 95% intervals."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What two models made of one question."""

    a: bool
    """Whether the first one was right."""
    b: bool
    cluster: Hashable
    """Questions that belong together have the same."""


@dataclass(frozen=True, slots=True)
class Table:
    """How often which of two models was right."""

    both: float
    only_a: float
    only_b: float
    neither: float

    @property
    def n(self) -> float:
        """Questions."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of B less that of A, in [-1, 1]."""
        return (self.only_b - self.only_a) / self.n

    def scaled(self, factor: float) -> Table:
        """The same proportions of `factor` times as many questions."""
        return Table(self.both * factor, self.only_a * factor, self.only_b * factor, self.neither * factor)


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with its 95% confidence interval."""

    difference: float
    low: float
    high: float


def tabulate(pairs: Sequence[Pair]) -> Table:
    """Counts who was right."""
    counts = Counter((pair.a, pair.b) for pair in pairs)
    return Table(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def interval(pairs: Sequence[Pair]) -> Interval:
    """B's accuracy less A's, with Newcombe's interval of as many questions as the pairs are worth.

    Args:
        pairs: At least one.
    """
    return newcombe(tabulate(pairs).scaled(1 / design_effect(pairs)))


def design_effect(pairs: Sequence[Pair]) -> float:
    """How many pairs are worth one that stands alone: the difference's variance with clusters over that without.

    Both are estimates of the variance of a mean; that with clusters takes them for drawn independently, whatever holds
    within one (Taylor linearisation, with the factor K / (K - 1) for K clusters).

    Returns:
        At least 1: that rows of one problem fall out more alike than chance is taken into account, the opposite is not.
        Where there is nothing to estimate it from (one cluster, or every pair the same), the mean size of a cluster.
    """
    clusters = _clusters(pairs)
    n, k = len(pairs), len(clusters)
    differences = [int(pair.b) - int(pair.a) for pair in pairs]
    mean = sum(differences) / n
    squares = sum((difference - mean) ** 2 for difference in differences)
    if k == 1 or not squares:
        return n / k
    between = k / (k - 1) * sum((total - size * mean) ** 2 for total, size in clusters)
    return max(1.0, between / (squares * n / (n - 1)))


def average(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent differences, its interval put together from theirs (Zou and Donner's MOVER)."""
    k = len(intervals)
    mean = sum(found.difference for found in intervals) / k
    down = math.sqrt(sum((found.difference - found.low) ** 2 for found in intervals)) / k
    up = math.sqrt(sum((found.high - found.difference) ** 2 for found in intervals)) / k
    return Interval(mean, mean - down, mean + up)


def newcombe(table: Table) -> Interval:
    """Newcombe's interval (method 10) of B's accuracy less A's.

    Args:
        table: Of at least one question; counts need not be whole.
    """
    n, right_a, right_b = table.n, table.both + table.only_a, table.both + table.only_b
    (low_a, high_a), (low_b, high_b) = wilson(right_a, n), wilson(right_b, n)
    a, b = right_a / n, right_b / n
    phi = _phi(table)
    down = _combined(b - low_b, high_a - a, phi)
    up = _combined(high_b - b, a - low_a, phi)
    return Interval(b - a, b - a - down, b - a + up)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion."""
    share = hits / n
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(max(share * (1 - share), 0.0) / n + (Z / (2 * n)) ** 2)
    scale = 1 + Z**2 / n
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided test: how likely discordant pairs fall as unevenly as this by chance alone.

    Args:
        only_a: Questions that only the first model got right.
        only_b: Those that only the second one got right.

    Returns:
        The p-value; 1 without discordant pairs. It takes questions for independent.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    whole = math.lgamma(n + 1) - n * math.log(2)
    logs = [whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def problems(pairs: Sequence[Pair]) -> list[Pair]:
    """One pair for each cluster: whether a model got all of its questions right (DynaMath's worst case)."""
    members: dict[Hashable, list[Pair]] = defaultdict(list)
    for pair in pairs:
        members[pair.cluster].append(pair)
    return [
        Pair(all(pair.a for pair in group), all(pair.b for pair in group), cluster)
        for cluster, group in members.items()
    ]


def _phi(table: Table) -> float:
    """Correlation of both models' verdicts, made smaller where it is positive, by Newcombe's continuity correction."""
    margins = (
        (table.both + table.only_a)
        * (table.only_b + table.neither)
        * (table.both + table.only_b)
        * (table.only_a + table.neither)
    )
    if margins <= 0:
        return 0.0
    cross = table.both * table.neither - table.only_a * table.only_b
    if cross > 0:
        cross = max(cross - table.n / 2, 0.0)
    return cross / math.sqrt(margins)


def _combined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def _clusters(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """(sum of differences, questions) of each cluster."""
    sums: dict[Hashable, tuple[int, int]] = {}
    for pair in pairs:
        total, size = sums.get(pair.cluster, (0, 0))
        sums[pair.cluster] = total + int(pair.b) - int(pair.a), size + 1
    return list(sums.values())
