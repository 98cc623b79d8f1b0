"""Expression trees: evaluated at a point with an error bound, and written out for the process that holds SymPy.

A tree is plain data. Evaluation works in floating point, so `9^9^9^9` overflows at once instead of running away.
"""

from __future__ import annotations

import cmath
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_EPS = 2.0**-52

GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
    ]
)
TRIG = ["sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"]
ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc", "log": "ln",
    "lg": "log10", "ceiling": "ceil",
}  # fmt: skip
_OTHERS = ["ln", "log", "log2", "log10", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "frac", "binom"]
FUNCTIONS = frozenset([*TRIG, *_OTHERS, *ALIASES])
CONSTANTS = frozenset(["pi", "infty"])


_VALUES: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z), "cot": lambda z: 1 / cmath.tan(z),
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "ln": cmath.log, "log10": cmath.log10,
    "exp": cmath.exp, "abs": abs,
}  # fmt: skip


class ExpressionError(ValueError):
    """The text lies outside the grammar or its limits."""


def _factorial(z: complex) -> complex:
    if abs(z.imag) > 1e-12 or z.real < 0 or z.real > 160:
        raise OverflowError
    return math.gamma(z.real + 1)


def _floor(z: complex) -> complex:
    if abs(z.imag) > 1e-12:
        raise ZeroDivisionError
    return float(math.floor(z.real + 1e-9))


_VALUES |= {"fact": _factorial, "floor": _floor, "ceil": lambda z: -_floor(-z)}


@dataclass(frozen=True, slots=True)
class Expression:
    """One node of a tree."""

    op: str
    """`num`, `sym`, `add`, `mul`, `div`, `pow`, `neg`, or the name of a function."""
    args: tuple[Expression, ...] = ()
    text: str = ""
    """The number or the name, for leaves."""

    def wire(self) -> str:
        """Writes the tree as JSON, nested lists of an operator and its arguments, for `math_worker`."""
        return json.dumps(self._nested(), separators=(",", ":"))

    def _nested(self) -> list[object]:
        inner: list[object] = [argument._nested() for argument in self.args]
        return [self.op, *(inner or [self.text])]

    def with_values(self, values: Mapping[str, Expression]) -> Expression:
        """Returns the tree with names replaced."""
        if self.op == "sym":
            return values.get(self.text, self)
        return Expression(self.op, tuple(argument.with_values(values) for argument in self.args), self.text)

    def names(self) -> frozenset[str]:
        """The free names of the tree."""
        if self.op == "sym":
            return frozenset() if self.text in {"pi", "e", "i"} else frozenset([self.text])
        return frozenset().union(*(argument.names() for argument in self.args))

    def has_decimals(self) -> bool:
        """True when a number is written with a decimal point, and so may be rounded."""
        return "." in self.text or any(argument.has_decimals() for argument in self.args)

    def at(self, point: dict[str, complex]) -> tuple[complex, float]:
        """Evaluates the tree.

        Args:
            point: The value of every free name.

        Returns:
            The value and a bound on its rounding error.

        Raises:
            ArithmeticError: No finite value here.
        """
        try:
            value, error = self._at(point)
        except ValueError:
            raise ZeroDivisionError from None
        if not (cmath.isfinite(value) and math.isfinite(error)):
            raise OverflowError
        return value, error

    def _at(self, point: dict[str, complex]) -> tuple[complex, float]:
        if self.op == "num":
            value = complex(float(self.text))
            return value, _EPS * abs(value)
        if self.op == "sym":
            known: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}
            value = known[self.text] if self.text in known else point[self.text]
            return value, _EPS * abs(value)
        (a, da), (b, db) = self.args[0]._at(point), self.args[-1]._at(point) if len(self.args) > 1 else (0j, 0.0)
        match self.op:
            case "neg":
                return -a, da
            case "add":
                value, error = a + b, da + db
            case "mul":
                value, error = a * b, abs(a) * db + abs(b) * da + da * db
            case "div":
                if abs(b) <= db:
                    raise ZeroDivisionError
                value = a / b
                error = (da + abs(value) * db) / (abs(b) - db)
            case "pow":
                if abs(a) <= da and b.real <= 0:
                    raise ZeroDivisionError
                value = _power(a, b)
                error = abs(_power(a * (1 + _EPS) + da, b) - value) + abs(_power(a, b * (1 + _EPS) + db) - value)
            case name:
                function = _VALUES[name]
                try:
                    value = function(a)
                    error = abs(function(a + da + _EPS * abs(a)) - value)
                except ValueError:
                    raise ZeroDivisionError from None
        value = complex(value.real, value.imag + 0.0)  # no negative zero, it would choose another branch of a root
        return value, float(error + _EPS * abs(value))


def _power(a: complex, b: complex) -> complex:
    if a == 0:
        return 1 if b == 0 else 0
    if a.imag == 0 and a.real < 0 and b.imag == 0 and b.real != round(b.real):
        third = b.real * 3
        if abs(third - round(third)) < 1e-12:  # real cube roots, as school mathematics reads them
            return complex(math.copysign(abs(a.real) ** b.real, -1 if round(third) % 2 else 1))
    return a**b if abs(b) < 1e4 else cmath.exp(b * cmath.log(a))


def number(text: str) -> Expression:
    """Returns the leaf for a number as written."""
    return Expression("num", text=text)


def symbol(name: str) -> Expression:
    """Returns the leaf for a name."""
    return Expression("sym", text=name)


def difference(a: Expression, b: Expression) -> Expression:
    """Returns a - b."""
    return Expression("add", (a, Expression("neg", (b,))))


def scaled(a: Expression, factor: str) -> Expression:
    """Returns a times a number such as `0.01` or `1/100`."""
    if factor == "1":
        return a
    above, _, below = factor.partition("/")
    product = a if above == "1" else Expression("mul", (a, number(above)))
    return Expression("div", (product, number(below))) if below else product
