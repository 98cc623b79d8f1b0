from __future__ import annotations

import time

import pytest

from helpers.fuzz import CPU_LIMIT_S
from lit_vlaa.answers import MAX_ANSWER_CHARS
from lit_vlaa.rewards.digit import final_number, score
from lit_vlaa.rewards.errors import UnparsableTruthError


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("3", "3", 1),
        ("3.0", "3", 1),
        ("3", "3.0", 1),
        ("03", "3", 1),
        ("Three", "3", 1),
        ("three objects", "3", 1),
        ("There are 3 objects remaining.", "3", 1),
        (r"\boxed{3}", "3", 1),
        (r"\[\boxed{3}\]", "3", 1),
        (r"4 - 1, so \boxed{3}", "3", 1),
        ("**3**", "3", 1),
        ("$3$", "3", 1),
        ("3 (three)", "3", 1),
        ("4 - 1 = 3", "3", 1),
        ("There were 4 and 1 went, so the answer is 3.", "3", 1),
        ("not 4 but 3", "3", 1),
        ("٣", "3", 1),
        ("３", "3", 1),
        ("The answer is 3 (2 red + 1 blue)", "3", 1),
        ("3 objects (2 red and 1 blue)", "3", 1),
        ("-3", "-3", 1),
        ("−3", "-3", 1),
        ("1,200", "1200", 1),
        ("twenty-one", "21", 1),
        ("zero", "0", 1),
        ("-0", "0", 1),
        ("3", "three", 1),
        ("3", r"\boxed{3}", 1),
        ("4", "3", 0),
        ("-3", "3", 0),
        ("3.5", "3", 0),
        ("out of the 4, 3 remain", "3", 1),
        ("out of the 4, 3 remain", "4", 0),
        ("3 out of 5", "3", 1),
        ("3 out of 5", "5", 0),
        ("0 1 2 3 4 5 6 7 8 9", "3", 0),
        ("0123456789", "3", 0),
        ("3 or 4", "3", 0),
        ("the answer is 3 or 4", "4", 0),
        ("= 3 or = 4", "4", 0),
        ("3, 4", "3", 0),
        (r"\boxed{3} \boxed{4}", "3", 0),
        (r"\boxed{3} \boxed{4}", "4", 0),
        ("more than 3", "3", 0),
        ("not 3", "3", 0),
        ("x3", "3", 0),
        ("3D", "3", 0),
        ("3.4.5", "3", 0),
        ("1e3", "1000", 0),
        ("", "3", 0),
        ("none of your business", "3", 0),
        ("9" * 5000, "9", 0),
        ("3" * 3000, "3" * 3000, 1),
        ("²", "2", 0),
        # Right in other words.
        ("There were 5 objects. After removing 2, 3 remain.", "3", 1),
        ("Initially 7 objects; subtract 4: 3 objects remain.", "3", 1),
        ("5 - 2 leaves 3", "3", 1),
        ("there are 3 red ones and 2 blue ones, 5 in total", "5", 1),
        ("The answer is 3 since 5 minus 2 is 3", "3", 1),
        ("The answer: 3 objects remain out of 5", "3", 1),
        ("The number of objects left is 3.", "3", 1),
        ("6 - 2 = 4. Then 4 - 1 = 3", "3", 1),
        (r"\boxed{4-1=3}", "3", 1),
        (r"\boxed{3} \boxed{three}", "3", 1),
        (r"3\text{ objects}", "3", 1),
        ("<b>3</b>", "3", 1),
        ("| 3 |", "3", 1),
        ("#3", "3", 1),
        ("x = 3.", "3", 1),
        ("3cm", "3", 1),
        ("3%", "3", 1),
        ("about 3", "3", 1),
        ("No objects left.", "0", 1),
        ("none", "0", 1),
        ("two thousand and one", "2001", 1),
        ("a hundred", "100", 1),
        ("negative three", "-3", 1),
        ("–3", "-3", 1),
        ("3\u200b", "3", 1),
        ("1\u200b3", "13", 1),
        ("3️⃣", "3", 1),
        ("𝟛", "3", 1),
        ("3. The red one is gone.", "3", 1),
        # Numbers that are not said, or not what they look like.
        ("negative three", "3", 0),
        ("–3", "3", 0),
        ("√3", "3", 0),
        (r"\sqrt{3}", "3", 0),
        ("half of 3", "3", 0),
        ("3 hundred", "3", 0),
        ("two million", "2", 0),
        ("3 thousand", "3", 0),
        ("three and a half", "3", 0),
        ("3½", "3", 0),
        ("Ⅲ", "3", 0),
        ("3-3", "3", 0),
        ("3+3", "3", 0),
        ("3/3", "3", 0),
        (r"\frac{3}{3}", "3", 0),
        ("6/2", "3", 0),
        ("3^3", "3", 0),
        ("3:00", "3", 0),
        ("3 < 4", "3", 0),
        ("2024-03-03", "3", 0),
        ("CLEVR-3", "3", 0),
        ("&#51;", "51", 0),
        ("0x3", "3", 0),
        ("\u202e31", "31", 0),
        ("\u202e31", "13", 0),
        ("3\u0336", "3", 0),
        ("1 000", "1000", 0),
        # Nothing committed to.
        ("3 is wrong", "3", 0),
        ("3 is not the answer", "3", 0),
        ("the answer isn't 3", "3", 0),
        ("anything but 3", "3", 0),
        ("at least 3", "3", 0),
        ("3 or more", "3", 0),
        ("3+", "3", 0),
        ("3 = 4", "4", 0),
        ("4 = 3", "3", 0),
        ("= 3 = 4", "4", 0),
        ("the answer is 3. The answer is 4.", "4", 0),
        ("The answer is 3. Maybe 4.", "3", 0),
        ("3 (or 4)", "3", 0),
        ("2 remain, 3 remain, 4 remain", "4", 0),
        ("0, 1, 2, 3, 4, 5, 6, 7, 8 and 9", "9", 0),
        ("1\n2\n3", "3", 0),
        ("3 to 4", "3", 0),
        ("|3|4|", "4", 0),
        (r"\boxed{}", "3", 0),
        (r"\boxed{3, 4}", "4", 0),
        ("no idea", "0", 0),
        ("3 " * 65 + "= 3", "3", 0),
        ("3" + " " * 4000, "3", 0),
    ],
)
def test_score(answer: str, truth: str, expected: int) -> None:
    assert score(answer, truth) == expected


