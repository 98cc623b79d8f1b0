from __future__ import annotations

import time

import pytest

from helpers.fuzz import CPU_LIMIT_S
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
        # Right in other words.
        ("'C'", "C"),
        ("The answer is 'C'.", "C"),
        ("“C”", "C"),
        ("_C_", "C"),
        ("```\nC\n```", "C"),
        ("Ｃ", "C"),
        ("𝐂", "C"),
        ("C\u200b", "C"),
        ("<b>C</b>", "C"),
        ("| C |", "C"),
        ("answer: c", "C"),
        ("the answer is c", "C"),
        ("c is correct", "C"),
        ("(c) is correct", "C"),
        ("B is wrong, C is right", "C"),
        ("C because B is 6", "C"),
        ("C. Because B is too large.", "C"),
        ("C\n\nExplanation: because A is too small", "C"),
        ("Eliminate A, B and D, leaving C", "C"),
        ("A, B and D are wrong so C", "C"),
        ("A: false. B: false. C: true.", "C"),
        ("A: 4\nB: 6\nC: 27°\nD: √{3}\nAnswer: C", "C"),
        ("Since AB = 5 and angle A is 40 degrees, the answer is C", "C"),
        ("In a triangle with vertices A, B and D we find 27, so the answer is C.", "C"),
        ("C: 27 degrees, since angle A = 40 and B = 60", "C"),
        (r"\boxed{C: 27^\circ}", "C"),
        (r"\boxed{C} \boxed{(C)}", "C"),
        ("C, C", "C"),
        ("27 (C)", "C"),
        ("27.0", "C"),
        ("√3", "D"),
        ("sqrt(3)", "D"),
        (r"$\sqrt3$", "D"),
        ("maybe C", "C"),
        ("6 is too large, so 27", "C"),
        # Ruled out.
        ("A is wrong", None),
        ("A is not correct", None),
        ("A isn't right", None),
        ("cannot be A", None),
        ("anything but A", None),
        ("every option but A", None),
        ("¬A", None),
        ("~~A~~", None),
        ("A or not A", None),
        ("Not A, B, or D", None),
        ("neither A nor B", None),
        ("A, B, D are wrong", None),
        ("the value is not 6", None),
        ("6 is wrong", None),
        # Lists and hedges.
        ("A to D", None),
        ("A through D", None),
        ("A-D", None),
        ("A\nB\nC\nD", None),
        ("(C)(D)", None),
        ("The answer is (C)(D)", None),
        ("The answer is C D", None),
        ("The answer is C; D", None),
        ("The answer is C. D", None),
        ("The answer is C\nD", None),
        ("The answer is C/D", None),
        ("The answer is C, D is also possible", None),
        ("The answer is C: 27 and B: 6", None),
        ("C: 27 or B: 6", None),
        ("C (or D)", None),
        ("C, but maybe D", None),
        ("C 27°, D √3", None),
        ("A: 4\nB: 6\nC: 27°\nD: √{3}", None),
        ("Options: A: 4 B: 6 C: 27 D: √3", None),
        ("both A and B are correct", None),
        ("A and/or B", None),
        ("A = B", None),
        ("C > B", None),
        ("|A|B|C|D|", None),
        ("all of the above", None),
        ("any", None),
        ("either 4 or 6", None),
        ("A? B, " * 100 + "so C", None),
        # Letters that are no options.
        ("°C", None),
        ("5 C", None),
        ("C++", None),
        ("C′", None),
        ("A's", None),
        ("line AB", None),
        ("H2C", None),
        ("&#65;", None),
        ("the answer is a triangle", None),
        ("А", None),  # Cyrillic
        ("Α", None),  # Greek
        ("C\u0336", None),
        ("\u202eC", None),
        ("C" + " " * 4000, None),
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
        ("D) None of the above.", "D"),
        ("D", "D"),
        ("It does not increase; it decreases", "B"),
        ("Not A) It increases, but B) It decreases.", "B"),
        ("It increases or decreases", None),
        ("It increases or it decreases", None),
        ("A) It increases. B) It decreases.", None),
        ("Answer is A: It decreases.", None),
        ("None of these fit, so C", "C"),
    ],
)
def test_options_in_prose(answer: str, expected: str | None) -> None:
    assert chosen_option(answer, PROSE) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\frac{\sqrt{3}}{3}", "C"),
        (r"$\dfrac{\sqrt3}{3}$", "C"),
        ("√3/3", "C"),
        (r"tan(\angle ADC) = \frac{\sqrt{3}}{3}", "C"),
        (r"C: \frac{√{3}}{3}", "C"),
        ("1/2", "A"),
        (r"\boxed{\frac12}", None),
        ("2", "B"),
        ("√3", "D"),
        ("2√3", None),
        ("1/2√3", None),
        ("22", None),
        ("2.5", None),
    ],
)
def test_options_in_latex(answer: str, expected: str | None) -> None:
    question = "tan(angle ADC)?\nChoices:\nA: \\frac{1}{2}\nB: 2\nC: \\frac{√{3}}{3}\nD: √{3}"
    assert chosen_option(answer, question) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B) An increasing trend with C", "B"),
        ("(B) An increasing trend with C.", "B"),
        ("B: an increasing trend with C", "B"),
        ("An increasing trend with C", "B"),
        ("**A) A decreasing trend in B**", "A"),
        ("A peak at 5", "D"),
        ("No trend", "C"),
        ("The correct answer is:\n\n**B) An increasing trend with C**", "B"),
        ("The figure shows an increasing trend, thus option B is the correct answer.", "B"),
        ("B. Option A is incorrect because it shows no decrease, option C is wrong and D is not supported.", "B"),
        ("The best answer is B, as A, C and D do not match.", "B"),
        ("Option (B) matches. Options (A), (C), (D) do not.", "B"),
        ("I would choose option B over option A.", "B"),
        ("A) An increasing trend with C", None),
        ("B) An increasing trend with C\nC) No trend", None),
    ],
)
def test_options_that_mention_letters(answer: str, expected: str | None) -> None:
    question = "What is shown?\nA) A decreasing trend in B\nB) An increasing trend with C\nC) No trend\nD) A peak at 5"
    assert chosen_option(answer, question) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("The answer is E", "E"),
        ("I choose D", "D"),
        ("(b)", "B"),
        ("27", None),
        ("A cat", None),
        ("x", "X"),
    ],
)
def test_options_that_stand_in_the_image(answer: str, expected: str | None) -> None:
    assert chosen_option(answer, "Which panel shows the peak?") == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("C", 1),
        ("C)", 1),
        ("(c)", 1),
        ("c", 1),
        ("C. 27", 1),
        (r"\boxed{C}", 1),
        ("27°", 1),
        ("D", 0),
        ("4", 0),
        ("Ｃ", 1),
        ("**C**", 1),
        ("C: 27°", 1),
        (r"\text{C}", 1),
    ],
)
def test_truth_forms(truth: str, expected: int) -> None:
    assert score("C", truth, question=QUESTION) == expected


