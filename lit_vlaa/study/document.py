"""What a report consists of, whatever it is written as: headings, paragraphs, tables, pictures, examples.

All texts are plain: each writer (`html.py`, `markdown.py`) escapes them for its own format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "open", "none"]

_MOST_CHARS = 4000
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a section (level 2) or a part of one (level 3)."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    text: str
    small: bool = False
    """A note."""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Commands, each on a line."""

    text: str


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in a cell."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class ArmName:
    """An arm in a cell, with its colour where the format has colours."""

    name: str


Cell = str | Badge | ArmName


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    left: int = 1
    """Columns from the left that hold words; the others hold numbers and are set to the right."""
    words: bool = False
    """Whether all columns hold words."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing that exists for light and dark pages."""

    name: str
    """File name without ending."""
    light: bytes
    """SVG."""
    dark: bytes
    alt: str
    """What it shows, for those who do not see it."""
    caption: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What one arm answered to an example."""

    arm: str
    response: str
    right: bool | None
    facts: str
    """Score, length and the like."""
    cues: tuple[tuple[int, int], ...]
    """Spans of the response to mark."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question with the answers of all arms."""

    title: str
    question: str
    truth: str
    image: bytes | None
    image_type: str
    """MIME type."""
    no_image: str
    """Why there is no picture."""
    answers: tuple[Answered, ...]


Block = Heading | Paragraph | Bullets | Code | Table | Picture | Example


@dataclass(frozen=True, slots=True)
class Document:
    """A report."""

    title: str
    lead: str
    blocks: tuple[Block, ...]
    arms: tuple[str, ...]
    """In the order of their colours."""


def visible(text: str) -> str:
    """The text with every character that could hide or reorder others written out.

    Control characters (but for line breaks and tabs), directional marks and halves of surrogate pairs become their code
    in angle brackets.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text.replace("\r\n", "\n"))


def pieces(text: str, spans: Sequence[tuple[int, int]], most: int = _MOST_CHARS) -> list[tuple[str, bool]]:
    """A long text cut short and taken apart at the spans to mark.

    Args:
        text: A response.
        spans: Ascending (start, end) that do not overlap.
        most: Characters to keep.

    Returns:
        Parts, each with whether it is marked; still to be made `visible`.
    """
    found: list[tuple[str, bool]] = []
    place = 0
    for start, end in spans:
        if start >= most:
            break
        found += [(text[place:start], False), (text[start : min(end, most)], True)]
        place = min(end, most)
    found.append((text[place:most], False))
    if len(text) > most:
        found.append((f"… ({len(text) - most} more characters)", False))
    return [(part, marked) for part, marked in found if part]


def _shown(char: str) -> str:
    if char in "\n\t":
        return char
    code = ord(char)
    if code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or char in _BIDI:
        return f"⟨U+{code:04X}⟩"
    if code in {0x2028, 0x2029}:
        return "\n"
    return char
