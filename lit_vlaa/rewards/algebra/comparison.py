"""Compares two parsed answers: refutes what it can, and writes down what Math-Verify has left to confirm.

Decisions
1. An assignment counts as its value when the other text gives a bare value: `a = -5` and `-5`. Two names must agree;
   `y` stands for any function of one letter, `f(x)`.
2. A unit or a percent sign that one text leaves out is forgiven; two units must agree after conversion (`5 m` is
   `500 cm`). One-letter units directly on a number (`5m`) could be variables and are not forgiven.
3. `50%`, `0.5` and `50` are the same answer as long as only one of the two texts has the percent sign.
4. Decimals agree when their relative difference is at most 2e-6 *and* Math-Verify agrees; `0.333` is not one third.
5. `(a, b)` is an interval only beside `x ∈ (a, b)` or beside a truth that is an inequality or a union.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lit_vlaa.rewards.algebra.expressions import Expression, difference, number, scaled, symbol
from lit_vlaa.rewards.algebra.intervals import Intervals, as_intervals, certain_interval
from lit_vlaa.rewards.algebra.layouts import Layout
from lit_vlaa.rewards.algebra.refutation import cross_products, not_proportional, refuted, solves
from lit_vlaa.rewards.algebra.statements import Listing, Statement
from lit_vlaa.rewards.workers import Pair

Parsed = Statement | Listing | Layout

_FUNCTION = re.compile(r"[a-z]\([a-z]\)")
_NAME = re.compile(r"[A-Za-z]+(?:_[A-Za-z0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What remains to be confirmed before an answer is paid."""

    possible: bool
    """False when the answer is already known to be wrong."""
    pairs: tuple[Pair, ...] = ()
    """For `MathPool`; all must be equal."""


WRONG = Plan(possible=False)
RIGHT = Plan(possible=True)


def _confirm(truth: Expression, answer: Expression) -> Plan:
    return RIGHT if truth == answer else Plan(possible=True, pairs=(Pair("tree", truth.wire(), answer.wire()),))


def _all(plans: list[Plan]) -> Plan:
    if not all(plan.possible for plan in plans):
        return WRONG
    return Plan(possible=True, pairs=tuple(pair for plan in plans for pair in plan.pairs))


def compare(truth: Parsed, answer: Parsed) -> Plan:
    """Compares a truth with an answer."""
    if isinstance(truth, Layout) or isinstance(answer, Layout):
        return _compare_layouts(truth, answer)
    if isinstance(truth, Listing) and isinstance(answer, Listing) and truth.brackets == answer.brackets:
        return _compare_listings(truth, answer)
    if certain_interval(truth) or certain_interval(answer):
        if isinstance(truth, Statement) and isinstance(answer, Statement):
            return _compare_statements(truth, answer)
        allowed = certain_interval(truth) or (isinstance(truth, Listing) and truth.brackets == "[]")
        return _compare_intervals(as_intervals(truth), as_intervals(answer)) if allowed else WRONG
    if isinstance(truth, Listing) and isinstance(answer, Listing):
        return _compare_listings(_as_point(truth), _as_point(answer))
    first, second = _only_item(truth), _only_item(answer)
    return WRONG if first is None or second is None else _compare_statements(first, second)


def _only_item(parsed: Statement | Listing) -> Statement | None:
    """The statement that a list of one holds; a ratio of two is a fraction."""
    if isinstance(parsed, Statement):
        return parsed
    items = [item for item in parsed.items if isinstance(item, Statement)]
    if parsed.brackets == ":" and len(items) == 2:
        return Statement(sides=(Expression("div", (items[0].sides[0], items[1].sides[0])),))
    return items[0] if len(items) == len(parsed.items) == 1 else None


def _agree(first: str | None, second: str | None) -> bool:
    """True when two labels can mean the same."""
    if first is None or second is None or first == second:
        return True
    return "y" in {first, second} and any(_FUNCTION.fullmatch(label) for label in (first, second))


