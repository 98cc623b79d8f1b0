from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from callbacks.benchmarks.images import EncodedImage
from callbacks.benchmarks.interface import Profile, Score
from callbacks.benchmarks.mathvista import MathVista
from helpers.judges import ScriptedJudge, picture

IMAGES = (EncodedImage(picture()),)
PAPER, HEAD, FIXED = MathVista(), MathVista(profile="head"), MathVista(profile="fixed")
REFUSED = "Cannot determine the answer"


def row(**cells: Any) -> dict[str, Any]:
    return {
        "index": "7",
        "question": "How much is it?",
        "image": picture(),
        "question_type": "free_form",
        "answer_type": "integer",
        "choices": "",
        "answer": "14",
        "answer_option": "",
        "task": "figure question answering",
        "skills": "['algebraic reasoning', 'statistical reasoning']",
        **cells,
    }


OPTIONS = {"question_type": "multi_choice", "answer_type": "text", "choices": "['3/11', '8/11', '6/11']"}
ROWS = {
    "mc": row(**OPTIONS, answer="8/11", answer_option="B"),
    "int": row(),
    "zero": row(answer="0"),
    "float": row(answer_type="float", answer="1.2"),
    "zero.0": row(answer_type="float", answer="0.0"),
    "list": row(answer_type="list", answer="[2007, 2008]"),
}
SILENT: tuple[None, ...] = (None,) * 2
NO = Score(None, None, "fallback", 0)
DEAD = Score(None, None, "fallback", 2)

