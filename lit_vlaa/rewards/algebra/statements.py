"""Cuts a final mathematical answer into values, equations, inequalities and lists, each side an expression tree.

Both sides of an equation are kept. The name on the left of an assignment such as `y = 2x` becomes its label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lit_vlaa.rewards.algebra.expressions import FUNCTIONS, Expression, ExpressionError
from lit_vlaa.rewards.algebra.notation import plain_syntax
from lit_vlaa.rewards.algebra.readings import DENIAL
from lit_vlaa.rewards.algebra.syntax import MAX_CHARS, parse_expression
from lit_vlaa.rewards.algebra.units import Unit, without_unit

MAX_ITEMS = 8

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_RELATION = re.compile(r"[=<>≤≥≠]")
_ORDER = re.compile(r"[<>≤≥]")
_WORD_COMMA = re.compile(r"\s(?:and|or)\s|;")
_NAME = re.compile(r"\\?[A-Za-z]{1,8}(?:_\{?[A-Za-z0-9]{1,6}\}?)?'{0,2}")
_LABELS = (
    (re.compile(r"\\frac\s?\{\s?d([a-z])\s?\}\s?\{\s?d([a-z])\s?\}|d([a-z])\s?/\s?d([a-z])"), "d{}/d{}"),
    (re.compile(r"([A-Za-wyz](?:'{1,2}|\^\{?-1\}?)?)\s?\(\s?([A-Za-z]|-?\d{1,4})\s?\)"), "{}({})"),
    (re.compile(r"\\?(sin|cos|tan|cot|sec|csc)\s?\(?\s?∠?\s?\\?([A-Z]|theta|alpha|beta|gamma)\s?\)?"), "{} {}"),
    (re.compile(r"\|\s?([A-Z]{2}|z)\s?\|"), "|{}|"),
)
"""What may stand left of an equals sign besides a name: a derivative, a function's value, an angle's sine, a length."""

_ANGLE = re.compile(r"m?\s?[∠△]\s?")
_POINT = re.compile(r"\(\s?[a-z]\s?,\s?[a-z]\s?\)|\\vec ?\{?[a-z]\}?|[A-Z]'?")
_NAMED_POINT = re.compile(r"([A-Z])'?\s?\(")
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s?(?::|to)\s?(\d+(?:\.\d+)?)(?:\s?(?::|to)\s?(\d+(?:\.\d+)?))?")
_MEMBER = re.compile(r"([A-Za-z])\s?∈\s?")
_MIRROR = {">": "<", "≥": "≤", "<": ">", "≤": "≥"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A value (one side), an equation (two sides) or a chain of inequalities."""

    sides: tuple[Expression, ...]
    relations: tuple[str, ...] = ()
    """Between the sides; empty for a value. Inequalities point to the larger side."""
    label: str | None = None
    """What stands left of the equals sign of an assignment, whose value is then the only side."""
    unit: Unit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Several values: a point, an interval, a set, a union, a ratio, a system or alternatives."""

    brackets: str
    """`()`, `[]`, `(]`, `[)`, `⦃⦄`, `∪` (of intervals), `∨` (alternatives), `:` (ratio), or empty."""
    items: tuple[Statement | Listing, ...]
    label: str | None = None
    """A point's name, or the variable of `x ∈ [1, 2]`."""


def cut(text: str, separator: str) -> list[str]:
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
    if len(text) < 2 or text[0] not in "([⦃{" or text[-1] not in ")]⦄}":
        return False
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{⦃") - (char in ")]}⦄")
        if depth == 0:
            return index == len(text) - 1
    return False


def _value(text: str) -> Statement:
    value, unit = without_unit(text.strip())
    if _THOUSANDS.fullmatch(value):
        value = value.replace(",", "").replace(" ", "")
    try:
        expression = parse_expression(value)
    except ExpressionError:
        if unit is None:
            raise
        expression, unit = parse_expression(text), None
    alone = expression.args[0] if expression.op == "neg" else expression
    if alone.op != "sym" and "infty" in expression.names():
        raise ExpressionError("infinity is no number to reckon with")
    return Statement(sides=(expression,), unit=unit)


def _label(text: str) -> str | None:
    """The canonical name on the left of an assignment, None when the text is a term of an equation."""
    text = _ANGLE.sub("", text.strip())
    for pattern, form in _LABELS:
        if match := pattern.fullmatch(text):
            return form.format(*(group.replace("{", "").replace("}", "") for group in match.groups() if group))
    *prose, name = text.replace("{", "").replace("}", "").split() or [""]
    if not _NAME.fullmatch(name) or (re.fullmatch(r"[a-z]{2,3}", name) and not prose):  # `xy = 1` is an equation
        return None
    if not all(len(word) > 1 and word.isalpha() and word not in FUNCTIONS for word in prose) or name in FUNCTIONS:
        return None
    return None if DENIAL.search(text) else name.lstrip("\\")


def _equation(parts: list[str]) -> Statement:
    label = _label(parts[0])
    if label is None and len(parts) == 2 and _label(parts[1]) is not None:
        parts, label = parts[::-1], _label(parts[1])
    if label is None and len(parts) == 2:
        return Statement(sides=(parse_expression(parts[0]), parse_expression(parts[1])), relations=("=",))
    last = _value(parts[-1])
    if len(parts) > 2:
        _require_agreement([*(_value(part).sides[0] for part in parts[1 if label else 0 : -1]), last.sides[0]])
    if label in last.sides[0].names():  # `x = x + 1` defines nothing
        return Statement(sides=(Expression("sym", text=label or ""), last.sides[0]), relations=("=",))
    return replace(last, label=label)


