"""Measures of many responses as numbers that JSON can carry: by arm, source and kind, and error rates beside them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lit_vlaa.study.measures import FLAGS, NUMBERS, TraceMeasures, measure
from lit_vlaa.study.responses import ScoredResponse

CORRECT_FROM = 0.5
"""Score from which a response counts as right."""
Nll = Mapping[tuple[str, str], tuple[float, int]]
"""By (set, id): sum of -log p over tokens in nats, and their number."""

_Z = 1.959963984540054
_LENGTHS = ("tokens", "words", "thinking_words")


@dataclass(frozen=True, slots=True)
class Measured:
    """A response with its measures."""

    response: ScoredResponse
    measures: TraceMeasures
    wrong: bool | None
    """None without a verdict."""
    nll: tuple[float, int] | None = None
    """Sum of -log p in nats and tokens under some model."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that may be compared: of one kind and source."""

    exposed: int
    """Rows with the property."""
    exposed_wrong: int
    """Wrong ones among them."""
    others: int
    """Rows without it."""
    others_wrong: int


@dataclass(frozen=True, slots=True)
class RiskDifference:
    """Error rate with a property less that without it, within strata."""

    difference: float
    variance: float
    low: float
    """End of the 95% interval, normal approximation; not cut off at -1 and 1, as the next one."""
    high: float
    strata: int
    """Strata with rows of both sorts; others say nothing of the difference."""
    rows: int
    """Rows in them."""


def risk_difference(strata: Iterable[Stratum]) -> RiskDifference | None:
    """Mantel and Haenszel's risk difference, with the variance of Sato, Greenland and Robins (1989).

    With n1 and n0 rows with and without the property in a stratum of N, y1 and y0 of them wrong, and the weight w =
    n1 n0 / N, the difference is RD = (sum (y1 n0 - y0 n1) / N) / sum w. Its variance is (RD sum P + sum Q) / (sum w)^2
    with P = (n1^2 y0 - n0^2 y1 + n1 n0 (n0 - n1) / 2) / N^2 and Q = (y1 (n0 - y0) + y0 (n1 - y1)) / (2 N), which holds
    for a few large strata as for many small ones.

    Returns:
        None where no stratum has rows of both sorts.
    """
    both = [one for one in strata if one.exposed and one.others]
    if not both:
        return None
    weight = top = p = q = 0.0
    for one in both:
        n1, y1, n0, y0 = one.exposed, one.exposed_wrong, one.others, one.others_wrong
        n = n1 + n0
        weight += n1 * n0 / n
        top += (y1 * n0 - y0 * n1) / n
        p += (n1**2 * y0 - n0**2 * y1 + n1 * n0 * (n0 - n1) / 2) / n**2
        q += (y1 * (n0 - y0) + y0 * (n1 - y1)) / (2 * n)
    difference = top / weight
    variance = max(0.0, (difference * p + q) / weight**2)
    half = _Z * math.sqrt(variance)
    rows = sum(one.exposed + one.others for one in both)
    return RiskDifference(difference, variance, difference - half, difference + half, len(both), rows)


def measured(
    responses: Iterable[ScoredResponse], *, correct_from: float = CORRECT_FROM, nll: Nll | None = None
) -> list[Measured]:
    """Measures responses.

    Args:
        responses: As read.
        correct_from: Score from which one counts as right.
        nll: Perplexity of the responses under some model, where it is known.
    """
    return [
        Measured(
            response=response,
            measures=measure(response),
            wrong=None if response.score is None else response.score < correct_from,
            nll=(nll or {}).get((response.set, response.id)),
        )
        for response in responses
    ]