# (profiles, row, answer, judge's replies or None without a judge, verdict)
CASES: list[tuple[str, str, str, Any, Score]] = [
    # Multiple choice, by rule: a wrong option stays, whatever a judge would say.
    ("paper head fixed", "mc", "B", None, Score(True, "B", "rule")),
    ("paper head fixed", "mc", "(B)", ["A"], Score(True, "B", "rule")),
    ("paper head fixed", "mc", "C", ["B"], Score(False, "C", "rule")),
    ("paper head fixed", "mc", "8/11", None, Score(True, "B", "rule")),
    (
        "paper fixed",
        "mc",
        "6/11, I should think, from what the figure shows us",
        None,
        Score(False, "C", "rule"),
    ),
    ("head", "mc", "6/11, I should think, from what the figure shows us", None, NO),
    ("paper", "mc", "A circle has 8 of 11 parts in blue", None, Score(False, "A", "rule")),
    ("head fixed", "mc", "A circle has 8 of 11 parts in blue", ["B"], Score(True, "B", "judge", 1)),
    ("paper head fixed", "mc", REFUSED, ["B"], Score(False, "Z", "rule")),
    # Multiple choice, by the judge.
    ("paper head fixed", "mc", "eight of eleven", ["B"], Score(True, "B", "judge", 1)),
    ("paper head fixed", "mc", "eight of eleven", ["8/11"], Score(True, "B", "judge", 1)),
    ("paper head fixed", "mc", "A or B", [None, "A"], Score(False, "A", "judge", 2)),
    ("paper head fixed", "mc", "A or B", ["who knows"], Score(False, "who knows", "judge", 1)),
    ("paper head fixed", "mc", "A or B", [""], Score(False, "", "judge", 1)),
    ("paper head fixed", "mc", "A or B", SILENT, DEAD),
    ("paper head fixed", "mc", "", None, NO),
    ("paper head fixed", "mc", "", ["B"], Score(True, "B", "judge", 1)),
    ("paper head fixed", "mc", "选择 B", None, Score(True, "B", "rule")),
    ("paper head fixed", "mc", "B" * 100_000, None, NO),
    # Whole numbers.
    ("paper head fixed", "int", "14", None, Score(True, "14", "rule")),
    ("paper head fixed", "int", " 14\n", None, Score(True, "14", "rule")),
    ("paper head fixed", "int", "１４", None, Score(True, "１４", "rule")),
    ("paper head", "int", "14.0", None, NO),
    ("fixed", "int", "14.0", None, Score(True, "14.0", "rule")),
    ("paper head", "int", "14 cm", ["14 cm"], Score(False, "14 cm", "judge", 1)),
    ("fixed", "int", "14 cm", None, Score(True, "14 cm", "rule")),
    ("paper head", "int", "13", None, NO),
    ("paper head", "int", "13", ["14"], Score(True, "14", "judge", 1)),
    ("paper head", "int", "13", ["13"], Score(False, "13", "judge", 1)),
    ("fixed", "int", "13", ["14"], Score(False, "13", "rule")),
    ("paper head fixed", "int", "It is fourteen", ["14"], Score(True, "14", "judge", 1)),
    ("paper head fixed", "int", "It is fourteen", [None, "14\n"], Score(True, "14", "judge", 2)),
    ("paper head", "int", "It is fourteen", ["14."], Score(False, "14.", "judge", 1)),
    ("fixed", "int", "It is fourteen", ["14."], Score(True, "14.", "judge", 1)),
    ("paper head fixed", "int", "It is fourteen", ["none"], Score(False, "none", "judge", 1)),
    ("paper head fixed", "int", "It is fourteen", SILENT, DEAD),
    ("paper head fixed", "int", "", None, NO),
    ("paper head fixed", "int", "9**9**9", None, NO),
    ("paper head fixed", "int", "1" * 100_000, None, NO),
    ("paper head fixed", "int", "__import__('os').getpid()", None, NO),
    # A right answer of 0.
    ("paper head", "zero", "0", None, NO),
    ("paper head", "zero", "0", ["0"], Score(True, "0", "judge", 1)),
    ("fixed", "zero", "0", ["1"], Score(True, "0", "rule")),
    ("paper head", "zero.0", "0.0", None, NO),
    ("paper head", "zero.0", "0.0", ["0"], Score(True, "0", "judge", 1)),
    ("fixed", "zero.0", "0", None, Score(True, "0", "rule")),
    # Decimals.
    ("paper head fixed", "float", "1.2", None, Score(True, "1.2", "rule")),
    ("paper head fixed", "float", "1.20", None, Score(True, "1.20", "rule")),
    ("paper head", "float", "1.23", None, NO),
    ("paper head", "float", "1.23", ["1.23"], Score(False, "1.23", "judge", 1)),
    ("fixed", "float", "1.23", None, Score(True, "1.23", "rule")),
    ("fixed", "float", "1.26", None, Score(False, "1.26", "rule")),
    ("fixed", "float", "$1.2", None, Score(True, "$1.2", "rule")),
    ("paper head", "float", "nan", ["inf"], Score(False, "inf", "judge", 1)),
    ("fixed", "float", "nan", None, NO),
    # Lists.
    ("paper head", "list", "[2007, 2008]", None, Score(False, "[2007, 2008]", "rule")),
    ("paper head", "list", "[2007, 2008]", ["[2007, 2008]"], Score(False, "[2007, 2008]", "rule")),
    ("fixed", "list", "[2007, 2008]", None, Score(True, "[2007, 2008]", "rule")),
    ("fixed", "list", "2007,2008.0", None, Score(True, "2007,2008.0", "rule")),
    ("fixed", "list", "[2008, 2007]", None, Score(False, "[2008, 2007]", "rule")),
    ("fixed", "list", "[2007, 2008, 2009]", None, Score(False, "[2007, 2008, 2009]", "rule")),
    ("fixed", "list", "from 2007 to 2008", ["[2007, 2008]"], Score(True, "[2007, 2008]", "judge", 1)),
    ("fixed", "list", "[" * 100_000, None, NO),
]


@pytest.mark.parametrize(
    ("profile", "kind", "answer", "replies", "expected"),
    [(profile, *case) for profiles, *case in CASES for profile in profiles.split()],
    ids=[f"{number}-{profile}" for number, case in enumerate(CASES) for profile in case[0].split()],
)
def test_verdict(profile: Profile, kind: str, answer: str, replies: Any, expected: Score) -> None:
    benchmark = MathVista(profile=profile)
    judge = None if replies is None else ScriptedJudge(replies)
    assert benchmark.score(benchmark.record_from_row(ROWS[kind]), answer, judge) == expected
    assert judge is None or len(judge.prompts) == expected.judge_calls


