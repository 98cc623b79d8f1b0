"""What a study says of the paper's claims.

1. A claim consists of one or more differences that must all have the claimed sign. Each has a 95% interval and a
   two-sided p-value (`statistics.py`).
2. Where all differences point the claimed way, the claim's p-value is the largest of theirs, since all must hold. Where
   one points the other way, it is the smallest p-value of those that do, times the number of differences: one suffices.
3. The p-values of all claims that can be examined are adjusted by Holm's method.
4. Below 0.05 a claim is supported or contradicted, by the direction; else it is undecided, which says nothing either
   way.
5. What must be read beside it stands with each verdict (`caveats.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lit_vlaa.study.caveats import caveats, in_practice, what_would_tell
from lit_vlaa.study.claims import CLAIMS, Claim, ClaimOptions, Measure, Part
from lit_vlaa.study.contrasts import Absent, Contrast, Contrasts
from lit_vlaa.study.quantities import slope_weights
from lit_vlaa.study.statistics import LEVEL, holm

Verdict = Literal["supported", "contradicted", "undecided", "not examined"]

_WORDS: dict[Measure, tuple[str, str, str, int]] = {
    "score": ("{first} scores {size} {way} than {second}", "higher", "lower", 3),
    "tokens": ("responses of {first} are {size} tokens {way} than those of {second}", "longer", "shorter", 1),
    "cue": ("the share of responses with an aha cue is {size} {way} in {first} than in {second}", "higher", "lower", 3),
    "doubt": (
        "in {first} the error rate is {size} {way} with an aha cue than without, of the same kind and source",
        "higher",
        "lower",
        3,
    ),
    "start": (
        "in its first tenth the RL stage of {first} earns {size} {way} reward than that of {second}",
        "more",
        "less",
        3,
    ),
    "end": (
        "in its last tenth the RL stage of {first} earns {size} {way} reward than that of {second}",
        "more",
        "less",
        3,
    ),
    "slope": ("with each doubling of the SFT rows the score {way} by {size}", "rises", "falls", 4),
}
"""A sentence, its word where the difference is above 0 and where it is below, and decimal places."""


@dataclass(frozen=True, slots=True)
class Found:
    """A claim's part with what the study says of it."""

    part: Part
    """With the study's own names of arms."""
    contrast: Contrast


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict
    sentence: str
    """The verdict's reason with its numbers."""
    found: tuple[Found, ...]
    p: float | None
    """Of the claim as a whole, before Holm's adjustment."""
    adjusted: float | None
    caveats: tuple[str, ...] = ()
    """What must be read beside the verdict, each a sentence or more."""


def judge(contrasts: Contrasts, options: ClaimOptions) -> list[Judged]:
    """What the study says of every claim."""
    looked_at = [_look(claim, contrasts, options) for claim in CLAIMS]
    p_values = {place: p for place, (found, _) in enumerate(looked_at) if (p := _p_of_claim(found)) is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        _not_examined(claim, reason)
        if reason
        else _beside(
            _verdict(claim, found, p_values.get(place), adjusted.get(place), len(p_values)), contrasts, options
        )
        for place, (claim, (found, reason)) in enumerate(zip(CLAIMS, looked_at, strict=True))
    ]


def _look(claim: Claim, contrasts: Contrasts, options: ClaimOptions) -> tuple[tuple[Found, ...], str]:
    """All parts of a claim, or none and the reason."""
    found = []
    for part in claim.parts:
        named = Part(
            part.measure,
            options.arms.get(part.first, part.first),
            options.arms.get(part.second, part.second),
            part.sign,
        )
        try:
            found.append(Found(named, _contrast(named, contrasts, options)))
        except Absent as absent:
            return (), str(absent)
    return tuple(found), ""


def _contrast(part: Part, contrasts: Contrasts, options: ClaimOptions) -> Contrast:
    match part.measure:
        case "doubt":
            return contrasts.doubt(part.first)
        case "start" | "end":
            return contrasts.curve_difference(part.first, part.second, part.measure)
        case "slope":
            if len(set(options.sft_rows.values())) < 2:
                raise Absent("claims.sft_rows of the study names no arms of different sizes")
            return contrasts.difference(slope_weights(options.sft_rows), "score")
        case _:
            return contrasts.difference({part.first: 1.0, part.second: -1.0}, part.measure)


