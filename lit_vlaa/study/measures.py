"""What one response looks like from outside: its length, doubt, repetition, form, and whether it contradicts itself.

Definitions and their limits are in docs/traces.md. Everything here reads hostile text: each function is linear in its
input and raises nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lit_vlaa.answers import extract_answer
from lit_vlaa.rewards.options import NO_OPTIONS, read_options
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.study.same_answer import same_answer
from lit_vlaa.study.statements import distinct, statements
from lit_vlaa.traces import CUES, count_cues, read_trace, word_count

FIGURE_CUES = ("wait", "again", "double-check", "mistake")
"""Four expressions to plot, as the paper does. Which four the paper plots is not in our notes: the choice is ours."""

HESITATIONS = (
    *("hmm", "wait", "actually", "maybe", "perhaps", "not sure", "let me think", "let me check"),
    *("on second thought", "hold on", "i'm confused", "or is it"),
)
"""Words of doubt, ours; looked for as words of their own."""

NGRAM = 4
"""Words of an n-gram of `repetition`."""
LONGEST_BLOCK = 64
"""Words; a longer block that follows itself is not looked for."""
REPEATING_BLOCK = 3
"""Words from which on a block that follows itself counts as repetition."""
REASONING_WORDS = 2
"""Fewer words ahead of an answer are no reasoning."""

_TAG = re.compile(r"</?(?:think|answer)>")
_WORD = re.compile(r"\w+")
_FILLERS = frozenset(
    {"okay", "ok", "so", "well", "alright", "hmm", "let", "me", "us", "see", "the", "my", "final", "correct", "right"}
    | {"first", "now", "thus", "therefore", "i", "think", "a", "s"}
)
_OPENING = 2000
"""Characters in which an answer ahead of the reasoning is looked for."""
_QUESTION_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class TraceMeasures:
    """Measures of one response; a flag is None where it cannot be told."""

    tokens: int | None
    """Of the response, as given."""
    words: int
    """Between blanks, tags included where they stand alone."""
    thinking_words: int
    """Between the think tags; 0 without them."""
    cues: int
    """Occurrences of the paper's aha cues anywhere in the text."""
    aha: bool
    """Whether there is any: as the paper counts."""
    aha_words: bool
    """The same for cues that are words of their own, so that "against" is none."""
    figure: tuple[tuple[str, int], ...]
    """Occurrences anywhere of each of `FIGURE_CUES`."""
    hesitations: int
    """Occurrences of `HESITATIONS` as words of their own."""
    hesitation_rate: float
    """The same for 100 words."""
    repetition: float
    """Share of word n-grams that occurred before: 1 - distinct / all, 0 where there is none."""
    repeated_block: int
    """Words of the longest block that is followed by itself at once; 0 for none."""
    repeats: bool
    """Whether that block has `REPEATING_BLOCK` words or more."""
    stated: int
    """Different answers that the thinking states."""
    contradicts: bool | None
    """Whether one of them differs from the final answer; None without a statement or a final answer to compare."""
    last_differs: bool | None
    """Whether the last one does: not a change of mind, but an answer that does not follow from its trace."""
    answer_first: bool
    """Whether an answer comes ahead of any reasoning, or without any."""
    well_formed: bool
    """`<think>...</think><answer>...</answer>` and nothing else."""
    answered: bool
    """Whether exactly one answer block holds something, so that there is an answer to judge."""
    truncated: bool | None
    """Whether the limit of tokens ended it; None where that is not known."""

    @property
    def flags(self) -> dict[str, bool | None]:
        """Everything that is true or false of the response, by name: `FLAGS`."""
        known: dict[str, bool | None] = {name: getattr(self, name) for name in _OWN_FLAGS}
        return known | {f"cue: {cue}": count > 0 for cue, count in self.figure} | {"hesitates": self.hesitations > 0}

    @property
    def numbers(self) -> dict[str, float | None]:
        """Everything that is counted, by name: `NUMBERS`."""
        return {name: getattr(self, name) for name in NUMBERS}


_OWN_FLAGS = (
    *("aha", "aha_words", "repeats", "contradicts", "last_differs"),
    *("answer_first", "well_formed", "answered", "truncated"),
)
FLAGS = MappingProxyType(
    {
        "aha": "aha cue (paper's substrings)",
        "aha_words": "aha cue (whole words)",
        **{f"cue: {cue}": f'"{cue}"' for cue in FIGURE_CUES},
        "hesitates": "hesitation marker",
        "repeats": f"repeats a block of {REPEATING_BLOCK} words or more",
        "contradicts": "states another answer than its final one",
        "last_differs": "last stated answer differs from the final one",
        "answer_first": "answer ahead of any reasoning",
        "well_formed": "well-formed tags",
        "answered": "has an answer to judge",
        "truncated": "cut off by the limit",
    }
)
"""Titles of what is true or false, in the order of tables."""
NUMBERS = MappingProxyType(
    {
        "tokens": "tokens",
        "words": "words",
        "thinking_words": "words of thinking",
        "cues": "aha cues",
        "hesitations": "hesitation markers",
        "hesitation_rate": "hesitation markers for 100 words",
        "repetition": f"share of repeated {NGRAM}-grams",
        "repeated_block": "longest repeated block, words",
        "stated": "different answers stated",
    }
)
"""Titles of what is counted, in the order of tables."""