def test_only_the_answer_block_is_scored() -> None:
    record = PAPER.record_from_row(ROWS["mc"])
    answer = PAPER.reduce("<think>A? C?</think><answer>\nB\n</answer>")
    assert PAPER.score(record, answer, None).hit is True
    assert PAPER.score(record, PAPER.reduce("<answer>A</answer><answer>B</answer>"), None).hit is None


def test_record_of_a_row() -> None:
    record = PAPER.record_from_row(ROWS["mc"])
    assert (record.id, record.kind, record.choices, record.answer) == ("7", "mc", ("3/11", "8/11", "6/11"), "B")
    assert record.tags == {
        "task": "figure question answering",
        "skills": "algebraic reasoning, statistical reasoning",
        "question_type": "multi_choice",
    }
    (image,) = record.images
    assert image.open().size == (40, 30)
    assert pickle.loads(pickle.dumps((PAPER, record)))[1] == record  # noqa: S301  # made here


def test_prompt_is_hint_question_unit_and_options_in_this_order() -> None:
    record = PAPER.record_from_row(row(**OPTIONS, answer_option="B", question="Which part?", unit="%"))
    hint, *rest = record.prompt.split("\n")
    assert hint.startswith("Hint: ")
    assert "letter" in hint
    assert rest == ["Question: Which part? (Unit: %)", "Choices:", "(A) 3/11", "(B) 8/11", "(C) 6/11"]


def test_hint_follows_the_kind_of_answer() -> None:
    rows = [ROWS["mc"], ROWS["int"], ROWS["list"], ROWS["float"]]
    rows += [row(answer_type="float", precision=places) for places in ("1.0", "2")]
    hints = [PAPER.record_from_row(cells).prompt.split("\n")[0] for cells in rows]
    words = ("letter", "whole number", "Python list", "decimal number", "one decimal place", "two decimal places")
    assert [word in hint for word, hint in zip(words, hints, strict=True)] == [True] * 6


def test_a_question_that_bears_its_hint_stays() -> None:
    text = "Hint: Say a letter.\nQuestion: Which part?\nChoices:\n(A) 3/11\n(B) 8/11"
    assert PAPER.record_from_row(row(**OPTIONS, answer_option="B", question=text)).prompt == text


def test_the_judge_sees_examples_then_prompt_and_response() -> None:
    judge = ScriptedJudge(["14"])
    record = PAPER.record_from_row(ROWS["int"])
    PAPER.score(record, "It is fourteen", judge)
    (prompt,) = judge.prompts
    assert prompt.endswith(f"{record.prompt}\nModel response: It is fourteen\nExtracted answer:")
    assert prompt.count("Extracted answer:") == 6
    assert prompt.count("one decimal place") == 1


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"question": ""}, "'question' is empty"),
        ({"index": None}, "'index' is empty"),
        ({"question_type": "essay"}, "'question_type' is 'essay'"),
        ({"answer_type": "text"}, "'answer_type' is 'text'"),
        ({"answer": ""}, "'answer' is empty"),
        ({**OPTIONS, "answer_option": "D"}, "'answer_option' is 'D', none of the 3"),
        ({**OPTIONS, "answer_option": "AB"}, "'answer_option' is 'AB'"),
        ({**OPTIONS, "answer_option": "A", "choices": ""}, "'answer_option' is 'A', none of the 0"),
        ({**OPTIONS, "answer_option": "A", "choices": "3/11"}, "'choices' is not a flat list"),
        ({**OPTIONS, "answer_option": "A", "choices": "[['x']]"}, "'choices' is not a flat list"),
        ({**OPTIONS, "answer_option": "A", "choices": "[open('x')]"}, "'choices' is not a flat list"),
        ({**OPTIONS, "answer_option": "A", "choices": "['x', 'y'"}, "'choices' is not a flat list"),
        ({**OPTIONS, "answer_option": "A", "choices": "['\\x']"}, "'choices' holds a malformed string"),
        ({**OPTIONS, "answer_option": "A", "choices": "[" * 50_000}, "'choices' is not a flat list"),
        ({**OPTIONS, "answer_option": "A", "choices": str(list(range(65)))}, "'choices' lists 65 items"),
        ({**OPTIONS, "answer_option": "A", "choices": str(list(range(27)))}, "'choices' lists 27 options"),
        ({"question": "x" * 100_001}, "'question' has 100001 characters"),
    ],
    ids=range(17),
)
def test_malformed_rows_name_the_column(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="column ") as error:
        PAPER.record_from_row(row(**cells))
    assert message in str(error.value)


