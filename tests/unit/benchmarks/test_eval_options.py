from __future__ import annotations

import pytest

from callbacks.benchmarks.interface import Profile
from callbacks.benchmarks.options import infer_option, labelled

COLOURS = {"A": "red", "B": "blue", "C": "dark blue", "D": "Grün"}
NUMBERS = {"A": "5", "B": "15", "C": "3/11", "D": "-5", "E": "2.5"}
FIVE = dict.fromkeys("ABCDE", "")

# Of each: the answer, the options, and what paper, head and fixed read.
CASES = [
    # A single label among the tokens.
    ("B", COLOURS, "B", "B", "B"),
    ("(B)", COLOURS, "B", "B", "B"),
    ("**B**", NUMBERS, "B", "B", "B"),
    ("[C].", COLOURS, "C", "C", "C"),
    ("The answer is D", COLOURS, "D", "D", "D"),
    ("#C! {}", COLOURS, "C", "C", "C"),
    ("D\n", COLOURS, "D", "D", "D"),
    ("E", FIVE, "E", "E", "E"),
    # Labels in lower case or inside words are none.
    ("b", NUMBERS, None, None, None),
    ("Banana", NUMBERS, None, None, None),
    # Labels that are not among the options.
    ("E", COLOURS, None, None, None),
    # The last four tokens: `C` is the fifth from the end here, the fourth below.
    ("C is what we want", NUMBERS, "C", None, "C"),
    ("C is our answer", NUMBERS, "C", "C", "C"),
    # Two labels.
    ("A or B", NUMBERS, None, None, None),
    ("A and B; the answer is B", NUMBERS, None, "B", "B"),
    ("The answer is A. No, the answer is B.", NUMBERS, None, "A", "B"),
    ("Not C, so the answer is: (D) of the list A to E", NUMBERS, None, None, "D"),
    # The reference reads letters of words; the mended rule does not.
    ("A, D: the correct answer is because", FIVE, None, "B", None),
    ("A, D: ANSWER IS **d**", FIVE, None, "D", None),
    ("A, E: answer is E", FIVE, None, None, "E"),
    # The article.
    ("A square has four sides, none of them here", COLOURS, "A", None, None),
    ("A square, and so B", COLOURS, None, None, "B"),
    ("A is it", COLOURS, "A", "A", "A"),
    ("A because of the sides", NUMBERS, "A", None, "A"),
    ("Therefore A", COLOURS, "A", "A", "A"),
    # Option texts.
    ("red", COLOURS, "A", "A", "A"),
    ("It is RED", COLOURS, "A", "A", "A"),
    ("grün", COLOURS, "D", "D", "D"),
    ("dark blue", COLOURS, None, None, "C"),
    ("red and grün", COLOURS, None, None, None),
    ("it tired him", COLOURS, "A", "A", None),
    ("it is red, as far as I can tell by looking at it closely", COLOURS, "A", None, "A"),
    ("15", NUMBERS, None, None, "B"),
    ("3/11", NUMBERS, "C", "C", "C"),
    ("-5", NUMBERS, None, None, "D"),
    ("25", NUMBERS, "A", "A", None),
    ("x=5.", NUMBERS, "A", "A", "A"),
    # Refusals.
    ("Cannot determine the answer", COLOURS, "Z", "Z", "Z"),
    ("B. I can't process this file.", COLOURS, "Z", "Z", "Z"),
    ("Z", COLOURS, "Z", "Z", "Z"),
    ("Z or B", COLOURS, "B", "B", "B"),
    ("Z, A, B", NUMBERS, None, None, None),
    # Empty, foreign and hostile.
    ("", COLOURS, None, None, None),
    ("   ", COLOURS, None, None, None),
    ("答案是B", COLOURS, None, None, None),
    ("答案 B", COLOURS, "B", "B", "B"),
    ("Ｂ", COLOURS, None, None, None),
    ("х А", COLOURS, None, None, None),  # Cyrillic letters
    ("\x00B\x00", COLOURS, None, None, None),
    ("?", {"A": "", "B": "red"}, "A", "A", None),
    ("?", {"A": "", "B": ""}, None, None, None),
    ("?", {}, None, None, None),
]


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [(answer, choices, expected) for answer, choices, *expected in CASES],
    ids=range(len(CASES)),
)
def test_option_of_an_answer(answer: str, choices: dict[str, str], expected: list[str | None]) -> None:
    profiles: tuple[Profile, ...] = ("paper", "head", "fixed")
    assert [infer_option(answer, choices, profile) for profile in profiles] == expected


@pytest.mark.parametrize("answer", ["answer is " * 20_000, "A " * 50_000, "1" * 100_000, "answer is" + " " * 100_000])
@pytest.mark.parametrize("profile", ["paper", "head", "fixed"])
def test_long_answers_end(answer: str, profile: Profile) -> None:
    assert infer_option(answer, {"B": "x", "C": "y"}, profile) is None


def test_of_a_long_answer_the_end_is_read() -> None:
    assert infer_option("C " + "x" * 30_000 + " so B", COLOURS, "paper") == "B"


def test_labels_are_letters_in_order() -> None:
    assert labelled(["x", "y", "z"]) == {"A": "x", "B": "y", "C": "z"}
    assert list(labelled(["x"] * 26))[-1] == "Z"
    with pytest.raises(ValueError, match="27 options"):
        labelled(["x"] * 27)
