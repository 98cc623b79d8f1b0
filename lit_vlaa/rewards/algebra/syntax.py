"""Reads program syntax (`-5 * sin(-5 * x)`) and everyday LaTeX into one expression tree.

The grammar is small, nothing is executed, and length, digits, depth and size are limited.

Conventions: `log` without a base is the natural logarithm; the exponent of `x^23` is 23; `1/2x` is `(1/2)x`; upper and
lower case are different names; `e` is Euler's number and `i` the imaginary unit; `log(x, b)` has the base b.
"""

from __future__ import annotations

import re

from lit_vlaa.rewards.algebra.expressions import (
    ALIASES,
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    Expression,
    ExpressionError,
    difference,
    number,
    symbol,
)

MAX_CHARS, MAX_DIGITS, MAX_DEPTH, MAX_NODES = 800, 40, 24, 200

_AMBIGUOUS = {"frac", "binom", "eta", "nu", "mu", "xi", "tau", "rho", "psi", "chi", "iota"}
_NAMES = sorted({*FUNCTIONS, *CONSTANTS, *GREEK} - _AMBIGUOUS, key=len, reverse=True)
_ENDS = (FUNCTIONS - {"sqrt", "frac"}) | {"("}
"""What ends the argument of a function that is written without parentheses."""

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?(?:[eE][+-]?\d+(?![\w.]))?|\.\d+)|\\([A-Za-z]+)|(log(?:2|10)(?![\d])|[A-Za-z]+)|(.))",
    re.DOTALL,
)


class _Parser:
    """Recursive descent over a list of tokens, `(kind, text)` with kind `num`, `name` or `op`."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.position = self.depth = self.bars = self.nodes = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self, text: str | None = None) -> str:
        kind, found = self.peek()
        if kind == "end" or (text is not None and (kind != "op" or found != text)):
            raise ExpressionError(f"expected {text or 'more'}, found {found!r}")
        self.position += 1
        return found

    def accept(self, *texts: str) -> str | None:
        kind, found = self.peek()
        if kind == "op" and found in texts:
            self.position += 1
            return found
        return None

    def make(self, op: str, *args: Expression) -> Expression:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ExpressionError("too many terms")
        return Expression(op, args)

    def descend(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError("nested too deeply")

    def sum(self) -> Expression:
        self.descend()
        result = self.product()
        while sign := self.accept("+", "-"):
            right = self.product()
            result = self.make("add", result, right if sign == "+" else self.make("neg", right))
        self.depth -= 1
        return result

    def product(self) -> Expression:
        result = self.signed()
        while True:
            if operator := self.accept("*", "/"):
                result = self.make("mul" if operator == "*" else "div", result, self.signed())
            elif self.starts_factor():
                if self.peek()[0] == "num":
                    raise ExpressionError("a number cannot follow a factor")
                result = self.make("mul", result, self.powered())
            else:
                return result

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        return kind in {"num", "name"} or (kind == "op" and (text in "({" or (text == "|" and self.bars == 0)))

    def signed(self) -> Expression:
        negative = False
        while sign := self.accept("+", "-"):
            negative ^= sign == "-"
        result = self.powered()
        return self.make("neg", result) if negative else result

    def powered(self) -> Expression:
        base = self.postfixed()
        if self.accept("^"):
            self.descend()
            base = self.make("pow", base, self.signed())
            self.depth -= 1
        return base

    def postfixed(self) -> Expression:
        result = self.atom()
        while mark := self.accept("!", "°", "%"):
            if mark == "!":
                result = self.make("fact", result)
            elif mark == "°":
                result = self.make("div", self.make("mul", result, Expression("sym", text="pi")), number("180"))
            else:
                result = self.make("div", result, number("100"))
        return result

    def group(self, close: str) -> Expression:
        bars, self.bars = self.bars, 0
        result = self.sum()
        self.take(close)
        self.bars = bars
        return result

    def atom(self) -> Expression:
        kind, text = self.peek()
        if kind == "num":
            self.position += 1
            self.make("num")
            if text.isdigit() and self.peek() == ("name", "frac"):
                return self.mixed_number(number(text))
            return number(text)
        if kind == "name":
            self.position += 1
            if text not in FUNCTIONS:
                return self.symbol(text)
            self.descend()
            result = self.function(text)
            self.depth -= 1
            return result
        if opening := self.accept("(", "[", "{"):
            return self.group({"(": ")", "[": "]", "{": "}"}[opening])
        if self.accept("|"):
            bars, self.bars = self.bars, 1
            result = self.sum()
            self.take("|")
            self.bars = bars
            return self.make("abs", result)
        raise ExpressionError(f"unexpected {text!r}")

    def mixed_number(self, whole: Expression) -> Expression:
        r"""`1\frac{1}{2}` is one and a half, `2\frac{x}{3}` a product."""
        fraction = self.atom()
        above, below = fraction.args
        plain = above.text.isdigit() and below.text.isdigit() and int(above.text) < int(below.text)
        return self.make("add" if plain else "mul", whole, fraction)

    def subscript(self) -> str:
        if not self.accept("_"):
            return ""
        if self.accept("{"):
            pieces = []
            while not self.accept("}"):
                pieces.append(self.take())
            inside = "".join(pieces)
        else:
            inside = self.take()
        if not inside.isalnum():
            raise ExpressionError("a subscript must be a name or a number")
        return inside

    def symbol(self, name: str) -> Expression:
        subscript = self.subscript()
        self.make("sym")
        return Expression("sym", text=f"{name}_{subscript}" if subscript else name)

    def argument(self) -> Expression:
        if self.accept("{"):
            return self.group("}")
        kind, text = self.peek()
        if kind == "num" and len(text) > 1 and text.isdigit():  # \frac12 takes one digit
            self.tokens[self.position] = (kind, text[1:])
            return number(text[0])
        return self.atom()

    def function(self, name: str) -> Expression:
        if name == "frac":
            return self.make("div", self.argument(), self.argument())
        if name == "binom":
            n, k = self.argument(), self.argument()
            below = self.make("mul", self.make("fact", k), self.make("fact", difference(n, k)))
            return self.make("div", self.make("fact", n), below)
        if name == "sqrt":
            degree = self.group("]") if self.accept("[") else number("2")
            radicand = self.function_argument() if self.peek()[1] == "(" else self.argument()
            return self.make("pow", radicand, self.make("div", number("1"), degree))
        base = self.subscript() if name == "log" else ""
        exponent = None
        if self.accept("^"):
            exponent = self.argument() if self.peek()[1] == "{" else self.signed_leaf()
        result = self.applied("2" if name == "log2" else base, name)
        if exponent is None:
            return result
        if exponent == self.make("neg", number("1")) and name in {"sin", "cos", "tan"}:
            return self.make(f"arc{name}", *result.args)
        return self.make("pow", result, exponent)

    def applied(self, base: str, name: str) -> Expression:
        """Reads the argument and applies the function to it; `base` is a logarithm's, if one is written below it."""
        if name == "log" and not base and self.accept("("):
            bars, self.bars = self.bars, 0
            argument, leaf = self.sum(), self.sum() if self.accept(",") else None
            self.take(")")
            self.bars = bars
        else:
            argument, leaf = self.function_argument(), None
        if name == "cbrt":
            return self.make("pow", argument, self.make("div", number("1"), number("3")))
        if base and base != "10":
            leaf = number(base) if base.isdigit() else symbol(base)
        if leaf is not None:
            return self.make("div", self.make("ln", argument), self.make("ln", leaf))
        return self.make("log10" if base == "10" else ALIASES.get(name, name), argument)

    def signed_leaf(self) -> Expression:
        negative = self.accept("-") is not None
        leaf = self.atom()
        return self.make("neg", leaf) if negative else leaf

    def function_argument(self) -> Expression:
        if opening := self.accept("(", "{", "["):
            return self.group({"(": ")", "[": "]", "{": "}"}[opening])
        if self.peek() == ("op", "|"):
            return self.atom()
        result = self.signed()
        while self.starts_factor() and self.peek()[1] not in _ENDS:
            if self.peek()[0] == "num":
                raise ExpressionError("a number cannot follow a factor")
            result = self.make("mul", result, self.powered())
        return result


