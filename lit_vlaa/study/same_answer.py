"""Whether two answers are the same: numbers in other forms, letters and options' texts, boxes, words.

Both are hostile text: each function is linear in its input, raises nothing and evaluates nothing. A pair that cannot be
compared (a letter and a word without the question's options) is neither the same nor different.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from lit_vlaa.answers import bare, boxed, legible, spelled_numbers, unstyled
from lit_vlaa.rewards.options import NO_OPTIONS, Options, plain

BOX = re.compile(r"[\[(]\s?(-?[\d.]+),\s?(-?[\d.]+)\s?[,)]+\s?\(?(-?[\d.]+),\s?(-?[\d.]+)\s?[\])]")
"""Four numbers in brackets."""
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
"""A number in a text."""

_SPELLED_CHARS = 100
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(-?\d{1,15})\s?\}\s?\{\s?(\d{1,15})\s?\}")
_PLAIN_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,18})?)(?:\s?/\s?(\d{1,15}))?")
_LETTER = re.compile(r"\W{0,4}(?:option|choice|answer)?\W{0,4}([A-Za-z])\W{0,4}", re.IGNORECASE)
_LEADING_LETTER = re.compile(r"\(?([A-Z])[):.]\s")
_NAME = re.compile(r"\s*[A-Za-z](?:\([a-z]\))?\s?=\s?")
_WORD = re.compile(r"\w+")
_STOP = frozenset({"a", "an", "the", "is", "are", "it", "its", "of", "in", "on", "with", "and", "to", "this", "that"})


def same_answer(first: str, second: str, options: Options = NO_OPTIONS) -> bool | None:
    """Whether two answers say the same.

    Letters are compared as letters, and with an option's text where the question lists options; boxes and numbers by
    their values, to the digits of the coarser one; formulas by their spelling without blanks; other texts are the same
    where the words of one are among those of the other, and different where they share none or hold other numbers.

    Args:
        first: An answer in any form.
        second: Another.
        options: Of the question.

    Returns:
        None where it cannot be told.
    """
    one, two = _readable(first), _readable(second)
    if not one or not two:
        return None
    if plain(one) == plain(two):
        return True
    letters = _letter(one, options), _letter(two, options)
    if letters != (None, None):
        return None if None in letters else letters[0] == letters[1]
    first_box, second_box = _box(one), _box(two)
    if first_box or second_box:
        return _close(first_box, second_box) if first_box and second_box else None
    return _same_value(one, two)


def _same_value(one: str, two: str) -> bool | None:
    """Whether numbers, formulas or words say the same."""
    first, second = _number(one), _number(two)
    if first is not None and second is not None:
        return _equal(first, second)
    formulas = [re.sub(r"[\s*{}\\$]", "", plain(_NAME.sub("", text, count=1))) for text in (one, two)]
    if formulas[0] == formulas[1]:
        return True
    if all(re.search(r"[=+*/^√]|\d-|\w\(", formula) for formula in formulas):
        return False
    return _same_words(one, two)


def _readable(text: str) -> str:
    text = legible(text.strip()) or ""
    inside = boxed(text)
    return bare(unstyled(inside[-1] if inside else text)).strip(" .!。")


def _letter(text: str, options: Options) -> str | None:
    """The option that a text stands for."""
    if match := _LETTER.fullmatch(text) or _LEADING_LETTER.match(text):
        letter = match.group(1).upper()
        return letter if letter in options.letters else None
    if named := options.named_by(text):
        return named
    number = _number(text)
    same = [letter for letter, option in options.texts.items() if number is not None and _number(option) == number]
    return same[0] if len(same) == 1 else None


def _box(text: str) -> tuple[float, ...] | None:
    match = BOX.search(text)
    try:
        return None if match is None else tuple(float(value) for value in match.groups())
    except ValueError:  # two points in a number
        return None


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Within a fiftieth of the largest coordinate."""
    largest = max(map(abs, (*first, *second)))
    return all(abs(a - b) <= 0.02 * largest for a, b in zip(first, second, strict=True))


def _number(text: str) -> tuple[Fraction, int | None] | None:
    """Value and decimals (None for an exact one) of a text that is one number, perhaps with a name and a unit."""
    text = _FRACTION.sub(r"\1/\2", _NAME.sub("", text, count=1)).replace("$", "").strip().lstrip("≈~")
    if match := _PLAIN_NUMBER.match(text.strip()):
        rest = text.strip()[match.end() :].strip()
        if not re.fullmatch(r"(?:[%°]|\^?\{?\\circ\}?|\\?[^\W\d]{1,20}\.?)?(?:\s[^\W\d]{1,20}){0,3}", rest):
            return None
        digits = match.group(1).replace(",", "")
        below = int(match.group(2) or 1)
        decimals = len(digits.partition(".")[2]) or None
        return None if not below else (Fraction(digits) / below, decimals if below == 1 else None)
    spelled = spelled_numbers(text[:_SPELLED_CHARS])
    if len(spelled) == 1 and spelled[0][0] == 0 and len(_WORD.findall(text[spelled[0][1] :])) <= 3:
        return Fraction(spelled[0][2]), None
    return None


def _equal(first: tuple[Fraction, int | None], second: tuple[Fraction, int | None]) -> bool:
    decimals = [places for _, places in (first, second) if places is not None]
    if not decimals or any(value.denominator == 1 and places is None for value, places in (first, second)):
        return first[0] == second[0]
    return abs(first[0] - second[0]) <= Fraction(1, 2 * 10 ** min(decimals))


def _same_words(one: str, two: str) -> bool | None:
    words = [{word for word in _WORD.findall(text.casefold()) if word not in _STOP} for text in (one, two)]
    first, second = words
    if not first or not second:
        return None
    if first <= second or second <= first or plain(one) in plain(two) or plain(two) in plain(one):
        return True
    numbers = [
        {match.group().replace(",", "") for match in NUMBER.finditer(text)}
        | {str(value) for _, _, value in spelled_numbers(text)}
        for text in (one, two)
    ]
    if numbers[0] and numbers[1]:
        return bool(numbers[0] & numbers[1])
    if numbers[0] or numbers[1]:
        return None
    return None if first & second else False
