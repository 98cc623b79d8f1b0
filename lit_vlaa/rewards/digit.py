"""Reward of counting questions (CLEVR-Math): the answer's one final number equals the truth.

The number is read without a look at the truth, so no answer can be right for two truths. Numbers are compared as
strings in a canonical form, so no length of digits costs more than its length.

Decisions
1. A number that belongs to an expression (`6/2`, `3-1`, `3:00`, `√9`, "3 hundred") is no number: this kind computes
   nothing. What follows the equals sign of a sum is one.
2. A unit or a percent sign after the number is ignored. A bound ("at least 3", "3+") is no number.
3. Roman numerals, circled digits, exponents (`1e3`) and digits grouped by blanks are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from lit_vlaa.answers import bare, boxed, legible, spelled_numbers, unstyled
from lit_vlaa.rewards.errors import UnparsableTruthError

_TOKEN = re.compile(r"\d[\d.,]*")
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_TRUTH = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?")
_UNIT = re.compile(r"(?:[cmk]?m|[mk]?g|m?l|m?s|min|h|px|pcs|objects?|items?)(?!\w)", re.IGNORECASE)
_OPERATOR = re.compile(
    r":|\s*(?:[-+*/×÷·^%|–—−<>≤≥≠]|\\(?:times|cdot|div|over)|\}\s*\{|\b(?:plus|minus|times|divided\s+by|over|mod)\b)\s*",
    re.IGNORECASE,
)
_AROUND = r"[\s*_$\"'(\[{`~]{0,6}$"
_CHANGED = re.compile(
    r"(?:√|\\?\b(?:sqrt|log|ln|sin|cos|tan|exp|fact|abs)\b|\b(?:half|double|twice|triple|quarter)(?:\s+of)?|\broot\s+of)"
    + _AROUND,
    re.IGNORECASE,
)
_SCALED = re.compile(
    r"[\s-]{0,3}(?:(?:hundred|thousand|million|billion|trillion|dozen|score|halves|thirds?|quarters?)s?\b|point\s|\s?[½¼¾⅓⅔]"
    r"|and\s+a\s+half)",
    re.IGNORECASE,
)
_NOT_MEANT = re.compile(
    r"(?:\b(?:not|isn't|aren't|wasn't|never|nor|neither|cannot\s+be|can't\s+be|instead\s+of|out\s+of|of\s+the|at\s+least|"
    r"at\s+most|up\s+to|(?:more|less|fewer|greater|other|rather)\s+than|(?:any|every|all)\w{0,6}\s+(?:but|except)|except|"
    r"besides)(?:\s+(?:the|all|just|only|exactly|be|equal\s+to))?|(?<![\w\"/])[<>]=?|[≤≥≠¬]|!=|~~)" + _AROUND,
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[\s*_$\"')\]}`.]{0,6}(?:\b(?:is|are|was|were|would\s+be|seems)\s+(?:\w+ly\s+)?(?:not|wrong|incorrect|false|impossible)\b"
    r"|\b(?:isn't|aren't|wasn't|can't|cannot)\b|\bor\s+(?:more|fewer|less|greater)\b|\+(?!\s*\w)|~~)",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"\b(?:the|this|that|each|every|any|no|other|another|which|last|first)(?:\s+\w+)?\s+$", re.IGNORECASE
)
_NEGATIVE = re.compile(
    r"\bnegative\s+$|(?:^|\b(?:is|equals)\b|[:=])\s*minus\s+$|(?:\b(?:is|equals)\b|[:=])\s*[-–]\s?$|(?<![\w)\]}–-])[-–]$",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\b(?:or|either|between|maybe|perhaps|possibly|alternatively)\b", re.IGNORECASE)
_ASIDE = re.compile(r"\([^()]{0,200}\)")
_SAID = r"\b(?:answer|result|total|count|number)\b[^.\n\d=:]{0,30}(?:\bis\b|\bof\b|[:=])"
_STATED = re.compile(_SAID, re.IGNORECASE)
_CONCLUSION = re.compile(
    _SAID + r"|[=≈→⇒]|\b(?:so|therefore|thus|hence|leaves|leaving)\b"
    r"|\bleft\s+with\b|\bremain(?:s|ing|der)?\s*(?::|\bis\b|\bare\b)",
    re.IGNORECASE,
)
_LEFT = re.compile(
    r"(?:\s+[a-z]+){0,4}\s+(?:remain(?:s|ing)?|left(?!\s+(?:of|side))|in\s+(?:total|all)|altogether|overall)\b",
    re.IGNORECASE,
)
_NONE = re.compile(
    r"(?:there\s+(?:is|are)\s+)?(?:none|nothing|no(?:\s+\w+){0,3}\s+(?:objects?|items?|things?|left|remain(?:ing)?))"
    r"(?:\s+(?:are\s+)?(?:left|remain(?:s|ing)?))?[.!]?",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|since|as|after|out\s+of|from|given|when|where|if)\b|[.;!\n]\s+(?=[A-Za-z])|:(?!\d)", re.IGNORECASE
)
_WINDOW = 40
_MANY = 64
"""Numbers in a text from which on it is a list, not an answer."""


@dataclass(frozen=True, slots=True)
class _Number:
    """A number found in a text; `value` is None when it only takes part in an expression."""

    start: int
    end: int
    value: str | None


def _canonical(number: str) -> str:
    """The same string for `3`, `03`, `3.0` and `+3`."""
    negative = number.startswith("-")
    whole, _, fraction = number.lstrip("+-").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    text = f"{whole}.{fraction}" if fraction else whole
    return f"-{text}" if negative and text != "0" else text


def _digits(text: str) -> list[_Number]:
    """Numbers written in digits; what sticks to letters (`x3`, `3D`, `1e3`) is none."""
    found = []
    for match in _TOKEN.finditer(text):
        token = match.group().rstrip(".,")
        start, end = match.start(), match.start() + len(token)
        before = text[max(0, start - 2) : start]
        if before[-1:].isalnum() or before[-1:] in {"_", ".", "\ufffd", "\\"} or before == "&#":
            continue
        after = text[end : end + 1]
        if (after.isalnum() or after in {"_", "\ufffd"}) and not _UNIT.match(text, end):
            continue
        if before[-1:] == "-" and before[:1].isalpha():  # CLEVR-3
            continue
        if _PLAIN.fullmatch(token):
            found.append(_Number(start, end, _canonical(token)))
        elif "." not in token:  # 1,2,3
            place = start
            for part in token.split(","):
                if part:
                    found.append(_Number(place, place + len(part), _canonical(part)))
                place += len(part) + 1
    return found


def _numbers(text: str) -> list[_Number]:
    """The numbers that a text states, digits and words alike, in order; those that it rules out are left out."""
    spelled = [
        _Number(start, end, str(value))
        for start, end, value in spelled_numbers(text)
        if value != 1 or not _PRONOUN.search(text, max(0, start - _WINDOW), start)
    ]
    spans = sorted([*_digits(text), *spelled], key=lambda number: number.start)
    if len(spans) > _MANY:
        return [_Number(0, 0, None)]
    joined = {
        place
        for place, (left, right) in enumerate(pairwise(spans))
        if right.start - left.end <= _WINDOW and _OPERATOR.fullmatch(text, left.end, right.start)
    }
    found = []
    for place, span in enumerate(spans):
        before, value = (text, max(0, span.start - _WINDOW), span.start), span.value
        expression = place in joined or place - 1 in joined
        if expression or _CHANGED.search(*before) or _SCALED.match(text, span.end):
            value = None
        elif _NOT_MEANT.search(*before) or _DENIED.match(text, span.end):
            continue
        elif value != "0" and _NEGATIVE.search(*before):
            value = f"-{value}"
        found.append(_Number(span.start, span.end, value))
    return found


def _only(numbers: list[_Number]) -> str | None:
    """The value of the numbers when they are all the same."""
    values = {number.value for number in numbers}
    return values.pop() if len(values) == 1 else None


def _contradicts(text: str, numbers: list[_Number]) -> bool:
    """True for `3 = 4`, a bare number said to equal another."""
    return any(
        left.value is not None and right.value is not None and left.value != right.value
        for left, right in pairwise(numbers)
        if text[left.end : right.start].strip(" =") == "" and "=" in text[left.end : right.start]
    )


def _concluded(text: str) -> str | None:
    """The number of a text's conclusion ("= 3", "the answer is 3", "so 3", "3 remain")."""
    numbers = _numbers(text)
    if _CHOICE.search(text) or _contradicts(text, numbers):
        return None
    cues = list(_CONCLUSION.finditer(text))
    ends = [cue.start() for cue in cues[1:]] + [len(text)] * bool(cues)
    concluded: list[tuple[int, str | None]] = []
    stated: set[str] = set()
    for cue, end in zip(cues, ends, strict=True):
        reason = _REASON.search(text, cue.end(), end)
        head = [n for n in numbers if cue.end() <= n.start < end and (reason is None or n.start < reason.start())]
        if not head:
            continue
        value = _only(head)
        concluded.append((cue.start(), value))
        if value is not None and _STATED.fullmatch(cue.group()):
            stated.add(value)
    left = [number for number in numbers if _LEFT.match(text, number.end)]
    if left:
        concluded.append((left[-1].start, _only(left)))
    if not concluded or len(stated) > 1:
        return None
    return max(concluded, key=itemgetter(0))[1]


