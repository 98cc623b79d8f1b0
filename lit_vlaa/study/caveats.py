"""What must be read beside a verdict: responses that were cut off or give no answer, rows left out, small differences.

1. A response that the limit of tokens cut off, or that gives no answer to judge, counts as wrong. Where the shares of
   such responses differ between the sides of a claim by `NOTABLE` or more, this is said, and what remains among the
   other responses. Those are chosen after the fact, differently on each side: they show where a difference comes from,
   and test nothing.
2. Where a difference's own 95% interval lies within `MARGINS`, both sides are called the same in practice. Of a claim
   that something does not help, an improvement of the margin or more may be ruled out although the claim, read as
   strictly as `claims.py` does, is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lit_vlaa.answers import extract_answer
from lit_vlaa.study.claims import Claim, Measure, Part
from lit_vlaa.study.contrasts import Absent, Contrast, Contrasts
from lit_vlaa.study.quantities import TEST, End, Quantity, curve_end, has_cue, value_of
from lit_vlaa.study.responses import ScoredResponse

NOTABLE = 0.02
"""Difference of two shares of responses from which on it is said."""
MARGINS: Mapping[Measure, float] = {
    "score": 0.02,
    "cue": 0.05,
    "doubt": 0.05,
    "start": 0.02,
    "end": 0.02,
    "slope": 0.01,
}
"""Differences that are small in practice; of tokens, `TOKENS_MARGIN` of the second arm's mean."""
TOKENS_MARGIN = 0.05

_CURVES = (("rollout/truncated", "cut off"), ("rollout/no_answer", "without an answer to judge"))
_PLACES: Mapping[Quantity, int] = {"score": 3, "tokens": 1, "cue": 3}

Look = tuple[Part, Contrast]
Side = tuple[str, Sequence[ScoredResponse]]
"""What responses have in common, as it stands behind "of", and the responses."""


def cut_off(row: ScoredResponse) -> bool | None:
    """Whether the limit of tokens ended a response; None where that is not known."""
    return None if row.finish is None else row.finish == "length"


def unanswered(row: ScoredResponse) -> bool | None:
    """Whether a response to the data module's rows gives nothing to judge; None of benchmarks, which read any text."""
    return extract_answer(row.response) is None if row.set == TEST else None


def whole(row: ScoredResponse) -> bool:
    """Whether a response ended by itself and can be judged, as far as is known."""
    return not cut_off(row) and not unanswered(row)


def caveats(looks: Sequence[Look], contrasts: Contrasts, sizes: Iterable[str]) -> tuple[str, ...]:
    """What must be said of a claim beside its numbers; each a sentence or more.

    Args:
        looks: All of its parts, with the study's names of arms, and what was found.
        contrasts: The study's numbers.
        sizes: Arms of different sizes, of which a claim on the slope speaks.
    """
    found: list[str] = []
    for part, contrast in looks:
        match part.measure:
            case "doubt":
                found += _of_doubt(part.first, contrast, contrasts)
            case "start" | "end":
                found += _of_curves(part.first, part.second, part.measure, contrast, contrasts)
            case "slope":
                found += _of_forms([(arm, contrasts.responses(arm, contrast.seeds)) for arm in sizes], "score")
            case _:
                arms = (part.first, part.second)
                found += _of_forms([(arm, contrasts.responses(arm, contrast.seeds)) for arm in arms], part.measure)
        if contrast.left_out:
            what = "number of tokens" if part.measure == "tokens" else "verdict"
            total = contrast.left_out + contrast.found.rows
            found.append(f"{contrast.left_out} of {total} rows have no {what} in some arm and seed; they are left out.")
    return tuple(dict.fromkeys(found))


def in_practice(claim: Claim, looks: Sequence[Look], contrasts: Contrasts, *, decided: bool) -> str:
    """Whether the differences are small in practice, in words; empty where they need not be.

    Args:
        claim: What is claimed.
        looks: All of its parts and what was found.
        contrasts: The study's numbers.
        decided: Whether the claim is supported or contradicted.
    """
    margins = [_margin(part, contrasts) for part, _ in looks]
    shown = "; ".join(dict.fromkeys(_shown(part.measure, m) for (part, _), m in zip(looks, margins, strict=True)))
    ends = [(contrast.found.low, contrast.found.high) for _, contrast in looks]
    known = [(low, high) for low, high in ends if low is not None and high is not None]
    if not margins or len(known) < len(ends):
        return ""
    if all(-margin < low and high < margin for (low, high), margin in zip(known, margins, strict=True)):
        if decided:
            return f"The difference is sure, but small in practice: within {shown}."
        return f"In practice the same: the interval leaves no room for a difference beyond {shown}."
    helps = [high if part.sign < 0 else -low for (part, _), (low, high) in zip(looks, known, strict=True)]
    if claim.denies and not decided and all(end < margin for end, margin in zip(helps, margins, strict=True)):
        return f"That it helps by {shown} or more is ruled out, which is all that the paper's own words ask."
    return ""


