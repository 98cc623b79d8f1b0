"""What is odd about the text of a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from lit_vlaa.prompts import IMAGE_PLACEHOLDER, THINK_OPEN
from lit_vlaa.traces import count_cues, read_trace
from lit_vlaa.types import Record

_CONTROL_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>")
_SUSPECT = re.compile(r"[^\t\n\r\x20-\x7e]")
_SHOWN = 5
_ODD = {"Cc", "Co", "Cn"}
"""Control characters, private use, and code points that are none."""
_HIDDEN = {0x200B, 0x2060, 0xFEFF, 0xFFFD, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""No width, other direction, or a character that was lost; joiners, which some scripts need, are left out."""


def odd_texts(record: Record) -> Iterator[tuple[str, str]]:
    """Finds what should not be in question, truth and response; yields problems with their details."""
    fields = {"question": record.question, "gt": record.truth, "answer": record.response or ""}
    for field, text in fields.items():
        odd = sorted({char for char in _SUSPECT.findall(text) if _is_odd(char)})
        if odd:
            points = ", ".join(f"U+{ord(char):04X}" for char in odd[:_SHOWN])
            yield "odd_unicode", f"{field}: {points}" + (" and others" if len(odd) > _SHOWN else "")
        tokens = sorted(set(_CONTROL_TOKEN.findall(text)))
        if tokens:
            yield "control_token", f"{field}: {', '.join(tokens[:_SHOWN])}"
    marks = record.question.count(IMAGE_PLACEHOLDER)
    if marks and marks != len(record.images):
        yield "placeholder_count", f"{marks} mark(s), {len(record.images)} image(s)"
    if record.response is not None and THINK_OPEN in record.response and not read_trace(record.response).well_formed:
        yield "trace_form", ""


def has_trace(response: str) -> bool:
    """Whether a response thinks before it answers."""
    return THINK_OPEN in response


def has_cue(response: str) -> bool:
    """Whether a response has an aha cue, as the paper and `lit-vlaa data select --aha` look for them."""
    return any(count_cues(response).values())


def _is_odd(char: str) -> bool:
    return ord(char) in _HIDDEN or unicodedata.category(char) in _ODD