def _committed(text: str) -> str | None:
    """The one number that a text commits to."""
    text = bare(unstyled(text)).replace(r"\$", " ")
    if _NONE.fullmatch(text):
        return "0"
    numbers = _numbers(text)
    if len({number.value for number in numbers}) > 1:  # "3 objects (2 red, 1 blue)": what stands in brackets explains
        text = _ASIDE.sub(lambda aside: aside.group() if _CHOICE.search(aside.group()) else " ", text)
        numbers = _numbers(text)
    return _only(numbers) or _concluded(text)


def final_number(answer: str) -> str | None:
    """Returns the one number that the answer commits to, in canonical form.

    A box wins; then a text with one number ("none left" is 0), asides in brackets left out if need be; then what
    follows the last conclusion ("= 3", "the answer is 3", "so 3") or is left ("3 remain"). Anything else, such as
    "3 or 4" or a list of digits, commits to nothing.

    Args:
        answer: The content of the answer block.

    Returns:
        The number, or None when there is none or more than one.
    """
    text = legible(answer)
    if text is None:
        return None
    found = {_committed(part) for part in boxed(text) or [text]}
    return found.pop() if len(found) == 1 else None


def score(answer: str, truth: str) -> float:
    """Returns 1.0 when the answer's final number equals the truth, else 0.0.

    Args:
        answer: The content of the answer block.
        truth: A number as text: `3`, `3.0`, `1,200` or a number word.

    Raises:
        UnparsableTruthError: The truth is no number.
    """
    readable = legible(truth) or ""
    boxes = boxed(readable)
    text = bare(unstyled(boxes[-1] if boxes else readable)).rstrip(".")
    if _TRUTH.fullmatch(text):
        wanted = _canonical(text)
    else:
        spelled = spelled_numbers(text)
        if len(spelled) != 1 or spelled[0][:2] != (0, len(text)):
            raise UnparsableTruthError(f"digit truth {truth[:60]!r} is no number; give one such as 3 or 3.0")
        wanted = str(spelled[0][2])
    return float(final_number(answer) == wanted)
