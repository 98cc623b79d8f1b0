"""Cuts a final mathematical answer into values, equations, inequalities and lists, each side an expression tree.

Both sides of an equation are kept. `f(x) = E` and `y = E` are the same assignment. Units and percent signs are split
off, not multiplied in, so that whoever compares decides what they mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lit_vlaa.answers import ascii_digits, unstyled
from lit_vlaa.rewards.expressions import Expression, ExpressionError
from lit_vlaa.rewards.syntax import MAX_CHARS, parse_expression

MAX_ITEMS = 8

UNITS: dict[str, tuple[str, str]] = {
    "mm": ("m", "1/1000"), "cm": ("m", "1/100"), "dm": ("m", "1/10"), "m": ("m", "1"), "km": ("m", "1000"),
    "meter": ("m", "1"), "metre": ("m", "1"), "centimeter": ("m", "1/100"), "centimetre": ("m", "1/100"),
    "millimeter": ("m", "1/1000"), "kilometer": ("m", "1000"), "inch": ("in", "1"), "inche": ("in", "1"),
    "in": ("in", "1"),
    "foot": ("in", "12"), "feet": ("in", "12"), "ft": ("in", "12"), "yard": ("in", "36"), "mile": ("in", "63360"),
    "g": ("g", "1"), "gram": ("g", "1"), "kg": ("g", "1000"), "kilogram": ("g", "1000"), "mg": ("g", "1/1000"),
    "second": ("s", "1"), "sec": ("s", "1"), "s": ("s", "1"), "min": ("s", "60"), "minute": ("s", "60"),
    "hour": ("s", "3600"),
    "liter": ("l", "1"), "litre": ("l", "1"), "ml": ("l", "1/1000"), "mL": ("l", "1/1000"), "L": ("l", "1"),
    "°": ("deg", "1"), "degree": ("deg", "1"), "deg": ("deg", "1"), "rad": ("rad", "1"), "radian": ("rad", "1"),
    "dollar": ("usd", "1"), "unit": ("unit", "1"), "%": ("%", "1"), "percent": ("%", "1"),
}  # fmt: skip
"""Unit to (dimension, factor to the dimension's base unit); a plural s is cut before the look-up."""

_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥",
    "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "approx": "=", "pm": "±", "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "degree": "°", "lbrace": "⦃", "rbrace": "⦄",
    "arctg": r"\arctan", "lg": r"\log_{10}", "left": "", "right": "", "displaystyle": "", "quad": " ",
    "qquad": " ", "limits": "",
    "cup": ",", "angle": " ", "triangle": " ", "bigl": "", "bigr": "", "big": "", "Big": "",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)\s?")
