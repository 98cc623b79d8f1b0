"""Reward of mathematical answers: equal as mathematics, by Math-Verify behind a front end of our own.

The front end reduces both texts to their final expression and reads them with one grammar. It refutes most wrong
answers at once by evaluating both sides at a few points (in floating point, with error bounds). That also closes the
cases in which Math-Verify calls different things equal. What it cannot refute is confirmed by Math-Verify in worker
processes: a point is paid only when both agree.

Decisions
1. An assignment counts as its value when the other text gives a bare value: `a = -5` and `-5`.
2. A unit or a percent sign that one text leaves out is forgiven; two units must agree after conversion (`5 m` is
   `500 cm`). One-letter units directly on a number (`5m`) could be variables and are not forgiven.
3. `50%`, `0.5` and `50` are the same answer as long as only one of the two texts has the percent sign.
4. Decimals agree when their relative difference is at most 2e-6 *and* Math-Verify agrees; `0.333` is not one third.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_vlaa.answers import bare, boxed
from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.expressions import Expression, ExpressionError, difference, number, scaled
from lit_vlaa.rewards.statements import Listing, Statement, parse_statement, plain_syntax
from lit_vlaa.rewards.syntax import MAX_CHARS
from lit_vlaa.rewards.workers import MathPool, PairVerdict
from lit_vlaa.types import RewardStatus

MAX_ANSWER_CHARS = 4000
"""A longer answer is wrong without being read."""

_MARK = re.compile(r"\banswer\b\s*(?:\bis\b)?\s*[:=]?\s*", re.IGNORECASE)
_SPAN = re.compile(r"\$\$?([^$]+)\$\$?|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL)
_LEAD = re.compile(r"(?:\bis\b|\bequals\b|\bby\b|:)\s*", re.IGNORECASE)
_POINTS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What remains to be confirmed before an answer is paid."""

    possible: bool
    """False when the answer is already known to be wrong."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(truth, answer) in LaTeX; all must be equal."""


_WRONG = Plan(possible=False)


def final_texts(text: str, *, last_box: bool) -> list[str]:
    """Returns readings of a text's final expression, most literal first; empty when it commits to none.

    Args:
        text: An answer or a truth: an expression, a worked solution ending in a dagger and `Answer: ...`, or prose
            with one expression.
        last_box: With several different boxes, take the last (truth) instead of none (answer).
    """
    text = text.rpartition("†")[2].strip()
    boxes = list(dict.fromkeys(box for box in boxed(text) if box))
    if len(boxes) > 1 and not last_box:
        return []
    if boxes:
        return [bare(boxes[-1])]
    marks = list(_MARK.finditer(text))
    if marks and marks[-1].end() < len(text):
        text = text[marks[-1].end() :]
    lines = [line for line in text.splitlines() if line.strip()]
    readings = [bare(text.strip().rstrip("."))]
    if len(lines) > 1:
        readings.append(bare(lines[-1].strip().rstrip(".")))
    text = readings[-1]
    spans = list(dict.fromkeys(next(g for g in m.groups() if g).strip() for m in _SPAN.finditer(text)))
    if len(spans) == 1:
        readings.append(spans[0])
    elif not spans and (leads := list(_LEAD.finditer(text))):
        readings.append(text[leads[-1].end() :])
    return readings


def _read(text: str, *, last_box: bool) -> tuple[Statement | Listing | None, str]:
    """The first reading that parses, and the most reduced text."""
    readings = final_texts(text, last_box=last_box)
    for reading in readings:
        try:
            return parse_statement(reading), reading
        except ExpressionError:
            continue
    return None, readings[-1] if readings else ""


def _points(names: Sequence[str]) -> list[dict[str, complex]]:
    """A few fixed points, positive and negative, that no formula is likely to single out."""
    points = []
    for k in range(_POINTS):
        fractions = [((j + 1) * 0.7548776662466927 + (k + 1) * 0.5698402909980532) % 1 for j in range(len(names))]
        low, width = ((0.2, 3.0), (-3.1, 2.9))[k % 2]
        points.append({name: complex(low + width * f) for name, f in zip(names, fractions, strict=True)})
    return points


def _evaluate(expression: Expression, point: dict[str, complex]) -> tuple[complex, float] | None:
    try:
        return expression.at(point)
    except ArithmeticError:
        return None