def _compare_statements(truth: Statement, answer: Statement) -> Plan:
    if truth.relations or answer.relations:
        if any(not s.relations and s.label is None for s in (truth, answer)):
            return WRONG
        return _compare_relations(truth, answer)
    if not _agree(truth.label, answer.label):
        if truth.label not in answer.sides[0].names():
            return WRONG
        return _compare_relations(truth, answer)  # y = 2x and x = y/2
    return _compare_values(truth, answer)


def _compare_values(truth: Statement, answer: Statement) -> Plan:
    a, b = truth.sides[0], answer.sides[0]
    t_unit, a_unit = truth.unit, answer.unit
    readings = [(a, b)]
    if t_unit is not None and a_unit is not None:
        if t_unit.dimension != a_unit.dimension:
            return WRONG
        if t_unit.factor != a_unit.factor:
            readings = [(scaled(a, t_unit.factor), scaled(b, a_unit.factor))]
    elif (unit := t_unit or a_unit) is not None:
        if unit.required:
            return WRONG
        if unit.dimension == "%":
            readings.append((scaled(a, "1/100"), b) if t_unit is not None else (a, scaled(b, "1/100")))
    for wanted, given in readings:
        if refuted(wanted, given):
            continue
        if (wanted.op == "sym") != (given.op == "sym"):  # Math-Verify compares a lone name by its spelling only
            one = number("1")
            return _confirm(Expression("add", (wanted, one)), Expression("add", (given, one)))
        return _confirm(wanted, given)
    return WRONG


def _equation(statement: Statement) -> tuple[Expression, Expression] | None:
    """The two sides; None for an inequality, and for an assignment to something that is no name."""
    if statement.relations:
        return (statement.sides[0], statement.sides[1]) if statement.relations == ("=",) else None
    label = statement.label or ""
    name = "y" if _FUNCTION.fullmatch(label) else label
    return (symbol(name), statement.sides[0]) if _NAME.fullmatch(name) else None


def _compare_relations(truth: Statement, answer: Statement) -> Plan:
    if not truth.relations or not answer.relations:
        return _compare_equations(truth, answer)
    if truth.relations != answer.relations or len(truth.sides) != len(answer.sides):
        return WRONG
    if truth.unit is not None and answer.unit is not None and truth.unit != answer.unit:
        return WRONG
    plans = []
    for index, relation in enumerate(truth.relations):
        wanted = difference(*truth.sides[index : index + 2])
        given = difference(*answer.sides[index : index + 2])
        plans.append(_proportional(wanted, given, positive=relation not in "=≠"))
    return _all(plans)


def _proportional(truth: Expression, answer: Expression, *, positive: bool) -> Plan:
    if truth == answer:
        return RIGHT
    if truth.names() != answer.names() or not_proportional(truth, answer, positive=positive):
        return WRONG
    products = cross_products(truth, answer)
    return WRONG if products is None else _confirm(*products)


def _compare_equations(truth: Statement, answer: Statement) -> Plan:
    """One assignment at least, and an equation in another form."""
    wanted, given = _equation(truth), _equation(answer)
    if wanted is None or given is None or truth.unit != answer.unit:
        return WRONG
    plan = _proportional(difference(*wanted), difference(*given), positive=False)
    if plan.possible:
        return plan
    (name, value), other = (wanted, given) if not truth.relations else (given, wanted)
    rest = difference(*other)
    if name.text not in rest.names() or name.text in value.names() or not solves(name.text, value, rest):
        return WRONG
    sides = [Expression("eq", pair).wire() for pair in (wanted, given)]
    return Plan(possible=True, pairs=(Pair("tree", *sides),))


def _compare_intervals(truth: Intervals | None, answer: Intervals | None) -> Plan:
    if truth is None or answer is None or len(truth.spans) != len(answer.spans):
        return WRONG
    if truth.name is not None and answer.name is not None and truth.name != answer.name:
        return WRONG
    plans = []
    for wanted, given in zip(truth.spans, answer.spans, strict=True):
        if wanted.closed != given.closed:
            return WRONG
        for a, b in zip(wanted.ends, given.ends, strict=True):
            plans.append(_compare_values(Statement(sides=(a,)), Statement(sides=(b,))))
    return _all(plans)


