from __future__ import annotations

import pickle
from typing import Any

import pytest

from callbacks.benchmarks.images import EncodedImage
from callbacks.benchmarks.interface import Profile, Score
from callbacks.benchmarks.mathvision import MathVision
from helpers.judges import ScriptedJudge, picture

IMAGES = (EncodedImage(picture()),)
PAPER = MathVision()
LETTERS = "['A', 'B', 'C', 'D', 'E']"


def row(**cells: Any) -> dict[str, Any]:
    return {
        "index": "12",
        "question": "How many?",
        "image": picture(),
        "choices": "[]",
        "answer": "14",
        "category": "counting",
        **cells,
    }


ROWS = {
    "mc": row(choices="['\\\\(\\\\sqrt{2}\\\\)', '3', '13', '\\\\frac{1}{2}', 'none of these']", answer="C"),
    "letters": row(choices=LETTERS, answer="e"),
    "14": row(),
    "7/3": row(answer="7/3"),
    "root": row(answer=r"2\sqrt{3}"),
    "pi": row(answer=r"4\pi"),
    "half": row(answer=r"\frac{1}{2}"),
    "2.345": row(answer="2.345"),
    "word": row(answer="Sunday"),
    "pair": row(answer="(1, 2)"),
    "million": row(answer="1,000,000"),
}
SILENT: tuple[None, ...] = (None,) * 2
NO = Score(None, None, "fallback", 0)
DEAD = Score(None, None, "fallback", 2)


def rule(hit: bool, text: str) -> Score:
    return Score(hit, text, "rule")


