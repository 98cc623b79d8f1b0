"""Reads program syntax (`-5 * sin(-5 * x)`) and everyday LaTeX into one expression tree.

The grammar is small, nothing is executed, and length, digits, depth and size are limited.

Conventions: `log` without a base is the natural logarithm; the exponent of `x^23` is 23; `1/2x` is `(1/2)x`; upper and
lower case are different names; `e` is Euler's number and `i` the imaginary unit.
"""

from __future__ import annotations

import re

from lit_vlaa.rewards.expressions import ALIASES, CONSTANTS, FUNCTIONS, GREEK, Expression, ExpressionError, number

MAX_CHARS, MAX_DIGITS, MAX_DEPTH, MAX_NODES = 800, 40, 24, 200

_AMBIGUOUS = {"frac", "eta", "nu", "mu", "xi", "tau", "rho", "psi", "chi", "iota"}
_NAMES = sorted({*FUNCTIONS, *CONSTANTS, *GREEK} - _AMBIGUOUS, key=len, reverse=True)
_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?(?:[eE][+-]?\d+(?![\w.]))?|\.\d+)|\\([A-Za-z]+)|(log(?:2|10)(?![\d])|[A-Za-z]+)|(.))",
    re.DOTALL,
)


class _Parser:
    """Recursive descent over a list of tokens, `(kind, text)` with kind `num`, `name` or `op`."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.nodes = 0

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

    def sum(self) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError("nested too deeply")
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
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ExpressionError("nested too deeply")
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
                return self.make("add", number(text), self.atom())  # a mixed number, 1\frac{1}{2}
            return number(text)
        if kind == "name":
            self.position += 1
            return self.function(text) if text in FUNCTIONS else self.symbol(text)
        if opening := self.accept("(", "[", "{"):
            return self.group({"(": ")", "[": "]", "{": "}"}[opening])
        if self.accept("|"):
            bars, self.bars = self.bars, 1
            result = self.sum()
            self.take("|")
            self.bars = bars
            return self.make("abs", result)
        raise ExpressionError(f"unexpected {text!r}")

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
        if name == "sqrt":
            degree = self.group("]") if self.accept("[") else number("2")
            radicand = self.function_argument() if self.peek()[1] == "(" else self.argument()
            return self.make("pow", radicand, self.make("div", number("1"), degree))
        base = self.subscript() if name == "log" else ""
        exponent = None
        if self.accept("^"):
            exponent = self.argument() if self.peek()[1] == "{" else self.signed_leaf()
        argument = self.function_argument()
        if name in {"cbrt", "log2"} or (base and base != "10"):
            if name == "cbrt":
                result = self.make("pow", argument, self.make("div", number("1"), number("3")))
            else:
                below = "2" if name == "log2" else base
                leaf = number(below) if below.isdigit() else Expression("sym", text=below)
                result = self.make("div", self.make("ln", argument), self.make("ln", leaf))
        else:
            result = self.make("log10" if base == "10" else ALIASES.get(name, name), argument)
        if exponent is None:
            return result
        if exponent == self.make("neg", number("1")) and name in {"sin", "cos", "tan"}:
            return self.make(f"arc{name}", argument)
        return self.make("pow", result, exponent)

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
        while (
            self.starts_factor() and self.peek()[1] not in FUNCTIONS - {"sqrt", "frac"} and self.peek() != ("op", "(")
        ):
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
        elif word and tokens and tokens[-1] == ("op", "_"):
            tokens.append(("name", word))
        elif word:
            if word in GREEK or word in FUNCTIONS:
                tokens.append(("name", word))
            else:
                tokens += [("name", name) for name in _split_word(word)]
        elif other.strip():
            if other not in "+-*/^()[]{}|!°%_":
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
