"""What a reasoning trace looks like from outside: its tags, its length, its expressions of doubt.

Everything here reads hostile text: each function is linear in its input and raises nothing. Departures from the paper,
which looks for cues as substrings of the lower-cased text: that also finds "again" in "against" and "check" in
"checkered". It stays the default, so that numbers can be held against the paper's; `words` leaves such hits out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

CUES = ("wait", "again", "double-check", "hmm", "mistake", "alternatively", "check", "i should confirm")
"""The paper's expressions of an aha moment, lower case."""

Matching = Literal["substring", "words"]
"""Where a cue counts: anywhere, or only where no letter, digit or underscore touches it."""

_THINK, _END_THINK = "<think>", "</think>"
_ANSWER, _END_ANSWER = "<answer>", "</answer>"


@dataclass(frozen=True, slots=True)
class Trace:
    """A response taken apart."""

    thinking: str | None
    """What stands between the think tags, stripped; None where there is no such tag. It begins with the response where
    only its end is marked (some templates open it in the prompt), and goes on to the answer or to the end where it was
    never closed."""
    well_formed: bool
    """`<think>...</think><answer>...</answer>` and nothing else but blanks, each tag once; the first one may be
    missing."""


def read_trace(response: str) -> Trace:
    """Finds the thinking of a response, and whether its tags are as they should be."""
    span = thinking_span(response)
    return Trace(None if span is None else response[slice(*span)].strip(), _well_formed(response))


def count_cues(text: str, cues: Sequence[str] = CUES, matching: Matching = "substring") -> dict[str, int]:
    """How often each cue occurs, upper and lower case alike.

    Cues are counted independently: "double-check" counts for "check" too. Occurrences of one cue do not overlap.

    Args:
        text: A response or a part of it.
        cues: What to look for.
        matching: `substring` as in the paper, or `words`.

    Returns:
        The number of each cue, 0 included.

    Raises:
        ValueError: If a cue is empty, or `matching` is neither.
    """
    if matching not in get_args(Matching):
        raise ValueError(f"matching must be substring or words, got {matching!r}")
    if not all(cue.strip() for cue in cues):
        raise ValueError(f"a cue must not be empty, got {list(cues)}")
    lower = text.lower()
    if matching == "substring":
        return {cue: lower.count(cue.lower()) for cue in cues}
    # A plain search is much faster than the pattern's, and most texts hold few of the cues.
    return {cue: sum(1 for _ in _pattern(cue).finditer(lower)) if cue.lower() in lower else 0 for cue in cues}


def word_count(text: str) -> int:
    """Words between blanks."""
    return len(text.split())


@lru_cache(maxsize=256)
def _pattern(cue: str) -> re.Pattern[str]:
    """A literal, so that the search is linear; at its ends no word goes on."""
    return re.compile(rf"(?<!\w){re.escape(cue.lower())}(?!\w)")


def thinking_span(response: str) -> tuple[int, int] | None:
    """Where the thinking of a response begins and ends, blanks included; None where no tag marks any."""
    opened, closed = response.find(_THINK), response.find(_END_THINK)
    if opened < 0 and closed < 0:
        return None
    start = 0 if opened < 0 or 0 <= closed < opened else opened + len(_THINK)
    end = response.find(_END_THINK, start)
    if end < 0:
        end = response.find(_ANSWER, start)
    return start, end if end >= 0 else len(response)


def _well_formed(response: str) -> bool:
    text = response.strip()
    if text.count(_THINK) > 1 or any(text.count(tag) != 1 for tag in (_END_THINK, _ANSWER, _END_ANSWER)):
        return False
    if _THINK in text and not text.startswith(_THINK):
        return False
    _, _, rest = text.partition(_END_THINK)
    rest = rest.lstrip()
    return rest.startswith(_ANSWER) and rest.endswith(_END_ANSWER)
