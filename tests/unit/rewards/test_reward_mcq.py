from __future__ import annotations

import time

import pytest

from lit_vlaa.rewards.errors import UnparsableTruthError
from lit_vlaa.rewards.mcq import chosen_option, parse_options, score

QUESTION = "What is x?\nChoices:\nA: 4\nB: 6\nC: 27°\nD: √{3}"
PROSE = "How does the ratio change?\nA) It increases.\nB) It decreases.\nC) It stays.\nD) None of the above."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("C.", "C"),
        ("C)", "C"),
        ("**C**", "C"),
        ("$C$", "C"),
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\[\boxed{\text{C}}\]", "C"),
        ("C: 27 deg", "C"),
        ("C: 27°", "C"),
        ("C) 27 degrees", "C"),
        ("27°", "C"),
        ("27 degrees", "C"),
        ("27", "C"),
        ("The angle is 27 degrees", "C"),
        (r"\sqrt{3}", "D"),
        ("4", "A"),
        ("The value is 6.", "B"),
        ("Option B", "B"),
        ("option (b)", "B"),
        ("The answer is C.", "C"),
        ("Answer: (C)", "C"),
        ("not B, so C", "C"),
        ("Answer is C, not D", "C"),
        ("The answer is C because A is too small", "C"),
        ("A is correct", "A"),
        ("A", "A"),
        ("", None),
        ("A car is there", None),
        ("A or B", None),
        ("A and B", None),
        ("A, B, C, D", None),
        ("A B C D", None),
        ("ABCD", None),
        ("(A) (B) (C)", None),
        ("(C)/(D)", None),
        ("C or maybe D", None),
        ("The answer is A or C", None),
        ("The answer is C, or perhaps D", None),
        ("The answer is C. The answer is D.", None),
        (r"\boxed{C} \boxed{D}", None),
        ("A: no, B", None),
        ("Answer: A) 4. Also B) 6", None),
        ("C: 4", None),
        ("None of the above", None),
        ("It is not C.", None),
        ("E", None),
        ("4 or 6", None),
        ("I am not sure", None),
    ],
)
def test_chosen_option(answer: str, expected: str | None) -> None:
    assert chosen_option(answer, QUESTION) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("None of the above", "D"),
        ("It decreases", "B"),
        ("B) It decreases.", "B"),
        ("B: It increases.", None),
        ("A) The ratio increases as A grows.", "A"),
        ("**Answer: B) It decreases.**", "B"),
    ],
)
def test_options_in_prose(answer: str, expected: str | None) -> None:
    assert chosen_option(answer, PROSE) == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [("C", 1), ("C)", 1), ("(c)", 1), ("c", 1), ("C. 27", 1), (r"\boxed{C}", 1), ("27°", 1), ("D", 0), ("4", 0)],
)
def test_truth_forms(truth: str, expected: int) -> None:
    assert score("C", truth, question=QUESTION) == expected


@pytest.mark.parametrize("truth", ["", "7", "A or B"])
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="mcq truth"):
        score("C", truth, question=QUESTION)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA: 4\nB: 6", {"A": "4", "B": "6"}),
        ("In figure (B), which?\nA) one\nB) two", {"A": "one", "B": "two"}),
        ("Which? A. 4 B. 6 C. 8", {"A": "4", "B": "6", "C": "8"}),
        ("Which? (A) one (B) two", {"A": "one", "B": "two"}),
        ("What does A: mean?", {}),
        ("How many balls?", {}),
    ],
)
def test_parse_options(question: str, options: dict[str, str]) -> None:
    assert parse_options(question) == options


@pytest.mark.parametrize("piece", ["A ", "is ", "A or ", "(A", "not A ", "\\text{", "answer is ", " ", "A:"])
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.perf_counter()
    chosen_option(piece * 50_000, QUESTION)
    chosen_option((piece * 4000)[:4000], QUESTION)
    assert time.perf_counter() - start < 1.5
