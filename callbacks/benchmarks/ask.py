"""Asking the judge again until its reply can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from callbacks.benchmarks.interface import Judge

T = TypeVar("T")

TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""The reference's five tries, each less cautious than the last; WeMath takes three of them, DynaMath one."""

UNANSWERED = 2
"""Calls in a row without a reply, each of which the judge itself has repeated, after which a question is given up."""

MAX_REPLY_CHARS = 4_000
"""What of a reply is read: 128 tokens need less."""

MAX_SHOWN_CHARS = 20_000
"""What of a model's answer a judge is shown: its end."""


def ask(
    judge: Judge | None,
    prompt: str,
    read: Callable[[str], T | None],
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[T | None, int]:
    """Calls the judge until a reply can be read, or none comes twice in a row.

    Args:
        judge: None where there is none.
        prompt: The same for every call.
        read: Makes something of a reply (cut to `MAX_REPLY_CHARS`), or None if it cannot be read. It is not called
            where the judge gave no reply.
        temperatures: Of the calls, one after the other; their number bounds the calls.

    Returns:
        What was read, None without a readable reply, and the number of calls, unanswered ones included.
    """
    if judge is None:
        return None, 0
    calls = unanswered = 0
    for temperature in temperatures:
        reply = judge(prompt, temperature)
        calls += 1
        unanswered = unanswered + 1 if reply is None else 0
        value = None if reply is None else read(reply[:MAX_REPLY_CHARS])
        if value is not None or unanswered == UNANSWERED:
            return value, calls
    return None, calls


def shown(prediction: str) -> str:
    """What of a model's answer a judge is shown: all, or the end of an overlong one."""
    return prediction[-MAX_SHOWN_CHARS:]