def measure(response: ScoredResponse) -> TraceMeasures:
    """Measures one response.

    Args:
        response: Its text alone is needed; the question's options, where it lists any, tell an option's text from a
            wrong answer.
    """
    text = response.response
    trace = read_trace(text)
    counts = count_cues(text)
    total = word_count(text)
    hesitations = count_hesitations(text)
    repetition, block = repeated(text)
    stated, contradicts, last_differs = _stated(response, trace.thinking)
    return TraceMeasures(
        tokens=response.tokens,
        words=total,
        thinking_words=word_count(trace.thinking or ""),
        cues=sum(counts.values()),
        aha=any(counts.values()),
        aha_words=any(count_cues(text, matching="words").values()),
        figure=tuple((cue, counts[cue]) for cue in FIGURE_CUES),
        hesitations=hesitations,
        hesitation_rate=100 * hesitations / total if total else 0.0,
        repetition=repetition,
        repeated_block=block,
        repeats=block >= REPEATING_BLOCK,
        stated=stated,
        contradicts=contradicts,
        last_differs=last_differs,
        answer_first=answers_first(text),
        well_formed=trace.well_formed,
        answered=extract_answer(text) is not None,
        truncated=None if response.finish is None else response.finish == "length",
    )


def count_hesitations(text: str) -> int:
    """Occurrences of `HESITATIONS` as words of their own; a typographic apostrophe is one like any other."""
    return sum(count_cues(text.replace("\u2019", "'"), HESITATIONS, "words").values())


_MARKED = re.compile(
    "|".join(re.escape(cue) for cue in sorted({*CUES, *HESITATIONS}, key=len, reverse=True)), re.IGNORECASE
)


def cue_spans(text: str) -> list[tuple[int, int]]:
    """Where aha cues (anywhere) and hesitation markers (whole words) stand, to highlight them.

    Returns:
        (start, end) in order, without overlaps; at a place where several cues begin, the longest.
    """
    plain = text.replace("\u2019", "'")
    found = []
    for match in _MARKED.finditer(plain):
        start, end = match.span()
        alone = not (_word_at(plain, start - 1) or _word_at(plain, end))
        if alone or match.group().lower() in CUES:
            found.append((start, end))
    return found


def _word_at(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def repeated(text: str) -> tuple[float, int]:
    """How much a text repeats itself, upper and lower case alike.

    Returns:
        The share of word n-grams (`NGRAM` words) that occurred before; and the words of the longest block, of up to
        `LONGEST_BLOCK`, that is followed by itself at once.
    """
    words = text.lower().split()
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), dtype=np.int64, count=len(words))
    share = 0.0
    if len(ids) >= NGRAM:
        # N-grams get numbers of their own in two steps of pairs, so that equal ones, and no others, have the same.
        pairs = np.unique(ids[:-1] * len(numbers) + ids[1:], return_inverse=True)[1].astype(np.int64)
        grams = pairs[:-2] * (int(pairs.max()) + 1) + pairs[2:]
        share = 1 - len(np.unique(grams)) / len(grams)
    longest = next((size for size in range(min(LONGEST_BLOCK, len(ids) // 2), 0, -1) if _twice(ids, size)), 0)
    return share, longest


def _twice(ids: np.ndarray[tuple[int], np.dtype[np.int64]], size: int) -> bool:
    """Whether some `size` words are followed by the same ones."""
    breaks = np.flatnonzero(ids[:-size] != ids[size:])
    if not len(breaks):
        return True
    inner = int(np.diff(breaks).max()) - 1 if len(breaks) > 1 else 0
    return max(inner, int(breaks[0]), len(ids) - size - 1 - int(breaks[-1])) >= size


def _stated(response: ScoredResponse, thinking: str | None) -> tuple[int, bool | None, bool | None]:
    """How many answers the thinking states, and whether any and the last of them differ from the final one."""
    if thinking is None:
        thinking = _TAG.sub("", response.response.partition("<answer>")[0])
    question = response.question
    options = read_options(question) if 0 < len(question) <= _QUESTION_CHARS else NO_OPTIONS
    found = statements(thinking)
    final = extract_answer(response.response) or response.extracted
    if final is None or not found:
        return distinct(found, options), None, None
    same = [same_answer(one.text, final, options) for one in found]
    told = [verdict for verdict in same if verdict is not None]
    contradicts = None if not told else not all(told)
    return distinct(found, options), contradicts, None if same[-1] is None else not same[-1]


def answers_first(text: str) -> bool:
    """Whether an answer comes ahead of any reasoning.

    That is an answer block, or words that state an answer ("The answer is B."), with fewer than `REASONING_WORDS` words
    or numbers before it; tags and openings such as "Okay, so" do not count. An answer without any reasoning is one.
    """
    block = text.find("<answer>", 0, _OPENING)
    if block >= 0 and _reasoning(text[:block]) < REASONING_WORDS:
        return True
    opening = _TAG.sub(" ", text[:_OPENING])
    first = next(iter(statements(opening)), None)
    if first is None or not _definite(opening, first.start):
        return False
    return _reasoning(opening[: first.start]) < REASONING_WORDS


def _definite(text: str, start: int) -> bool:
    """Whether the statement says that it is the answer; a sum at a text's start is reasoning."""
    return (
        re.match(
            r"(?i)\W*(?:\w+\W+){0,2}?(?:answer|option|choice|\\f?box|antwort|respuesta|réponse|答案)", text[start:]
        )
        is not None
    )


def _reasoning(text: str) -> int:
    words = _WORD.findall(_TAG.sub(" ", text).lower())
    return sum(word not in _FILLERS for word in words)
