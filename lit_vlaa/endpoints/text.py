"""Text of others on its way into a request."""

from __future__ import annotations

import re

_SHORTEST_SECRET = 8
"""Shorter keys (`EMPTY`, `1`) are stand-ins; to look for them would cut words and digits out of replies."""

_CONTROL = re.compile(r"<(?=[|\uff5c]|/?s>|(?:start|end)_of_turn>)|\[(?=/?INST\])")


def harmless(prompt: str) -> str:
    """A prompt, part of which others wrote, without what would end the user's turn at common servers."""
    # Half of a surrogate pair, as a decoder may leave it, would make the request unreadable.
    return _CONTROL.sub(r"\g<0> ", prompt.encode("utf-8", "replace").decode("utf-8"))


def without_key(text: str, key: str | None) -> str:
    """A server's words without the key that it was sent, should it repeat it.

    Args:
        text: The words.
        key: The key, None for none.
    """
    return text.replace(key, "***") if key and len(key) >= _SHORTEST_SECRET else text
