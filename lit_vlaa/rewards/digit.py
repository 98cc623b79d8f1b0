"""Reward of counting questions (CLEVR-Math): the answer's one final number equals the truth.

Numbers are compared as strings in a canonical form, so no length of digits costs more than its length.
"""

from __future__ import annotations

import re

from lit_vlaa.answers import ascii_digits, bare, boxed, spelled_numbers, unstyled
from lit_vlaa.rewards.errors import UnparsableTruthError

MAX_ANSWER_CHARS = 4000
"""A longer answer commits to nothing."""

_NUMBER = re.compile(r"(?<![\w.])(?:(?<![\d)] )-)?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?![\w]|\.\d)")
_TRUTH = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?")
_CONCLUSION = re.compile(
    r"=|≈|\banswer\s*(?:is|:|=)|\btotal\s+(?:is|of)\b|\b(?:so|therefore|thus|hence)\b", re.IGNORECASE
)
_NOT_MEANT = re.compile(
    r"(?:\b(?:not|isn't|never)|\b(?:more|less|fewer|greater|other|rather)\s+than)\s*$", re.IGNORECASE
)
_ASIDE = re.compile(r"\([^()]{0,200}\)")
_CHOICE = re.compile(r"\b(?:or|either|between)\b", re.IGNORECASE)


def _canonical(number: str) -> str:
    """The same string for `3`, `03`, `3.0` and `+3`."""
    negative = number.startswith("-")
    whole, _, fraction = number.lstrip("+-").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    text = f"{whole}.{fraction}" if fraction else whole
    return f"-{text}" if negative and text != "0" else text


def _numbers(text: str) -> set[str]:
    """The different numbers that a text states, digits and words alike; those it rules out are left out."""
    spans = [(m.start(), _canonical(m.group())) for m in _NUMBER.finditer(text)]
    spans += [(start, str(value)) for start, _, value in spelled_numbers(text)]
    return {number for start, number in spans if not _NOT_MEANT.search(text[max(0, start - 24) : start])}


def final_number(answer: str) -> str | None:
    """Returns the one number that the answer commits to, in canonical form.

    A box wins; then a text with one number, asides in brackets left out if need be; then what follows the last
    conclusion ("= 3", "the answer is 3", "so 3"). Anything else, such as "out of the 4, 3 remain", "3 or 4" or a list
    of digits, commits to nothing.

    Args:
        answer: The content of the answer block.

    Returns:
        The number, or None when there is none or more than one.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    text = ascii_digits(answer)
    boxes = boxed(text)
    if boxes:
        text = " ; ".join(boxes)
    text = unstyled(text).replace("\\$", " ").replace("$", " ").replace("*", " * ")
    numbers = _numbers(text)
    if len(numbers) > 1 and not boxes:  # "3 objects (2 red, 1 blue)": what stands in brackets explains
        text = _ASIDE.sub(" ", text)
        numbers = _numbers(text)
    if len(numbers) > 1 and not boxes and not _CHOICE.search(text):
        conclusions = list(_CONCLUSION.finditer(text))
        numbers = _numbers(text[conclusions[-1].end() :]) if conclusions else set()
    return numbers.pop() if len(numbers) == 1 else None


def score(answer: str, truth: str) -> float:
    """Returns 1.0 when the answer's final number equals the truth, else 0.0.

    Args:
        answer: The content of the answer block.
        truth: A number as text: `3`, `3.0`, `1,200` or a number word.

    Raises:
        UnparsableTruthError: The truth is no number.
    """
    boxes = boxed(truth)
    text = bare(unstyled(ascii_digits(boxes[-1] if boxes else truth))).rstrip(".")
    if _TRUTH.fullmatch(text):
        wanted = _canonical(text)
    else:
        spelled = spelled_numbers(text)
        if len(spelled) != 1 or spelled[0][:2] != (0, len(text)):
            raise UnparsableTruthError(f"digit truth {truth[:60]!r} is no number; give one such as 3 or 3.0")
        wanted = str(spelled[0][2])
    return float(final_number(answer) == wanted)