def refuted(truth: Expression, answer: Expression) -> bool:
    """True when the two differ for certain at some point, or the answer has no value wherever the truth has one."""
    tolerance = 2e-6 if truth.has_decimals() or answer.has_decimals() else 1e-9
    truth_values = answer_values = 0
    for point in _points(sorted(truth.names() | answer.names())):
        wanted = _evaluate(truth, point)
        if wanted is None:
            continue
        truth_values += 1
        given = _evaluate(answer, point)
        if given is None:
            continue
        answer_values += 1
        (a, da), (b, db) = wanted, given
        if abs(a - b) > tolerance * max(abs(a), abs(b)) + 64 * (da + db):
            return True
    return truth_values > 0 and answer_values == 0


def _not_proportional(truth: Expression, answer: Expression, *, positive: bool) -> bool:
    """True when one is certainly no constant multiple (a positive one, if asked) of the other."""
    ratios: list[tuple[complex, float]] = []
    for point in _points(sorted(truth.names() | answer.names())):
        wanted, given = _evaluate(truth, point), _evaluate(answer, point)
        if wanted is None or given is None or abs(wanted[0]) <= 64 * wanted[1]:
            continue
        ratio = given[0] / wanted[0]
        ratios.append((ratio, 64 * (given[1] + abs(ratio) * wanted[1]) / abs(wanted[0])))
    if not ratios:
        return True
    first, error = ratios[0]
    if abs(first) <= error or (positive and not (first.real > 0 and abs(first.imag) <= error)):
        return True
    return any(abs(ratio - first) > 2e-6 * abs(first) + error + spread for ratio, spread in ratios[1:])


def _confirm(truth: str, answer: str) -> Plan:
    return Plan(possible=True, pairs=() if truth == answer else ((truth, answer),))


def _compare_values(truth: Statement, answer: Statement) -> Plan:
    a, b = truth.sides[0], answer.sides[0]
    t_unit, a_unit = truth.unit, answer.unit
    readings = [(a, b)]
    if t_unit is not None and a_unit is not None:
        if t_unit.dimension != a_unit.dimension:
            return _WRONG
        if t_unit.factor != a_unit.factor:
            readings = [(scaled(a, t_unit.factor), scaled(b, a_unit.factor))]
    elif (unit := t_unit or a_unit) is not None:
        if unit.required:
            return _WRONG
        if unit.dimension == "%":
            readings.append((scaled(a, "1/100"), b) if t_unit is not None else (a, scaled(b, "1/100")))
    for wanted, given in readings:
        if refuted(wanted, given):
            continue
        if (wanted.op == "sym") != (given.op == "sym"):  # Math-Verify compares a lone name by its spelling only
            one = number("1")
            shifted = [Expression("add", (side, one)).latex() for side in (wanted, given)]
            return _confirm(*shifted)
        return _confirm(wanted.latex(), given.latex())
    return _WRONG


def _as_equation(statement: Statement) -> tuple[Expression, Expression]:
    if statement.label is None:
        return statement.sides[0], statement.sides[1]
    return Expression("sym", text=statement.label), statement.sides[0]


def _compare_relations(truth: Statement, answer: Statement) -> Plan:
    if truth.label is not None or answer.label is not None:  # one assignment, one equation in another form
        solved, other = (truth, answer) if truth.label is not None else (answer, truth)
        (name, value), (left, right) = _as_equation(solved), _as_equation(other)
        if name.text not in left.names() | right.names() or name.text in value.names():
            return _WRONG
        rest = difference(left, right)
        for point in _points(sorted(rest.names() | value.names())):
            solution = _evaluate(value, point)
            if solution is None:
                continue
            residual = _evaluate(rest, {**point, name.text: solution[0]})
            free = _evaluate(rest, point)
            if residual is not None and free is not None and abs(residual[0]) > 2e-6 * abs(free[0]) + 1e-9:
                return _WRONG
        return _confirm(*("{}={}".format(*(side.latex() for side in _as_equation(s))) for s in (truth, answer)))
    if truth.relations != answer.relations or len(truth.sides) != len(answer.sides):
        return _WRONG
    pairs: list[tuple[str, str]] = []
    for index, relation in enumerate(truth.relations):
        wanted, given = truth.sides[index : index + 2], answer.sides[index : index + 2]
        if _not_proportional(difference(*wanted), difference(*given), positive=relation not in "=≠"):
            return _WRONG
        sign = {"≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq "}.get(relation, relation)
        pair = (sign.join(side.latex() for side in wanted), sign.join(side.latex() for side in given))
        if pair[0] != pair[1]:
            pairs.append(pair)
    return Plan(possible=True, pairs=tuple(pairs))


