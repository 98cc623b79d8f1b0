"""What a server answered: taken from its JSON, told apart from what it broke off, and read again from disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_vlaa.endpoints.text import without_key
from lit_vlaa.rewards.scorers.wire import printable

CHARS_A_TOKEN = 4.0
"""Of English prose, for estimates where a server does not count."""
PIXELS_A_TOKEN = 28 * 28
"""Of an image in the Qwen family, for the same estimates."""


_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "error", "insufficient_system_resource"})
"""Reasons to end: of vLLM and SGLang when they are shut down, of brokers, of DeepSeek when it is short of machines."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to send."""

    digest: str
    """Of its bytes on disk and of how they are prepared; stands for it among the replies on disk."""
    size: tuple[int, int]
    """(width, height) in pixels as sent, for estimates."""
    data_uri: Callable[[], str]
    """Prepares it; called only where the request is sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    text: str
    """Empty where it wrote nothing."""
    reasoning: str
    """A reasoning model's thinking where the server gives it in a field of its own; else empty."""
    finish: str | None
    """Why it ended there: `stop`, `length`, or another word of the server's."""
    tokens_in: int
    tokens_out: int
    estimated: bool
    """Whether the tokens are estimates, as the server did not count."""

    @property
    def broken_off(self) -> bool:
        """Whether the server gave up on the way, so that the same question may have a better reply later."""
        return self.finish in _BROKEN_OFF


def estimate_in(texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of a request, where nobody counted them.

    Args:
        texts: Its turns.
        sizes: (width, height) in pixels of its images.
    """
    text = sum(map(len, texts)) / CHARS_A_TOKEN
    return round(text + sum(width * height for width, height in sizes) / PIXELS_A_TOKEN)


def read_reply(
    raw: Mapping[str, Any], key: str | None, turns: Sequence[Mapping[str, str]], pictures: Sequence[Picture]
) -> Reply | None:
    """Takes a server's reply apart, without the key should the server repeat it; None if it is no chat completion."""
    try:
        (choice,) = raw["choices"]
        message, finish = choice["message"], choice.get("finish_reason")
        fields = [message.get(name) for name in ("content", "reasoning_content", "reasoning")]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    text, reasoning, other = (_clean(field, key) for field in fields)
    reasoning = reasoning or other
    usage = raw.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    counted = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    estimated = len(counted) != 2
    if estimated:
        sent = estimate_in([turn["content"] for turn in turns], [picture.size for picture in pictures])
        counted = [sent, round((len(text) + len(reasoning)) / CHARS_A_TOKEN)]
    shown = printable(finish, key)[:40] if isinstance(finish, str) else None
    return Reply(text, reasoning, shown, min(counted[0], 2**53), min(counted[1], 2**53), estimated)


def _clean(field: object, key: str | None) -> str:
    text = field if isinstance(field, str) else ""
    return without_key(text.encode("utf-8", "replace").decode("utf-8"), key)


def from_disk(kept: str) -> Reply | None:
    """A reply as it was kept; None for anything else."""
    try:
        reply = Reply(**json.loads(kept))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = isinstance(reply.text, str) and isinstance(reply.reasoning, str)
    counts = [count for count in (reply.tokens_in, reply.tokens_out) if type(count) is int and count >= 0]
    known = reply.finish is None or isinstance(reply.finish, str)
    return reply if texts and known and len(counts) == 2 and isinstance(reply.estimated, bool) else None