def what_would_tell(looks: Sequence[Look]) -> str:
    """Whether seeds or rows make up most of the uncertainty, in words; empty where neither does in all parts."""
    parts = [(one.found.stderr_seeds, one.found.stderr_rows) for _, one in looks]
    known = [(seeds, rows) for seeds, rows in parts if seeds is not None and rows is not None]
    if len(known) < len(parts):
        return ""
    if all(seeds > rows for seeds, rows in known):
        return "Most of the uncertainty lies between seeds: more of them would narrow it, more rows hardly."
    if all(rows > seeds for seeds, rows in known):
        return "Most of the uncertainty lies between rows: more of them would narrow it, more seeds hardly."
    return ""


def _margin(part: Part, contrasts: Contrasts) -> float:
    if part.measure == "tokens":
        return TOKENS_MARGIN * contrasts.mean(part.second, "tokens").found.value
    return MARGINS[part.measure]


def _shown(measure: Measure, margin: float) -> str:
    return f"{margin:.1f} tokens" if measure == "tokens" else f"{margin:.2f}"


def _of_forms(sides: Sequence[Side], quantity: Quantity) -> Iterator[str]:
    """Shares of responses cut off and unanswered on each side, where they differ, and what the others say."""
    words = list(_differing_forms(sides, any_cut=quantity == "tokens"))
    if not words:
        return
    means = [(name, _mean(rows, quantity)) for name, rows in sides]
    others = ", ".join(
        f"{name} {'none' if math.isnan(mean) else f'{mean:.{_PLACES[quantity]}f}'}" for name, mean in means
    )
    what = {"score": "score", "tokens": "mean length", "cue": "share with an aha cue"}[quantity]
    more = " What was cut off counts with the limit's length, and would be longer." if quantity == "tokens" else ""
    yield f"{_sentence(words)}{more} Among the other responses, chosen after the fact, the {what} is: {others}."


def _differing_forms(sides: Sequence[Side], *, any_cut: bool = False) -> Iterator[str]:
    for test, words in ((cut_off, "cut off by the limit of tokens"), (unanswered, "without an answer to judge")):
        shares = [_share(map(test, rows)) for _, rows in sides]
        known = [share for share in shares if share is not None]
        if len(known) < len(sides) or not known:
            continue
        if max(known) - min(known) >= NOTABLE or (any_cut and test is cut_off and max(known) >= NOTABLE):
            named = zip((name for name, _ in sides), known, strict=True)
            listed = ", ".join(f"{100 * share:.1f}% of the responses of {name}" for name, share in named)
            yield f"{words} are {listed}"


def _sentence(words: Sequence[str]) -> str:
    text = "; ".join(words)
    return f"{text[:1].upper()}{text[1:]}."


def _of_doubt(arm: str, contrast: Contrast, contrasts: Contrasts) -> Iterator[str]:
    """Whether responses with a cue were cut off, or unanswered, more often than those without."""
    rows = contrasts.responses(arm, contrast.seeds)
    sides = [
        (f"{arm} with a cue", [row for row in rows if has_cue(row)]),
        (f"{arm} without one", [row for row in rows if not has_cue(row)]),
    ]
    words = list(_differing_forms(sides))
    if not words:
        return
    try:
        other = contrasts.doubt(arm, whole).found
    except Absent:
        yield f"{_sentence(words)} Among the other responses there is nothing to compare."
        return
    ends = "" if other.low is None or other.high is None else f" (95% interval {other.low:+.3f} to {other.high:+.3f})"
    yield (
        f"{_sentence(words)} Such responses count as wrong: among the others, chosen after the fact, the error rate "
        f"with a cue less that without is {other.value:+.3f}{ends}."
    )


def _of_curves(first: str, second: str, end: End, contrast: Contrast, contrasts: Contrasts) -> Iterator[str]:
    """Whether rollouts were cut off, or unanswered, more often in one of two RL stages."""
    for name, words in _CURVES:
        shares = []
        for arm in (first, second):
            curves = [contrasts.curve(arm, seed, name) for seed in contrast.seeds]
            ends = [curve_end(curve, end) for curve in curves if curve is not None]
            if ends:
                shares.append(sum(ends) / len(ends))
        if len(shares) == 2 and abs(shares[0] - shares[1]) >= NOTABLE:
            named = zip((first, second), shares, strict=True)
            listed = " and ".join(f"{100 * share:.1f}% of the rollouts of {arm}" for arm, share in named)
            yield f"In the {'first' if end == 'start' else 'last'} tenth {listed} are {words}, which earns nothing."


def _share(flags: Iterable[bool | None]) -> float | None:
    known = [flag for flag in flags if flag is not None]
    return sum(known) / len(known) if known else None


def _mean(rows: Iterable[ScoredResponse], quantity: Quantity) -> float:
    values = [value for row in rows if whole(row) and not math.isnan(value := value_of(row, quantity))]
    return sum(values) / len(values) if values else math.nan