def _compare_statements(truth: Statement, answer: Statement) -> Plan:
    if not truth.relations and not answer.relations:
        if truth.label is not None and answer.label is not None and truth.label != answer.label:
            if truth.label not in answer.sides[0].names():
                return _WRONG
            equation = replace(answer, sides=_as_equation(answer), relations=("=",), label=None)  # y = 2x and x = y/2
            return _compare_relations(truth, equation)
        return _compare_values(truth, answer)
    if any(not s.relations and s.label is None for s in (truth, answer)):
        return _WRONG
    return _compare_relations(truth, answer)


def _compare_listings(truth: Listing, answer: Listing) -> Plan:
    if len(truth.items) != len(answer.items):
        return _WRONG
    unordered = truth.brackets in {"", "⦃⦄"}
    allowed = {"", "⦃⦄"} if unordered else {truth.brackets, ""} if truth.brackets == "()" else {truth.brackets}
    if answer.brackets not in allowed:
        return _WRONG
    left = list(answer.items)
    pairs: list[tuple[str, str]] = []
    for item in truth.items:
        for candidate in left if unordered else left[:1]:
            plan = _compare_statements(item, candidate)
            if plan.possible:
                left.remove(candidate)
                pairs.extend(plan.pairs)
                break
        else:
            return _WRONG
    return Plan(possible=True, pairs=tuple(pairs))


def plan(answer: str, truth: str) -> Plan:
    """Decides what it can without Math-Verify and says what is left to confirm.

    Args:
        answer: The content of the answer block, hostile text.
        truth: The row's ground truth.

    Raises:
        UnparsableTruthError: The truth is empty or too long.
    """
    wanted, truth_text = _read(truth, last_box=True)
    if not plain_syntax(truth_text) or (wanted is None and len(truth_text) > MAX_CHARS):
        raise UnparsableTruthError(
            f"math truth {truth[:80]!r} has no final expression of at most {MAX_CHARS} characters"
        )
    if len(answer) > MAX_ANSWER_CHARS:
        return _WRONG
    given, answer_text = _read(answer, last_box=False)
    same = plain_syntax(truth_text).replace(" ", "")
    if same and answer_text and same == plain_syntax(answer_text).replace(" ", ""):
        return Plan(possible=True)
    if wanted is None:  # outside our grammar (a matrix, an integral): Math-Verify alone decides
        if not answer_text.strip() or len(answer_text) > MAX_CHARS:
            return _WRONG
        return _confirm(truth_text.replace("$", ""), answer_text.replace("$", ""))
    return _WRONG if given is None else _compare(wanted, given)


def _compare(truth: Statement | Listing, answer: Statement | Listing) -> Plan:
    if isinstance(truth, Listing) and isinstance(answer, Listing):
        return _compare_listings(truth, answer)
    first, second = _only_item(truth), _only_item(answer)
    return _WRONG if first is None or second is None else _compare_statements(first, second)


def _only_item(parsed: Statement | Listing) -> Statement | None:
    if isinstance(parsed, Statement):
        return parsed
    return parsed.items[0] if len(parsed.items) == 1 else None


def conclude(decided: Plan, verdicts: Sequence[PairVerdict]) -> tuple[float, RewardStatus]:
    """Turns a plan and the verdicts on its pairs into a reward and a status.

    One difference makes the answer wrong whatever else failed.
    """
    if not decided.possible or "different" in verdicts:
        return 0.0, "ok"
    failures: tuple[tuple[PairVerdict, RewardStatus], ...] = (
        ("unparsable_gt", "unparsable_gt"),
        ("timeout", "timeout"),
        ("error", "verifier_error"),
    )
    for verdict, status in failures:
        if verdict in verdicts:
            return 0.0, status
    return 1.0, "ok"


def score(answer: str, truth: str, *, pool: MathPool) -> tuple[float, RewardStatus]:
    """Judges one answer: (1.0 or 0.0, status).

    Raises:
        UnparsableTruthError: The truth is empty or too long.
    """
    decided = plan(answer, truth)
    return conclude(decided, pool.verify_many(decided.pairs))