def test_a_truth_beyond_the_listed_options_opens_all_letters() -> None:
    assert score("E", "E", question=QUESTION) == 1
    assert score("E", "C", question=QUESTION) == 0


def test_one_answer_is_right_for_one_truth_at_most() -> None:
    hedges = ["A B C D", "A: 4\nB: 6\nC: 27°\nD: √{3}", "C: A", "The answer is C. So D", "A, not B; B, not A", "27 (D)"]
    assert all(sum(score(hedge, truth, question=QUESTION) for truth in "ABCD") <= 1 for hedge in hedges)


def test_options_without_a_blank_after_their_letter_count() -> None:
    question = "How large is it?\nChoices:\nA:65°\nB:60°"
    assert score("60", "B", question=question) == 1
    assert score("B: 65", "B", question=question) == 0  # the text of another option


@pytest.mark.parametrize("truth", ["", "7", "A or B", "AB", "\u202eC", "none"])
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="mcq truth"):
        score("C", truth, question=QUESTION)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA: 4\nB: 6", {"A": "4", "B": "6"}),
        ("In figure (B), which?\nA) one\nB) two", {"A": "one", "B": "two"}),
        ("Choices:\nA:65°\nB:60°", {"A": "65°", "B": "60°"}),
        ("Which?\n(A)65\n(B)60\n(C)55", {"A": "65", "B": "60", "C": "55"}),
        ("Which? A. 4 B. 6 C. 8", {"A": "4", "B": "6", "C": "8"}),
        ("Which? (A) one (B) two", {"A": "one", "B": "two"}),
        ("What does A: mean?", {}),
        ("How many balls?", {}),
    ],
)
def test_parse_options(question: str, options: dict[str, str]) -> None:
    assert parse_options(question) == options


@pytest.mark.parametrize(
    "piece",
    ["A ", "is ", "A or ", "(A", "not A ", "\\text{", "answer is ", " ", "A:", "27 not ", "so it is ", "A\n", "or "],
)
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.process_time()
    chosen_option(piece * 50_000, QUESTION)
    chosen_option((piece * 4000)[:4000], QUESTION)
    parse_options(piece * 50_000)
    assert time.process_time() - start < CPU_LIMIT_S