# (profiles, row, answer, judge's replies or None without a judge, verdict)
CASES: list[tuple[str, str, str, Any, Score]] = [
    # Multiple choice.
    ("paper head fixed", "mc", "C", None, rule(True, "C")),
    ("paper head fixed", "mc", "The answer is (C).", None, rule(True, "C")),
    ("paper head fixed", "mc", "B", ["C"], rule(False, "B")),
    ("paper head", "mc", "13", ["C"], Score(True, "C", "judge", 1)),  # also holds the option 3
    ("fixed", "mc", "13", ["A"], rule(True, "C")),
    ("paper head fixed", "mc", "none of these", None, rule(False, "E")),
    ("paper", "mc", r"From A and B follows \boxed{C}", None, NO),
    ("head fixed", "mc", r"From A and B follows \boxed{C}", None, rule(True, "C")),
    ("paper", "mc", r"\boxed{B}, no, \boxed{C}", None, NO),
    ("head", "mc", r"\boxed{B}, no, \boxed{C}", None, rule(False, "B")),
    ("fixed", "mc", r"\boxed{B}, no, \boxed{C}", None, rule(True, "C")),
    ("paper head fixed", "mc", "twelve plus one", ["(C) 13"], Score(True, "C", "judge", 1)),
    ("paper head fixed", "mc", "twelve plus one", [None, "D"], Score(False, "D", "judge", 2)),
    ("paper head fixed", "mc", "twelve plus one", ["B or C"], Score(False, "B or C", "judge", 1)),
    ("paper head fixed", "mc", "twelve plus one", SILENT, DEAD),
    ("paper head fixed", "mc", "", None, NO),
    ("paper head fixed", "mc", "I can't process this file.", ["C"], rule(False, "Z")),
    ("paper head fixed", "letters", "E", None, rule(True, "E")),
    ("paper head fixed", "letters", "答え E", None, rule(True, "E")),
    # Free answers, by rule.
    ("paper head fixed", "14", "14", None, rule(True, "14")),
    ("paper head fixed", "14", " 14.0 ", None, rule(True, "14.0")),
    ("paper head fixed", "14", "2*7", None, rule(True, "2*7")),
    ("paper head fixed", "14", r"\frac{28}{2}", None, rule(True, r"\frac{28}{2}")),
    ("paper head", "14", "14 cm", None, NO),
    ("fixed", "14", "14 cm", None, rule(True, "14 cm")),
    ("paper head", "14", "$14$", None, NO),
    ("fixed", "14", "$14$", None, rule(True, "$14$")),
    ("paper", "14", r"\boxed{14}", None, NO),
    ("head fixed", "14", r"\boxed{14}", None, rule(True, "14")),
    ("paper head", "14", "13", None, NO),
    ("paper head", "14", "13", ["14"], Score(True, "14", "judge", 1)),
    ("fixed", "14", "13", ["14"], rule(False, "13")),
    ("paper head fixed", "7/3", r"\frac{7}{3}", None, rule(True, r"\frac{7}{3}")),
    ("paper head fixed", "7/3", "2.3333333", None, rule(True, "2.3333333")),
    ("paper head", "7/3", "2.33", ["2.33"], Score(False, "2.33", "judge", 1)),
    ("fixed", "7/3", "2.33", None, rule(True, "2.33")),
    ("fixed", "7/3", "2.34", None, rule(False, "2.34")),
    ("fixed", "7/3", "2.3", None, rule(False, "2.3")),
    ("fixed", "2.345", "2.35", None, rule(False, "2.35")),  # the truth can be written out
    ("paper head fixed", "root", r"2\sqrt{3}", None, rule(True, r"2\sqrt{3}")),
    ("paper head", "root", r"\sqrt{12}", [r"\sqrt{12}"], Score(False, r"\sqrt{12}", "judge", 1)),
    ("fixed", "root", r"\sqrt{12}", None, rule(True, r"\sqrt{12}")),
    ("fixed", "root", "3.46", None, rule(True, "3.46")),
    ("fixed", "root", r"\sqrt{13}", None, rule(False, r"\sqrt{13}")),
    ("head", "root", r"\boxed{2\sqrt{3}}", None, NO),  # the box ends at the first brace
    ("fixed", "root", r"\boxed{2\sqrt{3}}", None, rule(True, r"2\sqrt{3}")),
    ("paper head", "pi", "4π", None, NO),
    ("fixed", "pi", "4π", None, rule(True, "4π")),
    ("fixed", "pi", "12.57", None, rule(True, "12.57")),
    ("fixed", "half", "0.5", None, rule(True, "0.5")),
    ("paper head fixed", "half", r"\FRAC{1}{2}", None, rule(True, r"\FRAC{1}{2}")),
    ("paper head fixed", "word", "sunday", None, rule(True, "sunday")),
    ("paper head", "word", r"\text{Sunday}.", None, NO),
    ("fixed", "word", r"\text{Sunday}.", None, rule(True, r"\text{Sunday}.")),
    ("paper head fixed", "word", "It is a Sunday", ["Sunday"], Score(True, "Sunday", "judge", 1)),
    ("paper head fixed", "word", "воскресенье", ["Monday"], Score(False, "Monday", "judge", 1)),
    ("paper head", "pair", "(1,2)", None, NO),
    ("fixed", "pair", "$(1,2)$", None, rule(True, "$(1,2)$")),
    ("paper head", "million", "1000000", None, NO),
    ("fixed", "million", "1000000", None, rule(True, "1000000")),
    # Empty and hostile.
    ("paper head fixed", "14", "", None, NO),
    ("paper head fixed", "14", "", [""], Score(False, "", "judge", 1)),
    ("paper head fixed", "14", "9**9**9**9", None, NO),
    ("paper head fixed", "14", "(" * 100_000, None, NO),
    ("paper head fixed", "14", r"\boxed{" * 10_000, None, NO),
    ("paper head fixed", "14", "__import__('os').system('true')", SILENT, DEAD),
]


@pytest.mark.parametrize(
    ("profile", "kind", "answer", "replies", "expected"),
    [(profile, *case) for profiles, *case in CASES for profile in profiles.split()],
    ids=[f"{number}-{profile}" for number, case in enumerate(CASES) for profile in case[0].split()],
)
def test_verdict(profile: Profile, kind: str, answer: str, replies: Any, expected: Score) -> None:
    benchmark = MathVision(profile=profile)
    judge = None if replies is None else ScriptedJudge(replies)
    assert benchmark.score(benchmark.record_from_row(ROWS[kind]), answer, judge) == expected
    assert judge is None or len(judge.prompts) == expected.judge_calls


def test_record_of_a_row() -> None:
    record = PAPER.record_from_row(ROWS["mc"])
    assert (record.id, record.kind, record.answer) == ("12", "mc", "C")
    assert record.choices == (r"\(\sqrt{2}\)", "3", "13", r"\frac{1}{2}", "none of these")
    assert record.tags == {"category": "counting"}
    assert record.images[0].open().size == (40, 30)
    assert pickle.loads(pickle.dumps((PAPER, record)))[1] == record  # noqa: S301  # made here
    assert PAPER.record_from_row(ROWS["letters"]).answer == "E"
    free = PAPER.record_from_row(row(level="3", category=""))
    assert (free.kind, free.choices, free.tags) == ("free", (), {"category": "unknown", "level": "3"})


