from __future__ import annotations

import time

import pytest

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
        ("out of the 4, 3 remain", "3", 0),
        ("out of the 4, 3 remain", "4", 0),
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
    ],
)
def test_score(answer: str, truth: str, expected: int) -> None:
    assert score(answer, truth) == expected


@pytest.mark.parametrize("truth", ["", "many", "3 or 4", "nan", "3/0", "[3]"])
def test_unreadable_truth_is_no_verdict(truth: str) -> None:
    with pytest.raises(UnparsableTruthError, match="digit truth"):
        score("3", truth)


@pytest.mark.parametrize("piece", ["1,", "1,111", "3 ", "= 3", "not ", "one ", "\\boxed{", "{", "-", "."])
def test_hostile_text_is_quick(piece: str) -> None:
    start = time.perf_counter()
    final_number(piece * 50_000)
    final_number((piece * 4000)[:4000])
    assert time.perf_counter() - start < 1
