"""Units of measure at the end of a value. They are split off, not multiplied in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

UNITS: dict[str, tuple[str, str]] = {
    "mm": ("m", "1/1000"), "cm": ("m", "1/100"), "dm": ("m", "1/10"), "m": ("m", "1"), "km": ("m", "1000"),
    "meter": ("m", "1"), "metre": ("m", "1"), "centimeter": ("m", "1/100"), "centimetre": ("m", "1/100"),
    "millimeter": ("m", "1/1000"), "kilometer": ("m", "1000"), "kilometre": ("m", "1000"), "inch": ("in", "1"),
    "inche": ("in", "1"), "in": ("in", "1"), "foot": ("in", "12"), "feet": ("in", "12"), "ft": ("in", "12"),
    "yard": ("in", "36"), "yd": ("in", "36"), "mile": ("in", "63360"), "mi": ("in", "63360"),
    "g": ("g", "1"), "gram": ("g", "1"), "kg": ("g", "1000"), "kilogram": ("g", "1000"), "mg": ("g", "1/1000"),
    "second": ("s", "1"), "sec": ("s", "1"), "s": ("s", "1"), "min": ("s", "60"), "minute": ("s", "60"),
    "hour": ("s", "3600"), "hr": ("s", "3600"), "h": ("s", "3600"), "day": ("s", "86400"),
    "liter": ("l", "1"), "litre": ("l", "1"), "ml": ("l", "1/1000"), "mL": ("l", "1/1000"), "L": ("l", "1"),
    "°": ("deg", "1"), "degree": ("deg", "1"), "deg": ("deg", "1"), "rad": ("rad", "1"), "radian": ("rad", "1"),
    "dollar": ("usd", "1"), "USD": ("usd", "1"), "unit": ("unit", "1"), "%": ("%", "1"), "percent": ("%", "1"),
    "mph": ("in/s", "88/5"),
}  # fmt: skip
"""Unit to (dimension, factor to the dimension's base unit); a plural s is cut before the look-up."""

_UNIT = re.compile(
    r"(?<=[\d\s)}|])(\s?)(?:(square|cubic|sq)\s)?([A-Za-z]{1,11}|°|%)(?:\s?\^\s?\{?([23])\}?|([23]))?"
    r"(?:\s?(?:/|per\s)\s?([A-Za-z]{1,11})(?:\s?\^\s?\{?([23])\}?)?)?$"
)
_PLAIN = re.compile(r"[-+]?[\d.,]+")
_ANGLE_OF = re.compile(r"sin|cos|tan|cot|sec|csc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of measure, or a percent sign."""

    dimension: str
    factor: str
    """Times this gives the dimension's base unit, as `1/100`."""
    required: bool
    """True when the unit could as well be a variable (`5m`), so that leaving it out is not forgiven."""


def _look_up(word: str) -> tuple[str, str] | None:
    return UNITS.get(word) or (UNITS.get(word.removesuffix("s")) if len(word) > 2 else None)


def without_unit(text: str) -> tuple[str, Unit | None]:
    """Splits `25 cm^2` into the text of its value and its unit; the unit is None when there is none."""
    match = _UNIT.search(text)
    if match is None:
        return text, None
    space, adjective, word, power, digit, below, below_power = match.groups()
    value = text[: match.start()].strip()
    known = _look_up(word)
    if known is None or not value or value[-1] in "+-*/^=_" or (word == "°" and _ANGLE_OF.search(value)):
        return text, None
    letter = len(word) == 1 and word.isalpha()
    if letter and not _PLAIN.fullmatch(value):
        return text, None
    exponent = {"square": 2, "sq": 2, "cubic": 3}.get(adjective or "", int(power or digit or 1))
    dimension = known[0] if exponent == 1 else f"{known[0]}^{exponent}"
    factor = Fraction(known[1]) ** exponent
    if below is not None:
        divisor = _look_up(below)
        if divisor is None:
            return text, None
        exponent = int(below_power or 1)
        dimension += f"/{divisor[0]}" + (f"^{exponent}" if exponent > 1 else "")
        factor /= Fraction(divisor[1]) ** exponent
    required = letter and not space and below is None
    return value, Unit(dimension=dimension, factor=str(factor), required=required)
