from __future__ import annotations

import pytest

from lit_vlaa.traces import CUES, Trace, count_cues, read_trace, word_count

NONE = dict.fromkeys(CUES, 0)


def test_the_papers_cues() -> None:
    text = "Wait, let me check again. Hmm... a MISTAKE? Alternatively, I should confirm it; double-check."
    assert count_cues(text) == {
        "wait": 1,
        "again": 1,
        "double-check": 1,
        "hmm": 1,
        "mistake": 1,
        "alternatively": 1,
        "check": 2,
        "i should confirm": 1,
    }
    assert count_cues("The answer is 4.") == NONE


@pytest.mark.parametrize(
    ("text", "substring", "words"),
    [
        ("against a checkered wall, awaiting", {"again": 1, "check": 1, "wait": 1}, {}),
        ("check, check.\ncheck", {"check": 3}, {"check": 3}),
        ("double-check", {"double-check": 1, "check": 1}, {"double-check": 1, "check": 1}),
        ("recheck_ and check2", {"check": 2}, {}),
        ("hmmm", {"hmm": 1}, {}),
        ("WAIT—again!", {"wait": 1, "again": 1}, {"wait": 1, "again": 1}),
        ("éwait and ñcheck", {"wait": 1, "check": 1}, {}),
        ("i  should confirm", {}, {}),
    ],
)
def test_cues_anywhere_or_as_words(text: str, substring: dict[str, int], words: dict[str, int]) -> None:
    assert count_cues(text) == NONE | substring
    assert count_cues(text, matching="words") == NONE | words


def test_cues_of_ones_own_are_literal_text() -> None:
    assert count_cues("So? (No) so", ["so?", "(NO)"]) == {"so?": 1, "(NO)": 1}
    assert count_cues("So? (No) so", ["so?", "(NO)"], "words") == {"so?": 1, "(NO)": 1}


def test_cues_that_cannot_be_looked_for() -> None:
    with pytest.raises(ValueError, match=r"a cue must not be empty, got \['wait', ' '\]"):
        count_cues("x", ["wait", " "])
    with pytest.raises(ValueError, match="matching must be substring or words, got 'regex'"):
        count_cues("x", matching="regex")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "thinking", "well_formed"),
    [
        ("<think> so be it </think>\n<answer>4</answer>", "so be it", True),
        ("\n <think></think><answer></answer> \n", "", True),
        ("opened by the prompt</think><answer>4</answer>", "opened by the prompt", True),
        ("<answer>4</answer>", None, False),
        ("", None, False),
        ("<think>a</think> so <answer>4</answer>", "a", False),
        ("<think>a</think><answer>4</answer> done", "a", False),
        ("first <think>a</think><answer>4</answer>", "a", False),
        ("<think>a</think><think>b</think><answer>4</answer>", "a", False),
        ("<think>a <think>b</think><answer>4</answer>", "a <think>b", False),
        ("<think>a</think><answer>4</answer><answer>5</answer>", "a", False),
        ("<think>a</think><answer>4", "a", False),
        ("<think>never closed <answer>4</answer>", "never closed", False),
        ("<think>cut off in the mid", "cut off in the mid", False),
        ("<think>a <answer>4</answer></think>", "a <answer>4</answer>", False),
        ("a</think> b <think> c", "a", False),
        ("</answer><answer></think><think>", "</answer><answer>", False),
        ("<THINK>a</THINK><answer>4</answer>", None, False),
    ],
)
def test_traces(response: str, thinking: str | None, well_formed: bool) -> None:
    assert read_trace(response) == Trace(thinking, well_formed)


def test_words() -> None:
    assert word_count(" one\n two\tthree-four ") == 3
    assert word_count("") == 0


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<answer></answer>", "wait", "a", "<", "İ", "i should "])
def test_long_texts_take_one_pass(piece: str) -> None:
    text = piece * 200_000
    read_trace(text)
    for matching in ("substring", "words"):
        counts = count_cues(text, matching=matching)
        assert counts["wait"] == (200_000 if piece == "wait" and matching == "substring" else 0)
