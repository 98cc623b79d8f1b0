"""Answers that a trace states on its way: heuristics, measured in docs/traces.md.

Everything here reads hostile text: each function is linear in its input, raises nothing and evaluates nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lit_vlaa.answers import boxed, spelled_numbers
from lit_vlaa.rewards.options import NO_OPTIONS, Options
from lit_vlaa.study.same_answer import BOX, NUMBER, same_answer

MOST_STATEMENTS = 60
"""Of each of the three definite forms a third of them: the first ten and the last ten."""

MOST_CHARS = 100_000
"""Of a longer text the first and the last halves of so many are read; some 25,000 tokens."""

_T = TypeVar("_T")

_VALUE_CHARS = 100
_TAIL_SENTENCES = 40
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'*)\]]|$)|[。？！\n]")
_SAID = re.compile(
    r"\banswer\s{0,3}(?:(?:is|would\s+be|should\s+be|must\s+be|will\s+be|becomes|remains)\b|[:=])"
    r"|\brespuesta\s+(?:correcta\s+|final\s+)?es\b|\bréponse\s+(?:correcte\s+|finale\s+)?est\b|\bresposta\s+é\b"
    r"|\bantwort\s+(?:ist|lautet)\b|答案(?:是|为|为：|：)",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?i:\b(?:choose|pick|select|go\s+with|going\s+with|leaves|leaves\s+us\s+with|left\s+is|must\s+be|it\s+is|it's"
    r"|which\s+is|that\s+is|that's|therefore|thus|hence|so)\s{0,3},?\s{1,3}(?:the\s+)?(?:option|choice|answer|letter)?)"
    r"\s{0,3}[(\[]?([A-H])[)\]]?(?=\s{0,3}(?:[.,;:!]|$)|\s(?:because|since|as)\b)"
    r"|(?i:\b(?:option|choice)\s{1,3})\(?([A-H])\)?(?i:\s+(?:is|must\s+be|seems)\s+(?:the\s+)?"
    r"(?:correct|right|best|answer|true)\b)"
    r"|(?:^|(?<=[.!?\n]\s)|(?<=\n))(?i:option|choice)\s{1,3}\(?([A-H])\)?(?=\s{0,3}(?:[.!]|$))",
    re.MULTILINE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|supposing|assume|assuming|whether|unless|maybe|perhaps|possibly|might|could|wenn|si)\b",
    re.IGNORECASE,
)
_NO_CONCLUSION = re.compile(rf"{_SUPPOSED.pattern}|\b(?:options?|choices?)\b", re.IGNORECASE)
_NO_VALUE = re.compile(
    r"(?:not|n't|either|neither|one\s+of|in|on|at|that|to|based|given|clear|obvious|correct|right|wrong|incorrect|"
    r"below|above|probably\s+not|unlikely)\b",
    re.IGNORECASE,
)
_SOFTENED = re.compile(
    r"(?:(?:option|choice|about|approximately|approx\.?|roughly|likely|probably|clearly|definitely|indeed|actually|"
    r"therefore|thus|simply|just|still|now|then|the|an?|be|[:=,*-])(?![\w.])\s*)+",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[;\n]|,(?=\s)|\s(?:because|since|as|which|so|but|where|when|while|given|after)\b")
_BRACKET = re.compile(r"\s*(?:\[[^\[\]]{0,80}\]|\([^()]{0,80}\))")
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|leaves|leaving|gives|giving|get|remains?|left|in\s+total|together)\b", re.IGNORECASE
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer that a text gives."""

    start: int
    """Where the sentence's words for it begin."""
    text: str
    """As written, without what surrounds it."""


def statements(text: str) -> list[Statement]:
    r"""Finds the answers that a trace states, in order.

    Definite ones: what follows "answer is" (should be, must be, a colon; the same in Spanish, French, Portuguese,
    German and Chinese), an option that is chosen ("so the answer is option B", "I pick B", "option B is correct", "that
    leaves B"), and `\boxed{...}`. Left out are questions, suppositions ("if the answer is 5") and denials.

    Only where there is none: the last sentence of the final forty that ends with an equation ("= X"), a box, or a
    number and draws a conclusion ("so", "leaves") or says what something is ("is four"); no supposition, and nothing
    about options.

    Args:
        text: The thinking part of a response.

    Returns:
        At most `MOST_STATEMENTS`.
    """
    if len(text) > MOST_CHARS:
        text = f"{text[: MOST_CHARS // 2]}\n{text[-MOST_CHARS // 2 :]}"
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    found = [*_said(text, ends), *_chosen(text, ends), *_in_boxes(text)]
    found.sort(key=lambda one: one.start)
    return found or _concluded(text, ends)


