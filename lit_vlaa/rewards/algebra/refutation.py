"""Tells unequal expressions apart by their values at a few points, in floating point with error bounds.

This decides most wrong answers at once, without SymPy, and closes the cases in which Math-Verify calls different
things equal. It never says that two expressions are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_vlaa.rewards.algebra.expressions import Expression, number

_POINTS = 7
_EXACT = 1e-9
_ROUNDED = 2e-6


def points(names: Sequence[str]) -> list[dict[str, complex]]:
    """A few fixed points, positive and negative, that no formula is likely to single out."""
    found = []
    for k in range(_POINTS):
        fractions = [((j + 1) * 0.7548776662466927 + (k + 1) * 0.5698402909980532) % 1 for j in range(len(names))]
        low, width = ((0.2, 3.0), (-3.1, 2.9))[k % 2]
        found.append({name: complex(low + width * f) for name, f in zip(names, fractions, strict=True)})
    return found


def value_at(expression: Expression, point: dict[str, complex]) -> tuple[complex, float] | None:
    """The value and its error bound, None where there is no finite value."""
    try:
        return expression.at(point)
    except ArithmeticError:
        return None


def refuted(truth: Expression, answer: Expression) -> bool:
    """True when the two differ for certain at some point, or the answer has no value wherever the truth has one."""
    tolerance = _ROUNDED if truth.has_decimals() or answer.has_decimals() else _EXACT
    truth_values = answer_values = 0
    for point in points(sorted(truth.names() | answer.names())):
        wanted = value_at(truth, point)
        if wanted is None:
            continue
        truth_values += 1
        given = value_at(answer, point)
        if given is None:
            continue
        answer_values += 1
        (a, da), (b, db) = wanted, given
        if abs(a - b) > tolerance * max(abs(a), abs(b)) + 64 * (da + db):
            return True
    return truth_values > 0 and answer_values == 0


def not_proportional(truth: Expression, answer: Expression, *, positive: bool) -> bool:
    """True when one is certainly no constant multiple (a positive one, if asked) of the other."""
    ratios: list[tuple[complex, float]] = []
    for point in points(sorted(truth.names() | answer.names())):
        wanted, given = value_at(truth, point), value_at(answer, point)
        if wanted is None or given is None or abs(wanted[0]) <= 64 * wanted[1]:
            continue
        ratio = given[0] / wanted[0]
        ratios.append((ratio, 64 * (given[1] + abs(ratio) * wanted[1]) / abs(wanted[0])))
    if not ratios:
        return True
    first, error = ratios[0]
    if abs(first) <= error or (positive and not (first.real > 0 and abs(first.imag) <= error)):
        return True
    return any(abs(ratio - first) > _ROUNDED * abs(first) + error + spread for ratio, spread in ratios[1:])


def cross_products(truth: Expression, answer: Expression) -> tuple[Expression, Expression] | None:
    """Two expressions that are equal exactly when `truth` and `answer` are constant multiples of each other.

    With a fixed point p at which the truth is not zero, these are `truth * answer(p)` and `answer * truth(p)`.
    """
    names = sorted(truth.names() | answer.names())
    for shift in range(_POINTS):
        place = {name: number(str(2 + shift + 3 * index)) for index, name in enumerate(names)}
        fixed = [side.with_values(place) for side in (truth, answer)]
        values = [value_at(side, {}) for side in fixed]
        if all(value is not None and abs(value[0]) > 64 * value[1] for value in values):
            return Expression("mul", (truth, fixed[1])), Expression("mul", (answer, fixed[0]))
    return None


def solves(name: str, solution: Expression, left_minus_right: Expression) -> bool:
    """False when `name = solution` certainly does not satisfy `left_minus_right = 0`."""
    for point in points(sorted((left_minus_right.names() | solution.names()) - {name})):
        given = value_at(solution, point)
        if given is None:
            continue
        residual = value_at(left_minus_right, {**point, name: given[0]})
        scale = value_at(left_minus_right, {**point, name: given[0] + 1})
        if residual is not None and scale is not None and abs(residual[0]) > _ROUNDED * abs(scale[0]) + _EXACT:
            return False
    return True
