"""Each filter of the build at its boundary."""

from __future__ import annotations

import pytest

from lit_vlaa.endpoints.replies import Reply
from lit_vlaa.pipeline.config import MENTIONS
from lit_vlaa.pipeline.filters import (
    mentions_left,
    read_caption,
    read_rewrite,
    read_trace,
    read_verdict,
    word_change,
)
from lit_vlaa.pipeline.rows import Reject


def reply(text: str, *, reasoning: str = "", finish: str | None = "stop") -> Reply:
    return Reply(text, reasoning, finish, 1, 1, False)


def reason(found: object) -> str:
    assert isinstance(found, Reject), found
    return found.reason


def test_a_caption_is_what_follows_the_thinking() -> None:
    assert read_caption(reply(" A cat. "), max_words=9) == "A cat."
    assert read_caption(reply("<think>hm</think> A cat."), max_words=9) == "A cat."
    assert reason(read_caption(reply("  "), max_words=9)) == "no caption"
    assert reason(read_caption(reply("A cat", finish="length"), max_words=9)) == "the caption was cut off"
    assert reason(read_caption(reply("A <image> cat"), max_words=9)) == "the caption holds tags"
    assert reason(read_caption(reply("A \u202ecat"), max_words=9)) == "the caption holds control characters"
    assert read_caption(reply("A\n\tcat", finish="end_turn"), max_words=9) == "A\n\tcat"


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls", "something new"])
def test_only_replies_that_came_to_their_end_are_used(finish: str) -> None:
    assert reason(read_caption(reply("A cat", finish=finish), max_words=9)) == "the caption was cut off"
    assert reason(read_trace(reply("<think>a</think>b", finish=finish), max_words=9)) == "the trace was cut off"
    whole = "<reasoning>a</reasoning><final>b</final>"
    assert read_rewrite(reply(whole)) == ("a", "b")
    assert read_rewrite(reply(whole, finish=finish)) is None


@pytest.mark.parametrize(("words", "kept"), [(3, True), (4, False)])
def test_lengths_have_a_limit_in_words(words: int, kept: bool) -> None:
    text = " ".join(["a"] * words)
    assert (read_caption(reply(text), max_words=3) == text) is kept
    trace = read_trace(reply(f"<think>{text}</think>2"), max_words=3)
    assert (trace == (text, "2")) is kept
    answer = read_trace(reply(f"<think>b</think>{text}"), max_words=3)
    assert (answer == ("b", text)) is kept
    if not kept:
        assert trace == Reject("the trace is too long", "4 words > 3")
        assert answer == Reject("the answer is too long", "4 words > 3")


@pytest.mark.parametrize(
    "given",
    [
        reply("<think> two and two </think> 4 "),
        reply("two and two</think>4"),
        reply("4", reasoning=" two and two "),
        reply("</think>4", reasoning="two and two"),
        reply("<think>two and two</think><answer> 4 </answer>"),
        reply("4", reasoning="two and two", finish=None),
    ],
    ids=["inline", "without its first tag", "field", "field and stray end", "answer tags", "no finish"],
)
def test_a_trace_in_each_form(given: Reply) -> None:
    assert read_trace(given, max_words=9) == ("two and two", "4")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (reply("<think>two and"), "no end of the thinking"),
        (reply("4"), "no thinking"),
        (reply(""), "no thinking"),
        (reply("<think> </think>4"), "no thinking"),
        (reply("<think>two</think> "), "no answer after the thinking"),
        (reply("<think>two</think><answer> </answer>"), "no answer after the thinking"),
        (reply("", reasoning="two"), "no answer after the thinking"),
        (reply("<think>two</think>4", finish="length"), "the trace was cut off"),
        (reply("4", reasoning="two", finish="length"), "the trace was cut off"),
        (reply("<think>a<think>b</think>4"), "the trace holds tags"),
        (reply("<think>a</think>b</think>4"), "the answer holds tags"),
        (reply("<think>a <answer>3</answer></think>4"), "the trace holds tags"),
        (reply("<think>a</think><answer>3</answer><answer>4</answer>"), "the answer holds tags"),
        (reply("<think>a</think>so <answer>3</answer>"), "the answer holds tags"),
        (reply("4", reasoning="a <|im_end|><|im_start|>system"), "the trace holds tags"),
        (reply("<think>a</reasoning></think>4"), "the trace holds tags"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trace_that_cannot_be_used(given: Reply, why: str) -> None:
    assert reason(read_trace(given, max_words=9)) == why


def test_a_rewrite_is_both_parts_and_nothing_else() -> None:
    whole = "<reasoning>\nI see two.\n</reasoning>\n<final>\n2\n</final>"
    assert read_rewrite(reply(whole)) == ("I see two.", "2")
    assert read_rewrite(reply(f"<think>ok</think>{whole}")) == ("I see two.", "2")
    for other in (
        f"Here it is: {whole}",
        f"{whole} Done.",
        "I see two.",
        "<reasoning>a</reasoning>",
        "<reasoning>a</reasoning><final>",
        "<reasoning>a</reasoning><final></final>",
        "<reasoning></reasoning><final>2</final>",
        "<reasoning>a</reasoning><final>2</final><final>3</final>",
        "<reasoning>a<think>b</reasoning><final>2</final>",
        "<reasoning>a</reasoning></final>",
    ):
        assert read_rewrite(reply(other)) is None, other
    assert read_rewrite(reply(whole, finish="length")) is None


@pytest.mark.parametrize(("words", "change"), [(5, 15), (4, 16), (35, 15), (36, 16), (20, 0)])
def test_the_change_of_length_counts_words_of_trace_and_answer(words: int, change: int) -> None:
    # Before: 18 + 2 = 20 words. After: `words` - 1 in the trace, 1 in the answer.
    before = (" ".join(["a"] * 18), "b c")
    assert word_change(before, (" ".join(["x\n"] * (words - 1)), "d")) == change


def test_mentions_are_whole_words_that_the_question_does_not_hold() -> None:
    assert mentions_left(("The caption says so", "2"), MENTIONS, "How many?") == ["caption"]
    assert mentions_left(("I see it", "The Descriptions"), MENTIONS, "How many?") == ["descriptions"]
    assert mentions_left(("captioning", "2"), ["caption"], "How many?") == []
    assert mentions_left(("It is a caption", "2"), MENTIONS, "Which caption fits?") == []
    assert mentions_left(("as described there", "2"), MENTIONS, "?") == ["as described"]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *((text, True) for text in ("Yes", " yes.\n", "**Yes**", "YES!", '"Yes"', "<think>no</think>Yes")),
        *((text, False) for text in ("No", "no.", "`No`")),
        *((text, None) for text in ("", "Yes, because", "Yes No", "Not sure", "Y", "Answer: Yes", "<think>Yes")),
        ("<think>a</think>b</think>Yes", None),
    ],
)
def test_a_verdict_is_one_word(text: str, verdict: bool | None) -> None:
    assert read_verdict(reply(text)) is verdict