def test_a_missing_column_is_named() -> None:
    cells = row()
    del cells["answer"]
    with pytest.raises(ValueError, match="column 'answer' is missing"):
        PAPER.record_from_row(cells)


def test_choices_are_read_as_python_writes_them() -> None:
    texts = ["it's", 'say "x"', "\\frac{1}{2}", "a, b]", "Grün", ""]
    record = PAPER.record_from_row(row(**{**OPTIONS, "choices": repr(texts)}, answer_option="F"))
    assert record.choices == tuple(texts)


def test_skills_that_are_no_list_count_as_one() -> None:
    assert PAPER.record_from_row(row(skills="logic")).tags["skills"] == "logic"
    assert PAPER.record_from_row(row(skills=math.nan, task=None)).tags == {
        "task": "unknown",
        "skills": "unknown",
        "question_type": "free_form",
    }


def test_hub_rows_take_the_columns_of_the_file() -> None:
    hub: dict[str, Any] = {
        "pid": "12",
        "question": "Which part?",
        "query": "Hint: Say a letter.\nQuestion: Which part?",
        "image": "images/12.jpg",
        "decoded_image": IMAGES,
        "choices": ["3/11", "8/11"],
        "unit": None,
        "precision": None,
        "answer": "8/11",
        "question_type": "multi_choice",
        "answer_type": "text",
        "metadata": {"task": "textbook question answering", "skills": ["scientific reasoning"], "grade": "x"},
    }
    record = PAPER.record_from_row(PAPER.row_from_hub(hub))
    assert (record.id, record.answer, record.choices, record.images) == ("12", "B", ("3/11", "8/11"), IMAGES)
    assert record.prompt == hub["query"]
    assert record.tags["task"] == "textbook question answering"
    assert record.tags["skills"] == "scientific reasoning"
    free = {
        **hub,
        "query": None,
        "choices": None,
        "answer": "1.5",
        "question_type": "free_form",
        "answer_type": "float",
    }
    record = PAPER.record_from_row(PAPER.row_from_hub({**free, "precision": 1.0, "unit": "kg"}))
    assert (record.kind, record.answer, record.choices) == ("float", "1.5", ())
    assert record.prompt.endswith("Question: Which part? (Unit: kg)")
    assert "one decimal place" in record.prompt
    assert PAPER.keeps_hub_row(hub)


def test_aggregate() -> None:
    cells = [
        row(index="1", task="geometry", skills="['a', 'b']"),
        row(index="2", task="geometry", skills="['a']"),
        row(index="3", task="algebra", skills="['b']"),
        row(**OPTIONS, index="4", task="algebra", skills="[]", answer_option="A"),
    ]
    scores = [Score(hit, None, "rule") for hit in (True, False, True, None)]
    assert PAPER.aggregate([PAPER.record_from_row(each) for each in cells], scores) == {
        "score": 50.0,
        "stderr": pytest.approx(100 * math.sqrt((4 * 0.25 / 3) / 4)),  # variance 4 * 0.5^2 / (4 - 1)
        "undecided_rate": 25.0,
        "n": 4.0,
        "task/geometry": 50.0,
        "task/algebra": 50.0,
        "skills/a": 50.0,
        "skills/b": 100.0,
        "skills/unknown": 0.0,
        "question_type/free_form": pytest.approx(200 / 3),
        "question_type/multi_choice": 0.0,
    }


def test_aggregate_of_nothing() -> None:
    assert PAPER.aggregate([], []) == {"score": 0.0, "stderr": 0.0, "undecided_rate": 0.0, "n": 0.0}