def _as_point(listing: Listing) -> Listing:
    """`x = 3, y = -2` as the point (3, -2); anything else as it is."""
    labels = [item.label if isinstance(item, Statement) else None for item in listing.items]
    if listing.brackets or len(labels) < 2 or sorted(filter(None, labels)) != ["x", "y", "z"][: len(labels)]:
        return listing
    ordered = sorted(zip(labels, listing.items, strict=True), key=lambda pair: str(pair[0]))
    return Listing(brackets="()", items=tuple(replace(item, label=None) for _, item in ordered))


def _without_subscripts(listing: Listing, other: Listing) -> Listing:
    """`x_1 = 2, x_2 = 3` as `x = 2, x = 3` when the other list numbers nothing."""
    if any("_" in (item.label or "") for item in other.items):
        return listing
    return replace(
        listing, items=tuple(replace(item, label=item.label and item.label.partition("_")[0]) for item in listing.items)
    )


def _named_apart(truth: Listing, answer: Listing) -> bool:
    """True when one list tells its items apart by name, the other only by order: `x = 3, y = 2` and `3, 2`."""
    labels = [[item.label for item in part.items] for part in (truth, answer)]
    return any(None in these and len(set(others) - {None}) > 1 for these, others in (labels, labels[::-1]))


def _compare_listings(truth: Listing, answer: Listing) -> Plan:
    if len(truth.items) != len(answer.items) or not _agree(truth.label, answer.label):
        return WRONG
    if truth.brackets == ":" or answer.brackets == ":":
        return _compare_ratios(truth, answer)
    if truth.brackets == answer.brackets == "∪":
        return _compare_intervals(as_intervals(truth), as_intervals(answer))
    unordered = truth.brackets in {"", "⦃⦄", "∨"}
    allowed = {"", "⦃⦄", "∨"} if unordered else {truth.brackets}
    if truth.brackets == "()" and not any(item.label for item in answer.items):
        allowed.add("")
    if answer.brackets not in allowed:
        return WRONG
    if unordered:
        truth, answer = _without_subscripts(truth, answer), _without_subscripts(answer, truth)
        unordered = not _named_apart(truth, answer)
    left = list(answer.items)
    plans: list[Plan] = []
    for item in truth.items:
        for candidate in left if unordered else left[:1]:
            plan = compare(item, candidate)
            if plan.possible:
                left.remove(candidate)
                plans.append(plan)
                break
        else:
            return WRONG
    return _all(plans)


def _compare_ratios(truth: Listing, answer: Listing) -> Plan:
    if truth.brackets != answer.brackets:
        return WRONG
    sides = [[item.sides[0] for item in part.items if isinstance(item, Statement)] for part in (truth, answer)]
    shares = [[Expression("div", (side, whole[0])) for side in whole[1:]] for whole in sides]
    return _all([_compare_values(Statement(sides=(a,)), Statement(sides=(b,))) for a, b in zip(*shares, strict=True)])


def _compare_layouts(truth: Parsed, answer: Parsed) -> Plan:
    if not isinstance(truth, Layout) or not isinstance(answer, Layout):  # a column is a point
        first, second = (part.column if isinstance(part, Layout) else part for part in (truth, answer))
        points = isinstance(first, Listing) and isinstance(second, Listing) and first.brackets == second.brackets
        return _compare_listings(first, second) if points else WRONG  # type: ignore[arg-type]  # both are listings
    shapes = [[len(row) for row in part.rows] for part in (truth, answer)]
    if truth.kind != answer.kind or shapes[0] != shapes[1] or not _agree(truth.label, answer.label):
        return WRONG
    if truth.kind == "matrix":
        cells = zip(sum(truth.rows, ()), sum(answer.rows, ()), strict=True)
        return _all([compare(a, b) for a, b in cells])
    left = list(answer.rows)
    plans: list[Plan] = []
    for row in truth.rows:
        for candidate in left:
            plan = _all([compare(a, b) for a, b in zip(row, candidate, strict=True)])
            if plan.possible:
                left.remove(candidate)
                plans.append(plan)
                break
        else:
            return WRONG
    return _all(plans)
