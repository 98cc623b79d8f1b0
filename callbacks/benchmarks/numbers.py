"""Numbers in answers: what only surrounds a number is left out, what is more than one number is not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from callbacks.benchmarks.arithmetic import MAX_CHARS, TOLERANCE, Value, distance, evaluate
from lit_vlaa.answers import bare, boxed, legible, unstyled

__all__ = ["TOLERANCE", "Reading", "read_number", "read_numbers"]

_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_CURRENCY = re.compile(r"^([-+]?)\s{0,3}(?:\\\$|[$€£¥₹])\s{0,3}")
_DEGREES = r"\^\s?(?:\\circ|\{\s?\\circ\s?\})|°|\\degree"
_SHORT = r"(?:[mckd]?m|ft|in|yd|mi|[mk]?g|lb|oz|m?l|s|h|hr|km/h|m/s|mph)(?:\^\{?[23]\}?|[²³])?"
_UNIT = re.compile(rf"(?<=[\d)}}πi])(?:\\[,; ]|\s){{0,4}}(?:\\?%|{_DEGREES}|{_SHORT}|[a-z]{{3,20}})\s{{0,3}}$")
_NO_UNIT = re.compile(
    r"(?:hundred|thousand|million|billion|trillion|dozen|score|half|halves|thirds?|quarters?|fourths?|fifths?|"
    r"squared|cubed|more|less|fewer|greater|later|earlier|plus|minus|times|over|and|not|wrong|sqrt|frac|pairs?)\s{0,3}$"
)
_NAMED = re.compile(r"^\\?[a-z][\w{}\\' ]{0,20}\s{0,3}=\s{0,3}(?=[^=])")
_DECIMAL = re.compile(r"[-+]?\d*\.(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """A number found in an answer."""

    value: Value
    decimals: int | None
    """Digits after the point; None where it is not written as a decimal number with a point."""

    @property
    def terminates(self) -> bool:
        """Whether some decimal number is exactly this value."""
        if not isinstance(self.value, Fraction):
            return False
        rest = self.value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        return rest == 1

    def equals(self, other: Reading) -> bool:
        """Whether the two differ by less than `TOLERANCE`."""
        return distance(self.value, other.value) < TOLERANCE

    def rounds_to(self, other: Reading) -> bool:
        """Whether this is `other` when rounded to the decimals in which that is written."""
        return distance(self.value, other.value) <= 0.5 * 10.0 ** -(other.decimals or 0) + 1e-12


def read_number(text: str) -> Reading | None:
    r"""The number that an answer is, leaving out what only surrounds it.

    Read are a box (the last one), emphasis and mathematical delimiters, `x =` in front, a currency sign, separators of
    thousands, a percent or degree sign, and one unit behind the number. An answer of more words is no number.

    Args:
        text: The answer.

    Returns:
        The number, None if the answer is not a single one that can be read.
    """
    seen = legible(text)
    if seen is None:
        return None
    boxes = boxed(seen)
    plain = bare(unstyled(bare(boxes[-1] if boxes else seen))).rstrip(". ").lower()
    if len(plain) > MAX_CHARS:
        return None
    plain = _CURRENCY.sub(r"\1", bare(_NAMED.sub("", plain)))
    plain = _GROUPED.sub(lambda match: match.group().replace("{,}", "").replace(",", ""), plain)
    value = evaluate(plain, irrational=True)
    if value is None and (unit := _UNIT.search(plain)) is not None and not _NO_UNIT.search(plain):
        plain = plain[: unit.start()].strip()
        value = evaluate(plain, irrational=True)
    if value is None:
        return None
    decimal = _DECIMAL.fullmatch(plain)
    return Reading(value, len(decimal[1]) if decimal else None)


def read_numbers(text: str) -> tuple[Reading, ...] | None:
    """The numbers of an answer that is a list of them, such as `[2007, 2008]`, with or without its brackets.

    Args:
        text: The answer.

    Returns:
        Them in order; None if the answer is no list of at least two numbers.
    """
    seen = legible(text)
    if seen is None:
        return None
    boxes = boxed(seen)
    plain = bare(boxes[-1] if boxes else seen).rstrip(". ")
    if plain[:1] + plain[-1:] in {"[]", "()"}:
        plain = plain[1:-1]
    parts = plain.split(",")
    if not 2 <= len(parts) <= MAX_CHARS or len(plain) > MAX_CHARS:
        return None
    numbers = [read_number(part) for part in parts]
    return None if None in numbers else tuple(number for number in numbers if number is not None)
