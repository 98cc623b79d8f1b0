r"""Reads LaTeX environments: matrices, vectors, functions by cases and systems of equations.

The determinant (`vmatrix`) is no matrix, and an environment within an environment lies outside the grammar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_vlaa.rewards.algebra.expressions import ExpressionError
from lit_vlaa.rewards.algebra.statements import MAX_ITEMS, Listing, Statement, parse_statement
from lit_vlaa.rewards.algebra.syntax import MAX_CHARS

_ENVIRONMENT = re.compile(
    r"(?P<label>[A-Za-z]\s?(?:\([a-z]\))?\s*=\s*)?(?:\\left\s*)?(?P<open>[\[(]|\\\{)?\s*"
    r"\\begin\{(?P<kind>pmatrix|bmatrix|Bmatrix|matrix|array|cases|aligned)\}(?:\{[lcr| ]*\})?(?P<body>.*)"
    r"\\end\{(?P=kind)\}\s*(?:\\right\s*[\]).]?|\\right\s*\\\}|[\])]|\\\})?",
    re.DOTALL,
)
_ROW = re.compile(r"\\\\(?:\[[^\]]{0,20}\])?")
_CONDITION = re.compile(r"^(?:\\text\s?\{\s*)?(?:if|when|for|where)\b\s*\}?\s*|,\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Rows of cells: a matrix, or a function by cases with a value and a condition in each row."""

    kind: str
    """`matrix` or `cases`."""
    rows: tuple[tuple[Statement | Listing, ...], ...]
    label: str | None = None

    @property
    def column(self) -> Listing | None:
        """A matrix with one column as a point, None for any other."""
        if self.kind != "matrix" or any(len(row) != 1 for row in self.rows):
            return None
        return Listing(brackets="()", items=tuple(row[0] for row in self.rows), label=self.label)


def parse_answer(text: str) -> Statement | Listing | Layout:
    """Reads one final answer, an environment or what `parse_statement` reads.

    Raises:
        ExpressionError: The text is outside the grammar or its limits.
    """
    if r"\begin" not in text:
        return parse_statement(text)
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    match = _ENVIRONMENT.fullmatch(text.strip().strip("$").strip())
    if match is None or r"\begin" in match["body"]:
        raise ExpressionError("an unknown environment")
    rows = [[cell.strip() for cell in row.split("&")] for row in _ROW.split(match["body"]) if row.strip()]
    if not 1 <= len(rows) <= MAX_ITEMS or max(map(len, rows)) > MAX_ITEMS or len({len(row) for row in rows}) > 1:
        raise ExpressionError(f"an environment must have at most {MAX_ITEMS} rows and as many cells, all rows alike")
    label = match["label"].rstrip("= ").replace(" ", "") if match["label"] else None
    if match["kind"] in {"cases", "aligned"} or match["open"] == r"\{":
        return _cases(rows, label)
    cells = tuple(tuple(parse_statement(cell) for cell in row) for row in rows)
    return Layout(kind="matrix", rows=cells, label=label)


def _cases(rows: list[list[str]], label: str | None) -> Listing | Layout:
    if len(rows[0]) == 1 and label is None:  # a system of equations
        items = [parse_statement(row[0].rstrip(",")) for row in rows]
        return Listing(brackets="", items=tuple(items))
    if len(rows[0]) == 1:
        rows = [row[0].split(",", 1) for row in rows]
    if any(len(row) != 2 for row in rows):
        raise ExpressionError("a function by cases needs a value and a condition in each row")
    pairs = [
        (parse_statement(_CONDITION.sub("", value)), parse_statement(_bare(condition))) for value, condition in rows
    ]
    return Layout(kind="cases", rows=tuple(pairs), label=label)


def _bare(condition: str) -> str:
    return _CONDITION.sub("", _CONDITION.sub("", condition.strip()))
