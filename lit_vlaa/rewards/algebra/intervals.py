"""Inequalities in one name, intervals and unions of intervals in one form."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lit_vlaa.rewards.algebra.expressions import Expression, symbol
from lit_vlaa.rewards.algebra.statements import Listing, Statement

_INFINITY = symbol("infty")
_MINUS_INFINITY = Expression("neg", (_INFINITY,))
_NAMED = {"infty"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From one number to another."""

    ends: tuple[Expression, Expression]
    closed: tuple[bool, bool]

    @property
    def values(self) -> tuple[float, float] | None:
        """The ends as numbers, None when they are not in order."""
        found = []
        for end in self.ends:
            try:
                found.append(end.at({"infty": complex(1e300)})[0].real)
            except ArithmeticError:
                return None
        return (found[0], found[1]) if found[0] < found[1] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """A set of numbers."""

    spans: tuple[Span, ...]
    """From left to right, none overlapping another."""
    name: str | None
    """The variable that lies in the set, if the text says it."""


def certain_interval(parsed: object) -> bool:
    """True for what can be no point: an inequality, a half-open or unbounded interval, a union, `x ∈ ...`."""
    if isinstance(parsed, Statement):
        return bool(parsed.relations) and parsed.relations[0] in "<≤"
    if not isinstance(parsed, Listing):
        return False
    if parsed.brackets in {"(]", "[)", "∪", "∨"}:
        return True
    if parsed.brackets == "":
        return all(certain_interval(item) for item in parsed.items)
    named = parsed.label is not None and parsed.label.islower()
    unbounded = any(isinstance(i, Statement) and "infty" in i.sides[0].names() for i in parsed.items)
    return parsed.brackets in {"()", "[]"} and (named or unbounded)


def as_intervals(parsed: Statement | Listing) -> Intervals | None:
    """Returns what a text says of one name as intervals, None when it is no such thing."""
    if isinstance(parsed, Listing) and parsed.brackets in {"∪", "∨", ""}:
        parts = [as_intervals(item) for item in parsed.items]
    else:
        parts = [_interval(parsed)]
    if not all(parts):
        return None
    known = [part for part in parts if part is not None]
    names = {part.name for part in known}
    found = [span for part in known for span in part.spans]
    spans = sorted(((span.values, span) for span in found if span.values is not None), key=lambda pair: pair[0])
    if len(names) != 1 or len(spans) != len(found):
        return None
    if any(left[1] > right[0] for (left, _), (right, _) in pairwise(spans)):
        return None
    name = parsed.label if isinstance(parsed, Listing) and parsed.label else names.pop()
    return Intervals(spans=tuple(span for _, span in spans), name=name)


def _interval(parsed: Statement | Listing) -> Intervals | None:
    if isinstance(parsed, Listing):
        items = [item for item in parsed.items if isinstance(item, Statement)]
        if parsed.brackets not in {"()", "(]", "[)", "[]"} or len(parsed.items) != 2 or len(items) != 2:
            return None
        if any(item.relations or item.label or item.unit or item.sides[0].names() - _NAMED for item in items):
            return None
        closed = (parsed.brackets[0] == "[", parsed.brackets[1] == "]")
        return Intervals(spans=(Span(ends=(items[0].sides[0], items[1].sides[0]), closed=closed),), name=parsed.label)
    inner = [side for side in parsed.sides if side.op == "sym" and side.text not in {"infty", "pi", "e"}]
    outer = [side for side in parsed.sides if not side.names() - _NAMED]
    if not certain_interval(parsed) or len(inner) != 1 or len(inner) + len(outer) != len(parsed.sides) or parsed.unit:
        return None
    closes = [relation == "≤" for relation in parsed.relations]
    if len(parsed.sides) == 2:
        left = parsed.sides[0] is inner[0]
        ends = (_MINUS_INFINITY, parsed.sides[1]) if left else (parsed.sides[0], _INFINITY)
        closed = (False, closes[0]) if left else (closes[0], False)
    elif len(parsed.sides) == 3 and parsed.sides[1] is inner[0] and set(parsed.relations) <= {"<", "≤"}:
        ends, closed = (parsed.sides[0], parsed.sides[2]), (closes[0], closes[1])
    else:
        return None
    return Intervals(spans=(Span(ends=ends, closed=closed),), name=inner[0].text)
