"""A response as it is written, with its reasoning or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer

from lit_vlaa.prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


class AnswerAlone:
    """Takes a response in pieces and gives back what is no reasoning, without tags.

    Reasoning is what `lit_vlaa.traces.thinking_span` takes for it: also all that comes ahead of a lone end of it, so
    that nothing is shown before the first tag.
    """

    def __init__(self) -> None:
        self.thinking = False
        """Whether the text so far ends within the reasoning."""
        self._begun = False
        self._left = ""

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown for certain."""
        self._left += text
        shown = ""
        while (found := self._first_tag()) is not None:
            place, tag = found
            if not self.thinking and (self._begun or tag != THINK_CLOSE):
                shown += self._left[:place]
            self._left = self._left[place + len(tag) :]
            self._begun, self.thinking = True, tag == THINK_OPEN
        if self._begun and not self.thinking:
            end = self._certain()
            shown, self._left = shown + self._left[:end], self._left[end:]
        return shown

    def end(self) -> str:
        """What is left once the response has ended; an answer within reasoning that was never closed counts."""
        left, self._left = self._left, ""
        if not self.thinking:
            return left
        _, opened, answer = left.partition(ANSWER_OPEN)
        self.thinking = not opened
        return answer.replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "")

    def _first_tag(self) -> tuple[int, str] | None:
        tags = (THINK_CLOSE,) if self.thinking else _TAGS
        return min(((place, tag) for tag in tags if (place := self._left.find(tag)) >= 0), default=None)

    def _certain(self) -> int:
        """How many characters come ahead of what may grow into a tag."""
        held = max(
            (size for tag in _TAGS for size in range(1, len(tag)) if self._left.endswith(tag[:size])),
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
