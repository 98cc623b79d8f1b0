"""A response as it is written, with its reasoning or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer

from lit_vlaa.prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_DROPPED = (THINK_OPEN, ANSWER_OPEN, ANSWER_CLOSE)


class AnswerAlone:
    """Takes a response in pieces and gives back what is no reasoning, without tags."""

    def __init__(self) -> None:
        self.thinking = False
        """Whether the text so far ends within the reasoning."""
        self._left = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown for certain."""
        self._left += text
        shown = ""
        while True:
            tags = (THINK_CLOSE,) if self.thinking else _DROPPED
            places = {tag: place for tag in tags if (place := self._left.find(tag)) >= 0}
            tag = min(places, key=places.__getitem__, default=None)
            end = self._certain(tags) if tag is None else places[tag]
            if not self.thinking:
                shown += self._left[:end]
            self._left = self._left[end + len(tag or "") :]
            if tag is None:
                return shown
            self.thinking = tag == THINK_OPEN

    def end(self) -> str:
        """What is left once the response has ended."""
        left, self._left = self._left, ""
        return "" if self.thinking else left

    def _certain(self, tags: tuple[str, ...]) -> int:
        """How many characters come ahead of what may grow into a tag."""
        held = max(
            (size for tag in tags for size in range(1, len(tag)) if self._left.endswith(tag[:size])),
            default=0,
        )
        return len(self._left) - held


class Streamer(TextStreamer):
    """Hands on the text of a response while `generate` writes it."""

    def __init__(self, tokenizer: Any, write: Callable[[str], Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        """Takes text that later tokens do not change."""
        self._write(text)