def _split_word(word: str) -> list[str]:
    """Cuts a run of letters into known names and single letters; a long run of single letters is prose."""
    names: list[str] = []
    position = singles = 0
    while position < len(word):
        name = next((n for n in _NAMES if word.startswith(n, position)), None)
        singles = 0 if name else singles + 1
        if singles > 3:
            raise ExpressionError(f"{word[:20]!r} is prose")
        names.append(name or word[position])
        position += len(names[-1])
    return names


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    for digits, command, word, other in _TOKEN.findall(text):
        if digits:
            if len(digits) > MAX_DIGITS:
                raise ExpressionError(f"a number has more than {MAX_DIGITS} digits")
            tokens.append(("num", digits))
        elif command:
            if command not in FUNCTIONS | GREEK | CONSTANTS:
                raise ExpressionError(f"unknown command {command!r}")
            tokens.append(("name", command))
        elif word in GREEK or word in FUNCTIONS or (word and tokens[-1:] == [("op", "_")]):
            tokens.append(("name", word))
        elif word:
            title = word.istitle() and word.lower() in FUNCTIONS  # `Abs(x)`, `Sqrt(2)`
            tokens += [("name", name) for name in ([word.lower()] if title else _split_word(word))]
        elif other.strip():
            if other not in "+-*/^()[]{}|!°%_,":
                raise ExpressionError(f"unexpected {other!r}")
            tokens.append(("op", other))
    return tokens


def parse_expression(text: str) -> Expression:
    """Reads one expression that has already been rid of relations, units and LaTeX's spacing.

    Raises:
        ExpressionError: Outside the grammar, too long, too deep, or prose.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    parser = _Parser(_tokens(text))
    result = parser.sum()
    if parser.peek()[0] != "end":
        raise ExpressionError(f"unexpected {parser.peek()[1]!r}")
    return result
