"""Parts that the benchmarks' aggregates share."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TypeVar

from callbacks.benchmarks.interface import EvalRecord, Score, mean_and_error

Key = TypeVar("Key", bound=Hashable)


def hits(scores: Sequence[Score]) -> list[float]:
    """1 for a hit, 0 for a miss and for what is undecided."""
    return [float(score.hit is True) for score in scores]


def undecided_rate(scores: Sequence[Score]) -> float:
    """Percentage of the rows that neither rule nor judge decided."""
    return percent([float(score.hit is None) for score in scores])


def percent(values: Sequence[float]) -> float:
    """100 times the mean; 0 of nothing."""
    return 100 * sum(values) / len(values) if values else 0.0


def grouped(keys: Sequence[Key], values: Sequence[float]) -> dict[Key, list[float]]:
    """The values of each key, keys in the order of their first appearance."""
    found: dict[Key, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    return found


def by_tag(records: Sequence[EvalRecord], values: Sequence[float], several: Collection[str] = ()) -> dict[str, float]:
    """`<tag>/<value>`: percentage over the records with that value.

    Args:
        records: Whose tags are looked at.
        values: Theirs, in [0, 1].
        several: Tags that hold several values, parted by ", "; a record counts for each.
    """
    found: dict[str, list[float]] = {}
    for record, value in zip(records, values, strict=True):
        for tag, names in record.tags.items():
            for name in names.split(", ") if tag in several else (names,):
                found.setdefault(f"{tag}/{name}", []).append(value)
    return {key: percent(found[key]) for key in sorted(found)}


def tally(records: Sequence[EvalRecord], scores: Sequence[Score], several: Collection[str] = ()) -> dict[str, float]:
    """The numbers of a benchmark whose score is the share of right answers.

    Args:
        records: The rows.
        scores: Theirs, in the same order.
        several: Tags that hold several values, parted by ", ".

    Returns:
        `score`, `stderr`, `undecided_rate`, `n` and `<tag>/<value>`.
    """
    values = hits(scores)
    score, error = mean_and_error(values)
    return {
        "score": score,
        "stderr": error,
        "undecided_rate": undecided_rate(scores),
        "n": float(len(records)),
        **by_tag(records, values, several),
    }