def test_prompt_is_hint_question_and_options_in_this_order() -> None:
    hint, *rest = PAPER.record_from_row(row(choices="['x', 'y']", answer="B")).prompt.split("\n")
    assert hint.startswith("Hint: ")
    assert "letter" in hint
    assert rest == ["Question: How many?", "Choices:", "(A) x", "(B) y"]
    free = PAPER.record_from_row(row()).prompt.split("\n")
    assert "final answer" in free[0]
    assert free[1:] == ["Question: How many?"]


@pytest.mark.parametrize("text", ["Hint: Answer.\nQuestion: How many?\nChoices:\n(A) x\n(B) y"])
def test_a_question_that_bears_its_hint_stays(text: str) -> None:
    assert PAPER.record_from_row(row(choices="['x', 'y']", answer="B", question=text)).prompt == text


def test_options_in_the_question_are_not_repeated() -> None:
    prompt = PAPER.record_from_row(row(choices="['x', 'y']", answer="B", question="How?\nChoices: (A) x (B) y")).prompt
    assert prompt.count("(A)") == 1


def test_the_judge_sees_examples_then_prompt_and_response() -> None:
    judge = ScriptedJudge(["14"])
    record = PAPER.record_from_row(ROWS["14"])
    PAPER.score(record, "fourteen", judge)
    (prompt,) = judge.prompts
    assert prompt.endswith(f"{record.prompt}\nModel response: fourteen\nExtracted answer:")
    # Unlike MathVista's, its examples do not tell kinds of numbers apart.
    assert "whole number" not in prompt
    assert prompt.count("final answer") == 5


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"question": " "}, "'question' is empty"),
        ({"index": ""}, "'index' is empty"),
        ({"answer": None}, "'answer' is empty"),
        ({"choices": LETTERS, "answer": "F"}, "'answer' is 'F', none of the 5"),
        ({"choices": LETTERS, "answer": "14"}, "'answer' is '14', none of the 5"),
        ({"choices": "A B C"}, "'choices' is not a flat list"),
        ({"choices": "[1+1]; x"}, "'choices' is not a flat list"),
        ({"choices": repr([*map(str, range(30))]), "answer": "A"}, "'choices' lists 30 options"),
    ],
    ids=range(8),
)
def test_malformed_rows_name_the_column(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="column ") as error:
        PAPER.record_from_row(row(**cells))
    assert message in str(error.value)


def test_hub_rows_take_the_columns_of_the_file() -> None:
    hub: dict[str, Any] = {
        "id": "4",
        "question": "Which bike was most expensive?\n<image1>",
        "options": ["A", "B"],
        "image": "images/4.jpg",
        "decoded_image": IMAGES,
        "answer": "A",
        "solution": None,
        "level": 1,
        "subject": "arithmetic",
    }
    record = PAPER.record_from_row(PAPER.row_from_hub(hub))
    assert (record.id, record.kind, record.answer, record.images) == ("4", "mc", "A", IMAGES)
    assert record.question == "Which bike was most expensive?"
    assert record.tags == {"category": "arithmetic", "level": "1"}
    assert PAPER.record_from_row(PAPER.row_from_hub({**hub, "options": [], "answer": "7"})).kind == "free"
    assert PAPER.row_from_hub({**hub, "question": " " * 100_000})["question"] == " " * 100_000


def test_aggregate() -> None:
    rows = [
        row(index="1", category="counting", level="1"),
        row(index="2", category="counting", level="2"),
        row(index="3", category="solid geometry", level="2"),
    ]
    scores = [Score(True, "14", "rule"), Score(None, None, "fallback"), Score(True, "14", "judge", 1)]
    assert PAPER.aggregate([PAPER.record_from_row(cells) for cells in rows], scores) == {
        "score": pytest.approx(200 / 3),
        "stderr": pytest.approx(100 / 3),  # variance (1/9 + 4/9 + 1/9) / 2 = 1/3, divided by 3, its root 1/3
        "undecided_rate": pytest.approx(100 / 3),
        "n": 3.0,
        "category/counting": 50.0,
        "category/solid geometry": 100.0,
        "level/1": 100.0,
        "level/2": 50.0,
    }