@pytest.mark.parametrize(
    ("truth", "number"),
    [
        ("3", "3"),
        ("3.0", "3"),
        ("+3", "3"),
        ("1,200", "1200"),
        (" 007 ", "7"),
        ("-0", "0"),
        ("Twelve.", "12"),
        ("٣", "3"),
        ("$3$", "3"),
        (r"\boxed{3}", "3"),
        ("−2", "-2"),
        ("9" * 3000, "9" * 3000),
        ("2.50", "2.5"),
    ],
)
def test_truth_forms(truth: str, number: str) -> None:
    assert score(number, truth) == 1


def test_one_answer_is_right_for_one_truth_at_most() -> None:
    hedges = ["0 1 2 3 4 5 6 7 8 9", "3 or 4", "so 1, so 2, so 3", "= 1 = 2", "1, 2 = 3", "not 1 but 2, not 2 but 3"]
    assert all(sum(score(hedge, str(truth)) for truth in range(10)) <= 1 for hedge in hedges)


def test_an_answer_too_long_to_read_commits_to_nothing() -> None:
    assert final_number("3" + " " * (MAX_ANSWER_CHARS - 1)) == "3"
    assert final_number("3" + " " * MAX_ANSWER_CHARS) is None


@pytest.mark.parametrize(
    "truth", ["", "many", "3 or 4", "nan", "3/0", "[3]", "3 4", "three or four", "1e3", "inf", "3%", "\u202e3"]
)
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="digit truth"):
        score("3", truth)


@pytest.mark.parametrize(
    "piece", ["1,", "1,111", "3 ", "= 3", "not ", "one ", "\\boxed{", "{", "-", ".", "3+", "(3", "is 3 "]
)
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.process_time()
    final_number(piece * 50_000)
    final_number((piece * 4000)[:4000])
    assert time.process_time() - start < CPU_LIMIT_S
