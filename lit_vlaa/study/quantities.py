"""The numbers of single responses, curves and strata that contrasts are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from lit_vlaa.study.job_files import Curve
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.tables import CORRECT_FROM, Stratum
from lit_vlaa.traces import CUES

TEST = "test"
"""Set of the data module's own rows; all others are benchmarks."""
BENCHMARKS = "benchmarks"
"""Stands for all sets but `test`, of equal weight."""

Quantity = Literal["score", "tokens", "cue"]
"""Reward or hit; tokens of the response; 1 where it holds an aha cue (the paper's substrings) and 0 elsewhere."""
End = Literal["start", "end"]

_TENTH = 10


def curve_end(curve: Curve, end: End) -> float:
    """The mean of a curve's first or last tenth, of at least one value."""
    if end not in get_args(End):
        raise ValueError(f"end must be start or end, got {end!r}")
    count = max(1, len(curve.values) // _TENTH)
    part: Sequence[float] = curve.values[:count] if end == "start" else curve.values[-count:]
    return sum(part) / len(part)


def slope_weights(sizes: Mapping[str, float]) -> dict[str, float]:
    """Weights whose sum of scores is the least-squares slope of score against the logarithm (base 2) of the rows.

    Args:
        sizes: Training rows by arm, at least two different numbers.
    """
    logs = {arm: math.log2(size) for arm, size in sizes.items()}
    middle = sum(logs.values()) / len(logs)
    squares = sum((value - middle) ** 2 for value in logs.values())
    return {arm: (value - middle) / squares for arm, value in logs.items()}


def has_cue(row: ScoredResponse) -> bool:
    """Whether a response holds one of the paper's aha cues, as a substring."""
    lower = row.response.lower()
    return any(cue in lower for cue in CUES)


def is_wrong(row: ScoredResponse) -> bool | None:
    """Whether a response earned less than `CORRECT_FROM`; None where there is no verdict."""
    score = scored(row)
    return None if score is None else score < CORRECT_FROM


def doubt_strata(rows: Iterable[ScoredResponse]) -> list[Stratum]:
    """Judged responses by set, kind and source, and by whether they hold an aha cue."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        wrong = is_wrong(row)
        if wrong is not None:
            place = 0 if has_cue(row) else 2
            found = counts.setdefault((row.set, row.kind, row.source), [0, 0, 0, 0])
            found[place] += 1
            found[place + 1] += wrong
    return [Stratum(*found) for found in counts.values()]


def variance_without_difference(strata: Iterable[Stratum]) -> float:
    """Variance of Mantel and Haenszel's risk difference if both sorts of a stratum were equally often wrong.

    In a stratum of N rows, m of them wrong, n1 with the property and n0 without, the numerator has the variance of the
    hypergeometric distribution, n1 n0 m (N - m) / (N^2 (N - 1)) (Mantel and Haenszel's test).
    """
    weights = variance = 0.0
    for one in strata:
        n, wrong = one.exposed + one.others, one.exposed_wrong + one.others_wrong
        if one.exposed and one.others:
            weights += one.exposed * one.others / n
            variance += one.exposed * one.others * wrong * (n - wrong) / (n**2 * (n - 1))
    return variance / weights**2


def scored(row: ScoredResponse) -> float | None:
    """The score that counts: what neither rule nor judge of a benchmark decided is wrong, as in `eval compare`."""
    return 0.0 if row.score is None and row.set != TEST else row.score


def value_of(row: ScoredResponse, quantity: Quantity) -> float:
    """A number of a response, NaN where it has none."""
    if quantity == "cue":
        return float(has_cue(row))
    value = row.tokens if quantity == "tokens" else scored(row)
    return math.nan if value is None else float(value)