def aggregate(arms: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """Tables of several arms.

    Args:
        arms: Measured responses by name.

    Returns:
        `arms`, by name: what `describe` gives of all rows, `by_source` and `by_kind` the same of parts where rows name
        them, `errors` of `error_rates`; and `missing`, a line for everything that cannot be told.
    """
    tables = {}
    missing = []
    for name, rows in arms.items():
        tables[name] = {
            **describe(rows),
            "errors": error_rates(rows),
            "by_source": {part: describe(own) for part, own in _parts(rows, "source")},
            "by_kind": {part: describe(own) for part, own in _parts(rows, "kind")},
        }
        missing += [f"{name}: {line}" for line in _missing(rows)]
    return {"arms": tables, "missing": missing}


def describe(rows: Sequence[Measured]) -> dict[str, Any]:
    """Means and shares of some rows, each with the number of rows that it is over.

    Returns:
        `rows`; `judged` and `wrong`, those with a verdict and their share of wrong ones; `numbers` and `flags`, by
        name (mean or share, n), without those of which nothing is known; `right` and `wrong_rows`, lengths of these
        rows; `nll`, mean nats a token over the rows' tokens, with perplexity.
    """
    verdicts = [float(row.wrong) for row in rows if row.wrong is not None]
    return {
        "rows": len(rows),
        "judged": len(verdicts),
        "wrong": _mean(verdicts)["mean"],
        "numbers": _known({name: _mean([row.measures.numbers[name] for row in rows]) for name in NUMBERS}),
        "flags": _known({name: _mean([row.measures.flags[name] for row in rows]) for name in FLAGS}),
        "right": _lengths([row for row in rows if row.wrong is False]),
        "wrong_rows": _lengths([row for row in rows if row.wrong is True]),
        "nll": _nats(rows),
    }


def error_rates(rows: Sequence[Measured]) -> dict[str, Any]:
    """How often rows with each property are wrong, and those without it.

    Returns:
        By name of the flag, where both sorts occur among the judged rows: `with` and `without` (n, wrong), their plain
        `difference`, and `standardised`, `RiskDifference` over strata of kind and source (None where no stratum has
        both sorts).
    """
    found: dict[str, Any] = {}
    for name in FLAGS:
        strata: dict[tuple[str, str], list[list[bool]]] = defaultdict(lambda: [[], []])
        for row in rows:
            flag = row.measures.flags[name]
            if row.wrong is not None and flag is not None:
                strata[row.response.kind, row.response.source][not flag].append(row.wrong)
        sides = [[wrong for pair in strata.values() for wrong in pair[side]] for side in (0, 1)]
        if not all(sides):
            continue
        result = risk_difference(Stratum(len(a), sum(a), len(b), sum(b)) for a, b in strata.values())
        rates = [sum(side) / len(side) for side in sides]
        found[name] = {
            "with": {"n": len(sides[0]), "wrong": rates[0]},
            "without": {"n": len(sides[1]), "wrong": rates[1]},
            "difference": rates[0] - rates[1],
            "standardised": None if result is None else asdict(result),
        }
    return found


def _mean(values: Iterable[float | None]) -> dict[str, Any]:
    known = [float(value) for value in values if value is not None]
    return {"mean": sum(known) / len(known) if known else None, "n": len(known)}


def _known(means: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: mean for name, mean in means.items() if mean["n"]}


def _lengths(rows: Sequence[Measured]) -> dict[str, Any]:
    return {"rows": len(rows)} | _known({n: _mean([row.measures.numbers[n] for row in rows]) for n in _LENGTHS})


def _nats(rows: Sequence[Measured]) -> dict[str, Any] | None:
    known = [row.nll for row in rows if row.nll is not None]
    tokens = sum(count for _, count in known)
    if not tokens:
        return None
    mean = sum(nll for nll, _ in known) / tokens
    return {"mean": mean, "perplexity": math.exp(min(mean, 700.0)), "n": len(known), "tokens": tokens}


def _parts(rows: Sequence[Measured], field: str) -> list[tuple[str, list[Measured]]]:
    parts: dict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        if value := getattr(row.response, field):
            parts[value].append(row)
    return sorted(parts.items())


def _missing(rows: Sequence[Measured]) -> list[str]:
    """What some or all of the rows lack, in words."""
    lacks = {
        "score, so that they are neither right nor wrong": sum(row.wrong is None for row in rows),
        "number of tokens": sum(row.response.tokens is None for row in rows),
        "finish, so that truncation is unknown": sum(row.response.finish is None for row in rows),
        "kind": sum(not row.response.kind for row in rows),
        "source": sum(not row.response.source for row in rows),
        "question, so that the text of an option is not known as such": sum(not row.response.question for row in rows),
    }
    lines = [f"{count} of {len(rows)} rows have no {what}" for what, count in lacks.items() if count]
    with_nll = sum(row.nll is not None for row in rows)
    return lines + (
        [f"{len(rows) - with_nll} of {len(rows)} rows have no perplexity"] if 0 < with_nll < len(rows) else []
    )
