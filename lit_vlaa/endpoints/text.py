"""Text of others on its way into a request."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"<(?=[|\uff5c]|/?s>|(?:start|end)_of_turn>)|\[(?=/?INST\])")


def harmless(prompt: str) -> str:
    """A prompt, part of which others wrote, without what would end the user's turn at common servers."""
    # Half of a surrogate pair, as a decoder may leave it, would make the request unreadable.
    return _CONTROL.sub(r"\g<0> ", prompt.encode("utf-8", "replace").decode("utf-8"))
