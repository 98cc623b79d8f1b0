"""The paper's claims as comparisons between arms, and the section `claims` of a study file.

Departures from the paper: "does not improve" is read as "scores lower" (2, 8) and "as often wrong" as "wrong more
often" (6), since that two things are the same can never be shown; numbers are of the study's rows and seeds, where the
paper has single runs and no intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Measure = Literal["score", "tokens", "cue", "doubt", "start", "end", "slope"]
"""What is compared. `doubt`: error rate with an aha cue less that without; `start`, `end`: training reward in the first
and the last tenth of the last stage; `slope`: score for each doubling of the SFT rows; others: see `Contrasts`."""


@dataclass(frozen=True, slots=True)
class Part:
    """One difference that a claim needs."""

    measure: Measure
    first: str
    """Arm; of `slope` empty."""
    second: str
    """Arm that is subtracted; of `doubt` and `slope` empty."""
    sign: int
    """1 where the first is claimed to have more, -1 for less."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper in our words."""

    number: int
    says: str
    read_as: str
    """The comparison that stands for it."""
    source: str
    """Where the paper makes it."""
    parts: tuple[Part, ...]
    denies: bool = False
    """Whether the paper says that something does not help, which `read_as` sharpens to "harms"."""


CLAIMS = (
    Claim(
        1,
        "RL alone improves on the base model.",
        "score: rl above base",
        "results of the RL-trained models",
        (Part("score", "rl", "base", 1),),
    ),
    Claim(
        2,
        "SFT on reasoning traces alone does not improve on the base model.",
        "score: sft below base",
        "section on SFT",
        (Part("score", "sft", "base", -1),),
        denies=True,
    ),
    Claim(
        3,
        "SFT before RL hurts: RL ends lower than without it.",
        "score: sft+rl below rl",
        "section on SFT before RL",
        (Part("score", "sft+rl", "rl", -1),),
    ),
    Claim(
        4,
        "RL alone leads to shorter responses than SFT followed by RL.",
        "tokens: rl below sft+rl",
        "training curves, section on SFT before RL",
        (Part("tokens", "rl", "sft+rl", -1),),
    ),
    Claim(
        5,
        "SFT teaches the imitation of doubt: aha expressions come from the traces, not from RL.",
        "share with an aha cue: sft above base, and sft above rl",
        "abstract and section on SFT",
        (Part("cue", "sft", "base", 1), Part("cue", "sft", "rl", 1)),
    ),
    Claim(
        6,
        "The doubt is pseudo reasoning: it does not make answers better.",
        "error rate: above with a cue, of the same kind and source, in sft and in sft+rl",
        "abstract and discussion of aha moments",
        (Part("doubt", "sft", "", 1), Part("doubt", "sft+rl", "", 1)),
        denies=True,
    ),
    Claim(
        7,
        "SFT gives RL a head start that turns into a ceiling.",
        "training reward: sft+rl above rl in the first tenth of RL, below it in the last",
        "training curves, section on SFT before RL",
        (Part("start", "sft+rl", "rl", 1), Part("end", "sft+rl", "rl", -1)),
    ),
    Claim(
        8,
        "More SFT data does not help.",
        "score: falls with the number of SFT rows",
        "section on SFT, data sizes",
        (Part("slope", "", "", -1),),
        denies=True,
    ),
    Claim(
        9,
        "Traces with aha expressions are worse to imitate than those without.",
        "score: sft-aha below sft-plain",
        "section on SFT, kinds of traces",
        (Part("score", "sft-aha", "sft-plain", -1),),
    ),
    Claim(
        10,
        "The mixed reward beats rules alone.",
        "score: rl above rl-rules",
        "ablation of the reward",
        (Part("score", "rl", "rl-rules", 1),),
    ),
)


@dataclass(frozen=True, slots=True)
class ClaimOptions:
    """The study file's section `claims`."""

    arms: Mapping[str, str]
    """The study's name for an arm of `CLAIMS`, where it has another."""
    sets: str | None
    """See `Contrasts`."""
    sft_rows: Mapping[str, float]
    """Training rows of arms that differ in nothing else, for claim 8."""
    scale: str | None
    """What the study's scale can show and what it cannot, in the author's words; None for the report's own."""


def read_options(given: Any) -> ClaimOptions:
    """Reads the section `claims` of a study file; all of its keys may be absent.

    Raises:
        ValueError: If a key is unknown or has a value of the wrong form.
    """
    section = {} if given is None else given
    if not isinstance(section, Mapping):
        raise ValueError(f"claims must be a mapping, got {type(section).__name__}")  # noqa: TRY004
    if unknown := sorted(set(section) - {"arms", "sets", "sft_rows", "scale"}):
        raise ValueError(f"claims has no key {unknown[0]!r}; use arms, sets, sft_rows or scale")
    arms, sizes, sets = section.get("arms") or {}, section.get("sft_rows") or {}, section.get("sets")
    known = {name for claim in CLAIMS for part in claim.parts for name in (part.first, part.second) if name}
    if not isinstance(arms, Mapping) or not all(isinstance(value, str) for value in arms.values()):
        raise ValueError("claims.arms must map the claims' arms to names of the study, as in {rl: grpo}")
    if wrong := sorted(set(map(str, arms)) - known):
        raise ValueError(
            f"claims.arms has {wrong[0]!r}, of which no claim speaks; use one of {', '.join(sorted(known))}"
        )
    if not isinstance(sizes, Mapping) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in sizes.values()
    ):
        raise ValueError("claims.sft_rows must map arms to numbers of SFT rows above 0, as in {sft-5k: 5000}")
    if sets is not None and not isinstance(sets, str):
        raise ValueError("claims.sets must be the name of a set of rows, or benchmarks")
    scale = section.get("scale")
    if scale is not None and not isinstance(scale, str):
        raise ValueError("claims.scale must be text: what the study's scale can show and what it cannot")
    return ClaimOptions(
        arms={str(name): value for name, value in arms.items()},
        sets=sets,
        sft_rows={str(arm): float(rows) for arm, rows in sizes.items()},
        scale=scale,
    )
