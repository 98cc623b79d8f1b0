"""Arithmetic written plainly or in LaTeX, evaluated by a bounded parser.

Everything here reads hostile text. A text is read only up to `MAX_CHARS`, brackets up to `MAX_DEPTH`, and no
intermediate value may need more than `MAX_BITS` bits; beyond that there is no number.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_CHARS = 200
MAX_DEPTH = 24
MAX_BITS = 4096

TOLERANCE = 1e-6
"""Numbers that differ by less are the same (the reference's MathVision)."""

Value = Fraction | float

_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3}(?!\d))?", re.ASCII)
_DIGIT = re.compile(r"\d", re.ASCII)
_SPACE = re.compile(r"(?:\s|\\left(?![a-z])|\\right(?![a-z])|\\[,;!: ]|~)*")
_TIMES = re.compile(r"\*(?!\*)|\\cdot(?![a-z])|\\times(?![a-z])|×|·")
_OVER = re.compile(r"/(?!/)|\\div(?![a-z])|÷")
_POWER = re.compile(r"\*\*|\^")
_FRAC = re.compile(r"\\[dt]?frac(?![a-z])")
_ROOT = re.compile(r"\\sqrt(?![a-z])|sqrt(?![a-z])|√")
_PI = re.compile(r"\\pi(?![a-z])|pi(?![a-z])|π")
_OPENING = {"(": ")", "{": "}"}


class _UnreadableError(Exception):
    """The text is not arithmetic, or too much of it."""


def evaluate(text: str, *, irrational: bool) -> Value | None:
    r"""The value of an arithmetic expression such as `7/3`, `2*(3+4)`, `2^{10}` or `\frac{7}{3}`.

    Args:
        text: In lower case or not; nothing but the expression.
        irrational: Whether roots and pi are understood, and `2\frac{1}{2}` as a mixed number.

    Returns:
        A fraction, exactly, or a float where roots, pi or fractional powers take part. None if the text is no such
        expression, divides by zero or is too large.
    """
    if not text or len(text) > MAX_CHARS:
        return None
    try:
        value = _Parser(text.lower(), irrational=irrational).whole()
    except (_UnreadableError, ArithmeticError, ValueError):
        return None
    return value if isinstance(value, Fraction) or math.isfinite(value) else None


class _Parser:
    """Recursive descent over the characters of one text."""

    def __init__(self, text: str, *, irrational: bool) -> None:
        self.text = text
        self.irrational = irrational
        self.at = 0
        self.depth = 0

    def whole(self) -> Value:
        value = self.sum()
        self.take(_SPACE)
        if self.at < len(self.text):
            raise _UnreadableError
        return value

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """What the pattern matches here, after which reading goes on."""
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match.group()

    def peek(self) -> str:
        self.take(_SPACE)
        return self.text[self.at : self.at + 1]

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _UnreadableError
        value = self.product()
        while (sign := self.peek()) in {"+", "-"}:
            self.at += 1
            right = self.product()
            value = _bounded(value + right if sign == "+" else value - right)
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.signed()
        while True:
            following = self.peek()
            if self.take(_TIMES):
                value = _bounded(value * self.signed())
            elif self.take(_OVER):
                value = _bounded(value / self.signed())
            elif following and (following in _OPENING or _ROOT.match(self.text, self.at) or self.is_pi()):
                value = _bounded(value * self.power())
            else:
                return value

    def is_pi(self) -> bool:
        return _PI.match(self.text, self.at) is not None

    def signed(self) -> Value:
        negative = False
        while (sign := self.peek()) in {"+", "-"}:
            self.at += 1
            negative ^= sign == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Value:
        base = self.atom()
        self.take(_SPACE)
        if not self.take(_POWER):
            return base
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _UnreadableError
        exponent = self.signed()
        self.depth -= 1
        return _raised(base, exponent, roots=self.irrational)

    def atom(self) -> Value:
        if self.peek() in _OPENING:
            return self.bracketed()
        if self.take(_FRAC):
            top = self.argument(_DIGIT)
            return _bounded(top / self.argument(_DIGIT))
        if (digits := self.take(_NUMBER)) is not None:
            value: Value = _bounded(Fraction(digits))
            self.take(_SPACE)
            if _FRAC.match(self.text, self.at):
                part = self.atom()
                if not self.irrational or isinstance(value, float) or value.denominator > 1 or not 0 <= part < 1:
                    raise _UnreadableError
                return value + part
            return value
        if self.irrational and self.take(_PI):
            return math.pi
        if self.irrational and self.take(_ROOT):
            degree: Value = Fraction(2)
            if self.peek() == "[":
                self.at += 1
                degree = self.sum()
                self.close("]")
            return _raised(self.argument(_NUMBER), 1 / degree, roots=True)
        raise _UnreadableError

    def argument(self, digits: re.Pattern[str]) -> Value:
        """What follows a command: a group, or bare digits as far as the pattern takes them."""
        if self.peek() in _OPENING:
            return self.bracketed()
        bare_digits = self.take(digits)
        if bare_digits is None:
            raise _UnreadableError
        return Fraction(bare_digits)

    def bracketed(self) -> Value:
        closing = _OPENING[self.text[self.at]]
        self.at += 1
        value = self.sum()
        self.close(closing)
        return value

    def close(self, bracket: str) -> None:
        if self.peek() != bracket:
            raise _UnreadableError
        self.at += 1


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _UnreadableError
    return value


def _raised(base: Value, exponent: Value, *, roots: bool) -> Value:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if isinstance(base, Fraction):
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if bits * abs(exponent.numerator) > MAX_BITS:
                raise _UnreadableError
        return base**exponent.numerator
    if not roots:
        raise _UnreadableError
    return math.pow(base, exponent)


def distance(a: Value, b: Value) -> float:
    """How far two numbers are apart; infinity where that is too large for a float."""
    try:
        return abs(float(a - b))
    except OverflowError:
        return math.inf


def same_value(a: str, b: str) -> bool:
    """Whether two expressions are the same as text, or within `TOLERANCE` as numbers without roots or pi.

    This is the reference's comparison for MathVision: what holds a root or pi must be the same text.
    """
    a, b = a.lower().strip(), b.lower().strip()
    if a == b:
        return True
    left, right = evaluate(a, irrational=False), evaluate(b, irrational=False)
    return left is not None and right is not None and distance(left, right) < TOLERANCE