_SPACING = re.compile(r"\\[,;:! ]|~|&")
_SIGNS = str.maketrans(
    {
        "×": "*", "·": "*", "⋅": "*", "∗": "*", "∙": "*", "÷": "/", "⁄": "/", "≈": "=", "≦": "≤", "≧": "≥",
        "∪": ",", "º": "°", "˚": "°",
        "∠": " ", "△": " ", "′": "'", "（": "(", "）": ")", "，": ",", "＝": "=",
        "π": r"\pi ", "∞": r"\infty ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
        "λ": r"\lambda ", "μ": r"\mu ",
        "φ": r"\phi ", "ω": r"\omega ", "½": "(1/2)", "¼": "(1/4)", "¾": "(3/4)", "⅓": "(1/3)", "⅔": "(2/3)",
    }
)  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?)")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_RELATION = re.compile(r"[=<>≤≥≠]")
_WORD_COMMA = re.compile(r"\s(?:and|or)\s|;")
_FUNCTION_OF = re.compile(r"[A-Za-z]\s*\(\s*[A-Za-z]\s*\)")
_LABEL = re.compile(r"\\?[A-Za-z]{1,8}(?:_\{?[A-Za-z0-9]{1,6}\}?)?'?")
_UNIT = re.compile(r"(?<=[\d\s)}|])\s?(?:(square|cubic|sq)\s+)?([A-Za-z]{1,11}|°|%)(?:\s?\^\s?\{?([23])\}?)?$")
_POINT = re.compile(r"\(\s*[a-z]\s*,\s*[a-z]\s*\)|[A-Z]'?")
_MIRROR = {">": "<", "≥": "≤", "<": ">", "≤": "≥"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of measure, or a percent sign."""

    dimension: str
    factor: str
    """Times this gives the dimension's base unit, as `1/100`."""
    required: bool
    """True when the unit could as well be a variable (`5m`), so that leaving it out is not forgiven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A value (one side), an equation (two sides) or a chain of inequalities."""

    sides: tuple[Expression, ...]
    relations: tuple[str, ...] = ()
    """Between the sides; empty for a value. Inequalities point to the larger side."""
    label: str | None = None
    """The name on the left of an assignment such as `y = 2x`, whose value is then the only side."""
    unit: Unit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Several values: a point, an interval, a set or alternatives."""

    brackets: str
    """`()`, `[]`, `(]`, `[)`, `⦃⦄`, or empty."""
    items: tuple[Statement, ...]


def plain_syntax(text: str) -> str:
    r"""Rewrites spacing, synonyms and Unicode of LaTeX so that few symbols remain; keeps `\frac`, `\sqrt` and names."""
    text = _RAISED_RUN.sub(lambda run: "^{" + "".join(_RAISED[char] for char in run.group()) + "}", text)
    text = _ROOT.sub(r"\\sqrt{\1}", ascii_digits(text)).replace("√", r"\sqrt ").translate(_SIGNS)
    text = (
        unstyled(text)
        .replace(r"\{", "⦃")
        .replace(r"\}", "⦄")
        .replace(r"\%", "%")
        .replace(r"\$", " ")
        .replace(r"\|", "|")
    )
    text = _COMMAND.sub(lambda m: _COMMANDS[m.group(1)] if m.group(1) in _COMMANDS else m.group(), text)
    text = (
        _SPACING.sub(" ", text)
        .replace("$", " ")
        .replace("**", "^")
        .replace("<=", "≤")
        .replace(">=", "≥")
        .replace("!=", "≠")
    )
    text = (
        text.replace("^{°}", "°")
        .replace(r"^{\circ}", "°")
        .replace(r"^ {\circ}", "°")
        .replace(r"^\circ", "°")
        .replace("==", "=")
    )
    return re.sub(r"\s+", " ", text).strip(" .,;:")


def _cut(text: str, separator: str) -> list[str]:
    """Splits at a character where no bracket is open."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        if char in "([{⦃":
            depth += 1
        elif char in ")]}⦄":
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _enclosed(text: str) -> bool:
    """True when the first bracket closes at the very end; `(0, 1]` counts."""
    if len(text) < 2 or text[0] not in "([⦃" or text[-1] not in ")]⦄":
        return False
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{⦃") - (char in ")]}⦄")
        if depth == 0:
            return index == len(text) - 1
    return False


def _without_unit(text: str) -> tuple[str, Unit | None]:
    match = _UNIT.search(text)
    if match is None:
        return text, None
    word = match.group(2)
    known = UNITS.get(word) or UNITS.get(word.removesuffix("s")) if len(word) > 1 else UNITS.get(word)
    value = text[: match.start()].strip()
    if known is None or not value or value[-1] in "+-*/^=_":
        return text, None
    letter = len(word) == 1 and word.isalpha()
    if letter and not re.fullmatch(r"[-+]?[\d.,]+", value):
        return text, None
    power = {"square": 2, "sq": 2, "cubic": 3}.get(match.group(1) or "", int(match.group(3) or 1))
    dimension, factor = known
    above, _, below = factor.partition("/")
    factor = f"{int(above) ** power}/{int(below) ** power}" if below else str(int(above) ** power)
    unit = Unit(dimension=dimension if power == 1 else f"{dimension}^{power}", factor=factor, required=letter)
    return value, unit


def _value(text: str) -> Statement:
    value, unit = _without_unit(text.strip())
    if _THOUSANDS.fullmatch(value):
        value = value.replace(",", "")
    try:
        return Statement(sides=(parse_expression(value),), unit=unit)
    except ExpressionError:
        if unit is None:
            raise
        return Statement(sides=(parse_expression(text),))


def _label(text: str) -> str | None:
    """The canonical name on the left of an assignment, None when the text is a term of an equation."""
    text = text.strip()
    if _FUNCTION_OF.fullmatch(text):
        return "y"
    words = text.removeprefix("m ").split()
    if not words or not all(re.fullmatch(r"[A-Za-z\\_{}0-9',]+", word) for word in words):
        return None
    if len(words) > 1 and not all(len(word) > 1 and word.isalpha() for word in words[:-1]):
        return None
    if not _LABEL.fullmatch(words[-1]) or re.fullmatch(r"[a-z]{2,3}", words[-1]):  # `xy = 1` is an equation
        return None
    return words[-1].replace("{", "").replace("}", "").lstrip("\\")


def _relation(text: str) -> Statement:
    operators = _RELATION.findall(text)
    parts = [part.strip() for part in _RELATION.split(text)]
    if not operators:
        return _value(text)
    if len(parts) > MAX_ITEMS or not all(parts):
        raise ExpressionError("a relation lacks a side or has too many")
    if set(operators) == {"="}:
        label = _label(parts[0])
        if label is None and len(parts) == 2 and _label(parts[1]) is not None:
            parts, label = parts[::-1], _label(parts[1])
        if label is not None:
            return replace(_value(parts[-1]), label=label)
        if len(parts) > 2:
            return _value(parts[-1])
        return Statement(sides=(parse_expression(parts[0]), parse_expression(parts[1])), relations=("=",))
    if operators[0] in ">≥":
        operators, parts = [_MIRROR.get(o, o) for o in reversed(operators)], parts[::-1]
    return Statement(sides=tuple(_value(part).sides[0] for part in parts), relations=tuple(operators))


def parse_statement(text: str) -> Statement | Listing:
    """Reads one final answer.

    Raises:
        ExpressionError: The text is outside the grammar or its limits.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    text = plain_syntax(text)
    if not text:
        raise ExpressionError("nothing to read")
    if "±" in text:
        return Listing(brackets="", items=tuple(_relation(text.replace("±", sign)) for sign in "+-"))
    if _THOUSANDS.fullmatch(_without_unit(text)[0]):
        return _value(text)
    head, equals, tail = text.partition("=")
    if equals and _enclosed(tail.strip()) and _POINT.fullmatch(head.strip()):
        text = tail.strip()
    brackets, inside = (text[0] + text[-1], text[1:-1]) if _enclosed(text) else ("", text)
    parts = _cut(_WORD_COMMA.sub(",", inside), ",")
    if len(parts) == 1 and brackets != "⦃⦄":
        return _relation(text)
    parts = [part for part in parts if part.strip()]
    if not 1 <= len(parts) <= MAX_ITEMS:
        raise ExpressionError(f"a list must have 1 to {MAX_ITEMS} items")
    return Listing(brackets=brackets, items=tuple(_relation(part) for part in parts))