def _p_of_claim(found: Sequence[Found]) -> float | None:
    """The claim's p-value (see the module's rule 2); None where a part has none."""
    p_values = [one.contrast.found.p for one in found]
    known = [p for p in p_values if p is not None]
    if not known or len(known) < len(p_values):
        return None
    against = [p for one, p in zip(found, known, strict=True) if one.contrast.found.value * one.part.sign < 0]
    return min(1.0, len(found) * min(against)) if against else max(known)


def _not_examined(claim: Claim, reason: str) -> Judged:
    return Judged(claim, "not examined", f"Not examined: {reason}.", (), None, None)


def _beside(judged: Judged, contrasts: Contrasts, options: ClaimOptions) -> Judged:
    """The verdict with its caveats."""
    looks = [(one.part, one.contrast) for one in judged.found]
    decided = judged.verdict != "undecided"
    small = in_practice(judged.claim, looks, contrasts, decided=decided)
    lines = [small, *caveats(looks, contrasts, options.sft_rows), "" if small or decided else what_would_tell(looks)]
    return replace(judged, caveats=tuple(line for line in lines if line))


def _verdict(claim: Claim, found: tuple[Found, ...], p: float | None, adjusted: float | None, family: int) -> Judged:
    """Puts a claim's differences in words.

    Args:
        claim: What is claimed.
        found: All of its parts.
        p: The claim's p-value, None where a part has none.
        adjusted: The same after Holm's adjustment.
        family: Claims that it was adjusted for.
    """
    numbers = "; ".join(describe(one) for one in found) + _basis(found)
    if p is None or adjusted is None:
        needs = "more seeds" if any(one.part.measure in {"start", "end"} for one in found) else "more rows"
        sentence = f"{_first_upper(numbers)}. Whether that is chance takes {needs} to tell."
        return Judged(claim, "undecided", sentence, found, p, None)
    with_claim = all(one.contrast.found.value * one.part.sign > 0 for one in found)
    verdict: Verdict = "undecided"
    if adjusted < 1 - LEVEL:
        verdict = "supported" if with_claim else "contradicted"
    correction = f" after Holm's correction for {family} claims" if family > 1 else ""
    if p < 1 - LEVEL <= adjusted:
        correction += f", {shown_p(p)} before it"
    return Judged(claim, verdict, f"{_first_upper(numbers)}; {shown_p(adjusted)}{correction}.", found, p, adjusted)


def describe(one: Found) -> str:
    """A part in words, such as `rl scores 0.310 higher than base (95% interval +0.250 to +0.370)`."""
    words, more, less, places = _WORDS[one.part.measure]
    found = one.contrast.found
    text = words.format(
        first=one.part.first,
        second=one.part.second,
        size=f"{abs(found.value):.{places}f}",
        way=more if found.value >= 0 else less,
    )
    if found.low is None or found.high is None:
        return text
    return f"{text} (95% interval {found.low:+.{places}f} to {found.high:+.{places}f})"


def _basis(found: Sequence[Found]) -> str:
    """Over how many rows and seeds; of several parts the fewest of each."""
    rows = [one.contrast.found.rows for one in found if one.contrast.found.rows]
    seeds = min(one.contrast.found.seeds for one in found)
    parts = [f"{min(rows)} rows"] if rows else []
    parts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    alone = " (the interval covers rows alone)" if seeds == 1 and rows else ""
    return f", over {' and '.join(parts)}{alone}"


def _first_upper(text: str) -> str:
    """Arms keep their names, also at the start of a sentence."""
    return text[:1].upper() + text[1:] if text.startswith(("in ", "the ", "with ", "responses ")) else text


def shown_p(p: float) -> str:
    """A p-value as people write it: `p < 0.001`, `p = 0.034`; one just below 0.05 is not rounded up to it."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.4f}" if 0.0495 <= p < 0.05 else f"p = {p:.3f}"