def _require_agreement(chain: list[Expression]) -> None:
    """Refuses chains such as `1 = 2 = 3`, whose numbers contradict each other."""
    values: list[complex] = []
    for side in chain:
        if not side.names():
            try:
                values.append(side.at({})[0])
            except ArithmeticError as error:
                raise ExpressionError("a side of the chain has no value") from error
    if any(abs(value - values[-1]) > 1e-2 * abs(values[-1]) for value in values):  # `≈` rounds
        raise ExpressionError("the sides of the chain differ")


def _relation(text: str) -> Statement:
    operators = _RELATION.findall(text)
    parts = [part.strip() for part in _RELATION.split(text)]
    if not operators:
        return _value(text)
    if len(parts) > MAX_ITEMS or not all(parts):
        raise ExpressionError("a relation lacks a side or has too many")
    if set(operators) == {"="}:
        return _equation(parts)
    if operators[0] in ">≥":
        operators, parts = [_MIRROR.get(o, o) for o in reversed(operators)], parts[::-1]
    values = [_value(part) for part in parts]
    units = {value.unit for value in values if value.unit is not None}
    if len(units) > 1:
        raise ExpressionError("an inequality with two units")
    return Statement(sides=tuple(v.sides[0] for v in values), relations=tuple(operators), unit=next(iter(units), None))


def _joined(first: Statement, second: Statement) -> Statement | None:
    """`x > 1 and x <= 3` as the chain `1 < x <= 3`; None when the two do not meet in one name."""
    for low, high in ((first, second), (second, first)):
        meet = len(low.sides) == len(high.sides) == 2 and low.sides[1] == high.sides[0] and low.sides[1].names()
        if meet and {*low.relations, *high.relations} <= {"<", "≤"}:
            return Statement(sides=(*low.sides, high.sides[1]), relations=low.relations + high.relations)
    return None


def _list(text: str) -> Statement | Listing:
    brackets, inside = (text[0] + text[-1], text[1:-1]) if _enclosed(text) else ("", text)
    brackets = {"{}": "⦃⦄"}.get(brackets, brackets)
    separated = _WORD_COMMA.sub(",", inside)
    parts = cut(separated, ",")
    if len(parts) == 1 and (brackets != "⦃⦄" or text[0] == "{"):
        return _relation(text)
    parts = [part.strip() for part in parts if part.strip()]
    if not 1 <= len(parts) <= MAX_ITEMS:
        raise ExpressionError(f"a list must have 1 to {MAX_ITEMS} items")
    if brackets:
        points = brackets == "⦃⦄"
        items = tuple(_item(part) if points and part.startswith("(") else _relation(part) for part in parts)
        return Listing(brackets=brackets, items=items)
    items = tuple(map(_item, parts))
    if _ORDER.search(text) and len(items) == 2:
        if " or " in inside:
            return Listing(brackets="∨", items=items)
        if " and " in inside and isinstance(items[0], Statement) and isinstance(items[1], Statement):
            return _joined(items[0], items[1]) or Listing(brackets="", items=items)
    return Listing(brackets="", items=items)


def _item(text: str) -> Statement | Listing:
    """A member of a list without brackets: a relation, a point or an interval."""
    head, equals, tail = text.partition("=")
    if equals and _enclosed(tail.strip()) and "," in tail and _POINT.fullmatch(head.strip()):
        inner = _item(tail.strip())
        return replace(inner, label=head.strip().replace(" ", "")) if isinstance(inner, Listing) else inner
    if (named := _NAMED_POINT.match(text)) and _enclosed(text[named.end() - 1 :]) and len(cut(text[2:-1], ",")) > 1:
        return replace(_item(text[named.end() - 1 :]), label=named.group(1))
    if _enclosed(text) and len(cut(text[1:-1], ",")) > 1:
        return _list(text)
    return _relation(text)


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
    if ratio := _RATIO.fullmatch(text):
        numbers = [parse_expression(part) for part in ratio.groups() if part is not None]
        return Listing(brackets=":", items=tuple(Statement(sides=(part,)) for part in numbers))
    if "±" in text:
        items = tuple(_relation(text.replace("±", sign)) for sign in "+-")
        return Listing(brackets="", items=items)
    if _THOUSANDS.fullmatch(without_unit(text)[0]):
        return _value(text)
    if member := _MEMBER.match(text):
        inner = None if "∈" in text[member.end() :] else parse_statement(text[member.end() :])
        if not isinstance(inner, Listing):
            raise ExpressionError("a name can only be an element of one set")
        return replace(inner, label=member.group(1))
    union = cut(re.sub(r"(?<=[)\]]) ?U ?(?=[(\[])", "∪", text), "∪")
    if len(union) > 1:
        intervals = tuple(_item(part.strip()) for part in union[:MAX_ITEMS])
        return Listing(brackets="∪", items=intervals)
    item = _item(text) if not _WORD_COMMA.search(text) and len(cut(text, ",")) == 1 else None
    return item if isinstance(item, Listing) else _list(text)
