"""Measures of a response: by hand, against hand labels on 70 traces, and on hostile ones."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lit_vlaa.rewards.options import read_options
from lit_vlaa.study.measures import FIGURE_CUES, FLAGS, NUMBERS, cue_spans, measure, repeated
from lit_vlaa.study.responses import ScoredResponse, read_responses
from lit_vlaa.study.same_answer import same_answer
from lit_vlaa.study.statements import MOST_CHARS, MOST_STATEMENTS, distinct, statements
from lit_vlaa.traces import CUES, count_cues

LABELLED = Path(__file__).resolve().parents[2] / "data" / "labelled_traces.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
RESPONSES = {row.id: row for row in read_responses(LABELLED)}
HEURISTICS = ("contradicts", "last_differs", "answer_first")


def of(text: str, **known: Any) -> Any:
    return measure(ScoredResponse("test", "1", text, **known))


def test_there_are_enough_labelled_traces() -> None:
    assert len(ROWS) == len(RESPONSES) == 70
    assert sum(row["held_out"] for row in ROWS) == 24
    assert {row["kind"] for row in ROWS} == {"digit", "mcq", "math", "iou", "open_ended"}


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_what_has_an_exact_definition_equals_its_label(row: dict[str, Any]) -> None:
    labels, found = row["labels"], measure(RESPONSES[row["id"]])
    exact = ("words", "hesitations", "repeats", "well_formed", "answered", "truncated")
    assert {name: getattr(found, name) for name in exact} == {name: labels[name] for name in exact}
    assert found.cues == sum(labels["cues"].values())
    assert (found.aha, found.aha_words) == (bool(labels["cues"]), bool(labels["cues_as_words"]))
    assert dict(found.figure) == {cue: labels["cues"].get(cue, 0) for cue in FIGURE_CUES}
    by_word = {cue: count for cue, count in count_cues(row["response"], matching="words").items() if count}
    assert by_word == labels["cues_as_words"]


@pytest.mark.parametrize(
    ("held_out", "name", "true_positives", "false_positives", "false_negatives"),
    [
        (False, "contradicts", 9, 0, 0),
        (False, "last_differs", 7, 0, 0),
        (False, "answer_first", 5, 0, 0),
        # Rules were never changed for these; docs/traces.md quotes precision and recall.
        (True, "contradicts", 5, 0, 2),
        (True, "last_differs", 4, 0, 1),
        (True, "answer_first", 1, 0, 2),
    ],
)
def test_precision_and_recall_of_heuristics(
    held_out: bool, name: str, true_positives: int, false_positives: int, false_negatives: int
) -> None:
    pairs = [
        (bool(getattr(measure(RESPONSES[row["id"]]), name)), row["labels"][name])
        for row in ROWS
        if row["held_out"] is held_out
    ]
    assert pairs.count((True, True)) == true_positives
    assert pairs.count((True, False)) == false_positives
    assert pairs.count((False, True)) == false_negatives


@pytest.mark.parametrize(("held_out", "right"), [(False, 46), (True, 18)])
def test_number_of_different_answers(held_out: bool, right: int) -> None:
    rows = [row for row in ROWS if row["held_out"] is held_out]
    assert sum(measure(RESPONSES[row["id"]]).stated == row["labels"]["stated"] for row in rows) == right


def test_lengths_and_rates() -> None:
    found = of("<think> Hmm, not sure. One two </think> <answer>4</answer>", tokens=30, finish="stop")
    # <think> | Hmm, | not | sure. | One | two | </think> | <answer>4</answer>
    assert (found.tokens, found.words, found.thinking_words) == (30, 8, 5)
    assert (found.hesitations, found.hesitation_rate, found.truncated) == (2, 25.0, False)
    empty = of("")
    assert (empty.tokens, empty.words, empty.hesitation_rate, empty.repetition, empty.truncated) == (
        None,
        0,
        0,
        0,
        None,
    )
    assert of("x", finish="length").truncated is True


def test_flags_and_numbers_have_titles() -> None:
    found = of("wait", finish="stop")
    assert found.flags.keys() == FLAGS.keys()
    assert list(found.numbers) == list(NUMBERS)
    assert found.flags["cue: wait"] is True
    assert found.flags["cue: again"] is False
    assert {name for name, value in found.flags.items() if value is None} == {"contradicts", "last_differs"}
    json.dumps(asdict(found))


@pytest.mark.parametrize(
    ("text", "share", "block"),
    [
        ("a b c", 0.0, 0),
        # Five 4-grams: abca bcab cabc abca bcab, of which three differ; the block abc follows itself.
        ("a b c a b c a b", 1 - 3 / 5, 3),
        ("A b C a B c", 0.0, 3),
        ("no no", 0.0, 1),
        # ababab: three 4-grams, abab baba abab; ab follows itself, and no block of three does.
        ("a b a b a b", 1 - 2 / 3, 2),
        ("x a b c d y a b c d", 1 - 6 / 7, 0),
        (" ".join(map(str, range(64))) + " " + " ".join(map(str, range(64))), 1 - 64 / 125, 64),
        (" ".join(map(str, range(65))) + " " + " ".join(map(str, range(65))), 1 - 65 / 127, 0),
    ],
    ids=range(8),
)
def test_repetition(text: str, share: float, block: int) -> None:
    found, longest = repeated(text)
    assert found == pytest.approx(share)
    assert longest == block
    assert of(text).repeats is (block >= 3)


def test_repetition_equals_a_plain_count() -> None:
    """An independent way to the same numbers, on words that come again by chance."""
    import random  # noqa: PLC0415

    rng = random.Random(0)
    for _ in range(200):
        words = [rng.choice("abc") for _ in range(rng.randint(0, 30))]
        grams = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
        share = 1 - len(set(grams)) / len(grams) if grams else 0.0
        sizes = [
            size
            for size in range(1, len(words) // 2 + 1)
            for at in range(len(words) - 2 * size + 1)
            if words[at : at + size] == words[at + size : at + 2 * size]
        ]
        found, longest = repeated(" ".join(words))
        assert found == pytest.approx(share)
        assert longest == max(sizes, default=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 4.", ["4"]),
        ("The answer is 3.5, since it is half.", ["3.5"]),
        ("Final answer: **B**", ["B"]),
        ("The answer is likely B", ["B"]),
        ("Is the answer 4?", []),
        ("The answer is 4?", []),
        ("If that holds, the answer is 4.", []),
        ("The answer is not 4.", []),
        ("The answer is either 4 or 5.", []),
        ("The answer is in the picture.", []),
        ("So the answer is [0.1, 0.2, 0.3, 0.4] because", ["[0.1, 0.2, 0.3, 0.4]"]),
        (r"Thus \boxed{\frac{1}{2}}, or \boxed{0.5}.", [r"\frac{1}{2}", "0.5"]),
        ("Option A is 3. Option B is 4.", []),
        ("Option B is correct.", ["B"]),
        ("I pick (C).", ["C"]),
        ("So A circle is drawn.", []),
        ("3 * 4 = 12. 12 - 5 = 7.", ["7"]),
        ("3 * 4 = 12. The answer is 12. Check: 12 / 4 = 3.", ["12"]),
        ("There are six of them. That leaves four.", ["4"]),
        ("The walls are green.", []),
        ("", []),
    ],
    ids=range(21),
)
def test_statements(text: str, found: list[str]) -> None:
    assert [one.text for one in statements(text)] == found


def test_statements_come_in_order_and_are_limited() -> None:
    text = "The answer is 1. I pick B. \\boxed{3} So the answer is 4."
    found = statements(text)
    assert [one.text for one in found] == ["1", "B", "3", "4"]
    assert [one.start for one in found] == sorted(one.start for one in found)
    many = statements("".join(f"The answer is {number}. " for number in range(1000)))
    assert len(many) <= MOST_STATEMENTS
    assert [many[0].text, many[-1].text] == ["0", "999"]
    middle = f"The answer is 1. {'x ' * MOST_CHARS} The answer is 2. {'x ' * MOST_CHARS} The answer is 3."
    assert [one.text for one in statements(middle)] == ["1", "3"]


OPTIONS = read_options("How many?\nA: 4\nB: 5\nC: a red car")


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("4", "four", True),
        ("1,200", "1200", True),
        ("4", "5", False),
        (r"\frac{7}{2}", "3.5", True),
        (r"x = \frac{7}{2}", "7/2", True),
        ("10/3", "3.33", True),
        ("3", "3.14", False),
        ("0.5", "0.56", False),
        ("0.5", "0.549", True),
        ("12 pages", "12", True),
        ("50°", "50 degrees", True),
        ("1/0", "4", False),
        ("B", "(b)", True),
        ("B", "option C", False),
        ("y = -5*sin(-5*x)", "-5 * sin(-5 x)", True),
        ("y = 2*x", "y = 3*x", False),
        ("[0.1, 0.2, 0.5, 0.6]", "(0.1, 0.2), (0.5, 0.6)", True),
        ("[0.1, 0.2, 0.5, 0.6]", "[0.1, 0.2, 0.5, 0.7]", False),
        ("[0.1, 0.2, 0.5, 0.6]", "left", None),
        ("[1..2, 0.2, 0.5, 0.6]", "[0.1, 0.2, 0.5, 0.6]", None),
        ("a dog", "It is a small dog.", True),
        ("a dog", "a cat", False),
        ("red dog", "red cat", None),
        ("May 12, 1998", "June 3, 1996", False),
        ("", "4", None),
        ("a\u202eb", "4", None),
    ],
    ids=range(26),
)
def test_same_answer(one: str, two: str, same: bool | None) -> None:
    assert same_answer(one, two) is same
    assert same_answer(two, one) is same


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [("5", "B", True), ("5", "A", False), ("a red car", "C", True), ("7", "A", None), ("Z", "A", None)],
)
def test_same_answer_by_the_questions_options(one: str, two: str, same: bool | None) -> None:
    assert same_answer(one, two, OPTIONS) is same
    if one != "Z":
        assert same_answer(one, two) is None


def test_options_of_the_question_and_answers_without_tags() -> None:
    text = "<think>So the answer is 5.</think><answer>A</answer>"
    assert of(text).contradicts is None
    assert of(text, question="How many?\nA: 4\nB: 5").contradicts is True
    # A benchmark's rules may find an answer where there is no block.
    assert of("<think>The answer is 5.</think> It is 4", extracted="4").contradicts is True
    assert distinct(statements("The answer is 5. The answer is five. The answer is 6.")) == 2


def test_highlighted_places() -> None:
    text = "Wait, double-check against it. Actually factually, I\u2019m confused."
    assert [text[start:end] for start, end in cue_spans(text)] == [
        *("Wait", "double-check", "again", "Actually", "I\u2019m confused")
    ]


HOSTILE: dict[str, str] = {
    name: piece * (1_000_000 // len(piece))
    for name, piece in {
        "tags": "<think></think><answer>",
        "opened": "<think>",
        "dotted": "\u0130",
        "words": "a b ",
        "full stops": ". . ",
        "answers": "the answer is 4. ",
        "choices": "so A. ",
        "boxes": "\\boxed{",
        "closed boxes": "\\boxed{4} ",
        "equations": "= 1.\n",
        "brackets": "[0.1,",
        "numbers": "hundred two ",
        "digits": "1",
        "commas": "1,",
        "blanks": " ",
        "chinese": "答案是",
        "surrogates": "\ud800",
    }.items()
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_takes_no_time_to_speak_of(name: str) -> None:
    text = f"<think>{HOSTILE[name]}</think><answer>{HOSTILE[name][:5000]}</answer>"
    row = ScoredResponse("test", "1", text, question=text[:20_000], extracted=text[:5000])
    for work in (lambda: measure(row), lambda: cue_spans(text)):
        started = time.process_time()
        work()
        assert time.process_time() - started < 20  # a third of a second; more than linear, it would take hours


@pytest.mark.parametrize(
    "text", ["<answer>" * 1000, "<think>" * 9, "</think>", "\ud800", "\0", "<think></answer>", "\\boxed{"]
)
def test_broken_texts_are_measured_too(text: str) -> None:
    assert of(text).words == 1


def test_marks_cover_all_cues() -> None:
    for cue in CUES:
        assert cue_spans(f"x{cue}y") == [(1, 1 + len(cue))]
