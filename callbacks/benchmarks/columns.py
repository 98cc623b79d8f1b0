"""Reading the cells of a benchmark's row; every error names the column."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

MAX_CELL_CHARS = 100_000
"""Of a cell other than `image`."""

MAX_ITEMS = 64
"""Of a list in a cell."""

_ITEM = re.compile(
    r"""\s*(?:('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|([^\s,'"\[\](){}]{1,64}))\s*(,|\Z)""",
)
_PAIR = re.compile(r"""['"](\w{1,40})['"]\s{0,4}:\s{0,4}(?:'([^'\n]{0,200})'|"([^"\n]{0,200})")""")


def optional(row: Mapping[str, Any], column: str) -> str:
    """The stripped text of a cell, empty where the column is missing or holds nothing.

    Raises:
        ValueError: If it is too long.
    """
    value = row.get(column)
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124  # pandas writes NaN for nothing
        return ""
    text = str(value)
    if len(text) > MAX_CELL_CHARS:
        raise ValueError(f"column {column!r} has {len(text)} characters, more than {MAX_CELL_CHARS}")
    return text.strip()


def required(row: Mapping[str, Any], column: str) -> str:
    """The stripped text of a cell that must hold something.

    Raises:
        ValueError: If it is missing, empty or too long.
    """
    text = optional(row, column)
    if not text:
        raise ValueError(f"column {column!r} is {'empty' if column in row else 'missing'}")
    return text


def listed(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """The items of a cell that holds a list or its repr (`['3/11', '8/11']`); none of an empty cell.

    Raises:
        ValueError: If it is not a flat list of at most `MAX_ITEMS` texts or numbers.
    """
    value = row.get(column)
    is_list = isinstance(value, (list, tuple))
    items = [str(item) for item in value or ()] if is_list else _items(optional(row, column), column)
    if len(items) > MAX_ITEMS:
        raise ValueError(f"column {column!r} lists {len(items)} items, more than {MAX_ITEMS}")
    return tuple(items)


def _items(text: str, column: str) -> list[str]:
    if not text:
        return []
    inside = text[1:-1].strip()
    items: list[str] = []
    position = 0
    if text[0] + text[-1] in {"[]", "()"}:
        while position < len(inside) and (match := _ITEM.match(inside, position)) is not None:
            items.append(_unquoted(match[1], column) if match[1] else match[2])
            position = match.end()
        if position == len(inside):
            return items
    raise ValueError(f"column {column!r} is not a flat list of texts or numbers: {text[:60]!r}")


def _unquoted(literal: str, column: str) -> str:
    """The text of one string literal; the pattern that found it lets nothing else through."""
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"column {column!r} holds a malformed string {literal[:60]!r}") from error


def pairs(row: Mapping[str, Any], column: str) -> dict[str, str]:
    """The texts in a cell that holds a flat dictionary or its repr (`{'subject': 'Algebra'}`); the rest is left out.

    Raises:
        ValueError: If it is too long.
    """
    value = row.get(column)
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items() if item is not None}
    found = _PAIR.findall(optional(row, column))
    return {key: single or double for key, single, double in found}


def labels_of(choices: tuple[str, ...], column: str) -> str:
    """The letters of a row's options, `ABCD` for four.

    Raises:
        ValueError: If there are more options than letters.
    """
    if len(choices) > len(ascii_uppercase):
        raise ValueError(f"column {column!r} lists {len(choices)} options, more than there are letters")
    return ascii_uppercase[: len(choices)]
