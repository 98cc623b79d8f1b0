"""What a reply must be to be used. Replies are hostile: each function is linear in its input and raises nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_vlaa.endpoints.replies import Reply
from lit_vlaa.pipeline.rows import Reject
from lit_vlaa.prompts import ANSWER_CLOSE, ANSWER_OPEN, IMAGE_PLACEHOLDER, THINK_CLOSE, THINK_OPEN
from lit_vlaa.rewards.scorers.verdict import after_thought
from lit_vlaa.traces import count_cues, word_count

REASONING = ("<reasoning>", "</reasoning>")
FINAL = ("<final>", "</final>")
"""Between these the rewriter is shown the two parts, and gives them back."""

_TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE, IMAGE_PLACEHOLDER, *REASONING, *FINAL)
_CONTROL = re.compile(r"<[|\uff5c][^|\uff5c<>\s]{1,40}[|\uff5c]>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for line breaks and tabs, and those that turn the direction of writing around."""
_WHOLE = frozenset({None, "", "stop", "eos", "eos_token", "stop_sequence", "end_turn"})
"""Reasons to end of a reply that says all that the model had to say; at any other (`length`, `content_filter`, words of
a server's own) something may be missing."""
_VERDICT = re.compile(r"[*\"'`]{0,2}(yes|no)[*\"'`]{0,2}[.!]?[*\"'`]{0,2}", re.IGNORECASE)


def read_caption(reply: Reply, *, max_words: int) -> str | Reject:
    """The caption of a reply."""
    text = after_thought(reply.text)
    if reply.finish not in _WHOLE:
        return Reject("the caption was cut off", f"{reply.finish}: {text or ''}")
    if not text:
        return Reject("no caption")
    return _fit(text, "caption", max_words) or text


def read_trace(reply: Reply, *, max_words: int) -> tuple[str, str] | Reject:
    """A reasoning model's thinking and its answer.

    The thinking stands in a field of its own, or between think tags at the start of the text, the first of which some
    templates leave out.
    """
    text = reply.text.strip()
    if reply.finish not in _WHOLE:
        return Reject("the trace was cut off", f"{reply.finish}: {text[-200:]}")
    if reply.reasoning.strip():
        thinking, answer = reply.reasoning, text.removeprefix(THINK_CLOSE)
    else:
        if THINK_CLOSE not in text:
            return Reject("no end of the thinking" if THINK_OPEN in text else "no thinking", text)
        thinking, _, answer = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    thinking, answer = thinking.strip(), _unwrapped(answer.strip())
    if not thinking:
        return Reject("no thinking", text)
    if not answer:
        return Reject("no answer after the thinking", text)
    return _fit(thinking, "trace", max_words) or _fit(answer, "answer", max_words) or (thinking, answer)


def read_rewrite(reply: Reply) -> tuple[str, str] | None:
    """The two parts of a rewriter's reply, which must be all of it; None if it cannot be read."""
    text = after_thought(reply.text)
    if text is None or reply.finish not in _WHOLE:
        return None
    reasoning, between, final = text.removeprefix(REASONING[0]).partition(REASONING[1])
    final = final.strip()
    whole = text.startswith(REASONING[0]) and final.startswith(FINAL[0]) and final.endswith(FINAL[1])
    if not between or not whole or len(final) < len(FINAL[0]) + len(FINAL[1]):
        return None
    parts = reasoning.strip(), final.removeprefix(FINAL[0]).removesuffix(FINAL[1]).strip()
    return parts if all(parts) and not any(map(_spoilt, parts)) else None


def word_change(before: tuple[str, str], after: tuple[str, str]) -> int:
    """By how many words, between blanks, trace and answer together became longer or shorter.

    The paper drops a sample whose length changes by more than 15 words: the total counts, not the words replaced.
    """
    old, new = (sum(map(word_count, parts)) for parts in (before, after))
    return abs(new - old)


def mentions_left(parts: tuple[str, str], mentions: Sequence[str], question: str) -> list[str]:
    """The words of `mentions` that a trace or its answer holds and the question does not, as whole words."""
    asked = count_cues(question, mentions, "words")
    found = [count_cues(part, mentions, "words") for part in parts]
    return [mention for mention in mentions if not asked[mention] and any(counts[mention] for counts in found)]


def read_verdict(reply: Reply) -> bool | None:
    """Yes or No and nothing else, but for a thinking before it, quotes or emphasis around it and a full stop."""
    text = after_thought(reply.text)
    match = _VERDICT.fullmatch(text) if text is not None and len(text) <= 20 else None
    return None if match is None else match[1].lower() == "yes"


def _fit(text: str, what: str, max_words: int) -> Reject | None:
    if word_count(text) > max_words:
        return Reject(f"the {what} is too long", f"{word_count(text)} words > {max_words}")
    spoilt = _spoilt(text)
    return Reject(f"the {what} holds {spoilt}", text) if spoilt else None


def _spoilt(text: str) -> str:
    """What it holds that would break a response or a chat, or hides from readers; empty for nothing."""
    if any(tag in text for tag in _TAGS) or _CONTROL.search(text):
        return "tags"
    return "control characters" if _UNSEEN.search(text) else ""


def _unwrapped(answer: str) -> str:
    """What stands in answer tags around the whole."""
    if answer.startswith(ANSWER_OPEN) and answer.endswith(ANSWER_CLOSE):
        return answer[len(ANSWER_OPEN) : -len(ANSWER_CLOSE)].strip()
    return answer