def _ends(found: list[_T]) -> list[_T]:
    """The first and the last of a long list."""
    half = MOST_STATEMENTS // 6
    return found if len(found) <= 2 * half else [*found[:half], *found[-half:]]


def _sentence(ends: Sequence[int], at: int) -> tuple[int, int]:
    """Start and end of the sentence that holds the character before `at`."""
    place = bisect_left(ends, at)
    return (ends[place - 1] if place else 0), ends[min(place, len(ends) - 1)]


def _stands(text: str, ends: Sequence[int], match: re.Match[str]) -> bool:
    """Whether it is neither a question nor a supposition."""
    start, end = _sentence(ends, match.end())
    before = text[max(start, match.start() - 200) : match.start()]
    return text[end - 1 : end] not in {"?", "？"} and not _SUPPOSED.search(before)


def _said(text: str, ends: Sequence[int]) -> list[Statement]:
    found = []
    for match in _ends(list(_SAID.finditer(text))):
        # A decimal point is no end; the sentence that holds what follows is.
        _, end = _sentence(ends, match.end() + 1)
        rest = text[match.end() : min(end, match.end() + _VALUE_CHARS)]
        rest = rest.lstrip(" *:：")
        if _NO_VALUE.match(rest) or not _stands(text, ends, match):
            continue
        value = _value(rest)
        if value:
            found.append(Statement(match.start(), value))
    return found


def _value(rest: str) -> str:
    """The answer at the start of a clause."""
    if softened := _SOFTENED.match(rest):
        rest = rest[softened.end() :]
    if bracket := _BRACKET.match(rest):
        return bracket.group().strip()
    if (clause := _CLAUSE_END.search(rest)) and clause.start():
        rest = rest[: clause.start()]
    return rest.strip(" .!*。\"'")


def _chosen(text: str, ends: Sequence[int]) -> list[Statement]:
    return [
        Statement(match.start(), next(filter(None, match.groups())))
        for match in _ends(list(_CHOSEN.finditer(text)))
        if _stands(text, ends, match)
    ]


def _in_boxes(text: str) -> list[Statement]:
    found: list[Statement] = []
    at = 0
    for content in _ends(boxed(text)):
        at = max(at, text.find(content, at))
        found.append(Statement(max(0, at - len("\\boxed{")), content))
        at += len(content)
    return [one for one in found if one.text and len(one.text) <= _VALUE_CHARS]


def _concluded(text: str, ends: Sequence[int]) -> list[Statement]:
    """The last weak statement."""
    for place in range(len(ends) - 1, max(-1, len(ends) - 1 - _TAIL_SENTENCES), -1):
        start = ends[place - 1] if place else 0
        start = max(start, ends[place] - 300)
        sentence = text[start : ends[place]].strip()
        if not sentence or sentence.endswith(("?", "？")) or _NO_CONCLUSION.search(sentence):
            continue
        sentence = sentence.rstrip(" .!。")
        if value := _at_end(sentence):
            return [Statement(start, value)]
    return []


def _at_end(sentence: str) -> str:
    """What a sentence concludes with; empty where it concludes nothing."""
    _, equals, right = sentence.rpartition("=")
    if equals and 0 < len(right.strip()) <= 40 and re.search(r"\d|^\s*\w\s*$", right):
        value = right.strip(" $*")
        return value[:-1] if value.endswith(")") and "(" not in value else value
    if (box := list(BOX.finditer(sentence))) and box[-1].end() == len(sentence):
        return box[-1].group()
    numbers = [(match.start(), match.end(), match.group()) for match in NUMBER.finditer(sentence)]
    numbers += [(start, end, str(value)) for start, end, value in spelled_numbers(sentence)]
    if not numbers:
        return ""
    start, end, last = max(numbers)
    said = re.search(r"\b(?:is|are|makes|equals|be)\s{1,3}(?:only\s+|about\s+|just\s+)?[$*(]{0,3}$", sentence[:start])
    at_end = len(_WORD.findall(sentence[end:])) <= 3
    return last.rstrip(",") if at_end and (_CONCLUDES.search(sentence) or (said and end == len(sentence))) else ""


def distinct(found: Sequence[Statement], options: Options = NO_OPTIONS) -> int:
    """How many different answers there are among statements; those that cannot be compared count apart."""
    kept: list[str] = []
    for one in found:
        if not any(same_answer(one.text, other, options) for other in kept):
            kept.append(one.text)
    return len(kept)
