from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import pytest

from callbacks.benchmarks import EvalRecord, Profile, Score, load_benchmark

OPTIONS = {"A": "3 cm", "B": "4.5 cm", "C": "直角", "D": "No correct answer"}
PROFILES: tuple[Profile, ...] = ("paper", "head", "fixed")


def row(**cells: Any) -> dict[str, Any]:
    return {
        "index": "12",
        "ID": "7",
        "key": "2steps_1",
        "question": "How long is the side?",
        **OPTIONS,
        "E": "",
        "answer": "B",
        "knowledge concept": "Perimeter of a square",
        "hint": "",
        "requirement": "Think first.",
        **cells,
    }


def record(**cells: Any) -> EvalRecord:
    return load_benchmark("wemath").record_from_row(row(**cells))


class Script:
    """A judge that gives its replies one after the other and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float]] = []

    def __call__(self, prompt: str, temperature: float) -> str | None:
        self.asked.append((prompt, temperature))
        return self.replies.pop(0)


# response, option read in `paper`, `head`, `fixed` (None: undecided without a judge)
CASES = [
    ("B", "B", "B", "B"),
    ("(B)", "B", "B", "B"),
    ("B. 4.5 cm", "B", "B", "B"),
    ("The answer is B", "B", "B", "B"),
    ("The answer is C", "C", "C", "C"),
    ("4.5 cm", "B", "B", "B"),
    ("The side is 4.5 cm long", "B", "B", "B"),
    ("直角", "C", "C", "C"),
    ("答案：B", None, None, None),
    ("答案: B", "B", "B", "B"),
    ("no correct answer", "D", "D", "D"),
    ("**B**", "B", "B", "B"),
    ("{B}!", "B", "B", "B"),
    ("B or C", None, None, None),
    ("b", None, None, None),
    ("", None, None, None),
    (" \n ", None, None, None),
    ("F", None, None, None),
    ("Z", "Z", "Z", "Z"),
    ("Cannot determine the answer", "Z", "Z", "Z"),
    ("B B B", "B", "B", "B"),
    ("B, since two of the sides are equal and the third is not", "B", None, "B"),  # not among the last four words
    ("\x00B\x00", None, None, None),
    ("[" * 50_000, None, None, None),
    ("9**9**9", None, None, None),
    ("x " * 50_000 + "B", "B", "B", "B"),
    ("A square has sides of 4.5 cm each", "A", "B", "B"),  # an article
    ("It is 14.5 cm long", "B", "B", None),  # 4.5 cm within another number
    ("<script>B</script>", None, None, None),
    ("A: 3 cm", "A", "A", "A"),
    ("Side B", "B", "B", "B"),
]


@pytest.mark.parametrize(("response", "paper", "head", "fixed"), CASES, ids=map(str, range(len(CASES))))
def test_rules(response: str, paper: str | None, head: str | None, fixed: str | None) -> None:
    for profile, option in zip(PROFILES, (paper, head, fixed), strict=True):
        benchmark = load_benchmark("wemath", profile)
        score = benchmark.score(record(), benchmark.reduce(response), None)
        expected = Score(None, None, "fallback") if option is None else Score(option == "B", option, "rule")
        assert (profile, score) == (profile, expected)


def test_the_judge_reads_what_the_rule_cannot() -> None:
    for profile in PROFILES:
        judge = Script("either", "B and C", "C")
        score = load_benchmark("wemath", profile).score(record(), "the right one", judge)
        assert score == Score(False, "C", "judge", 3)
        assert [temperature for _, temperature in judge.asked] == [0.0, 0.5, 1.0]
        prompt = judge.asked[0][0]
        assert "How long is the side?" in prompt
        assert "C. 直角" in prompt
        assert "the right one" in prompt


@pytest.mark.parametrize(
    ("replies", "score"),
    [
        (["B"], Score(True, "B", "judge", 1)),
        (["Option: B."], Score(True, "B", "judge", 1)),
        (["Z"], Score(False, "Z", "judge", 1)),
        ([None, "B"], Score(True, "B", "judge", 2)),
        ([None, None], Score(None, None, "fallback", 2)),
    ],
    ids=map(str, range(5)),
)
def test_replies(replies: list[str | None], score: Score) -> None:
    for profile in PROFILES:
        assert load_benchmark("wemath", profile).score(record(), "the right one", Script(*replies)) == score


def test_an_unreadable_judge_leads_to_a_draw_in_paper_and_head_and_to_a_miss_in_fixed() -> None:
    for name in ("12", "13", "ü", "x" * 1000):
        # The same draw by hand: SHA-256 of the id, modulo four options and Z.
        place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5
        for profile in ("paper", "head"):
            score = load_benchmark("wemath", profile).score(
                record(index=name), "the right one", Script("no", "", "either")
            )
            assert score == Score("ABCDZ"[place] == "B", "ABCDZ"[place], "fallback", 3)
        score = load_benchmark("wemath", "fixed").score(record(index=name), "the right one", Script("no", "", "either"))
        assert score == Score(False, None, "fallback", 3)


def test_draws_are_spread_evenly() -> None:
    benchmark = load_benchmark("wemath")
    drawn = Counter(
        benchmark.score(record(index=number), "the right one", Script("", "", "")).extracted for number in range(1000)
    )
    # Five labels of 200 on average; four standard deviations are 51.
    assert set(drawn) == set("ABCDZ")
    assert all(149 <= count <= 251 for count in drawn.values())


def test_a_record_of_a_row() -> None:
    made = record(hint="Sides are equal.")
    assert made.prompt == (
        "Hint: Sides are equal.\nQuestion: How long is the side?\nOptions:\n"
        "A. 3 cm\nB. 4.5 cm\nC. 直角\nD. No correct answer"
    )
    assert record().prompt.startswith("Question:")
    assert (made.id, made.kind, made.answer, made.group) == ("12", "mc", "B", ("2steps 7", "1"))
    assert made.choices == tuple(OPTIONS.values())
    assert dict(made.tags) == {"steps": "2", "concept": "Perimeter of a square"}
    whole = record(key="3steps_multi")
    assert (whole.group, dict(whole.tags)) == (("3steps 7", "multi"), {"steps": "3"})


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"key": "2steps_3"}, "column 'key' is '2steps_3'"),
        ({"key": "4steps_1"}, "column 'key' is '4steps_1'"),
        ({"key": "multi"}, "column 'key' is 'multi'"),
        ({"answer": "E"}, "column 'answer' is 'E', none of the options A, B, C, D"),
        ({"answer": "4.5 cm"}, "column 'answer' is '4.5 cm'"),
        ({"C": ""}, "options stand in A, B, D"),
        (dict.fromkeys("ABCD", ""), "options stand in none"),
        ({"ID": math.nan}, "column 'ID' is empty"),
    ],
)
def test_malformed_rows(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**cells)


def problem(name: str, steps: list[bool | None], whole: bool | None) -> list[tuple[EvalRecord, Score]]:
    roles: list[tuple[str, bool | None]] = [(str(number), hit) for number, hit in enumerate(steps, 1)]
    return [
        (
            record(
                index=f"{len(steps)}-{name}-{role}",
                ID=name,
                key=f"{len(steps)}steps_{role}",
                **{"knowledge concept": f"Concept {role}"},
            ),
            Score(hit, "B", "rule"),
        )
        for role, hit in [*roles, ("multi", whole)]
    ]


def aggregate(*problems: list[tuple[EvalRecord, Score]]) -> dict[str, float]:
    # All first steps, then all second ones, and so on: rows of a problem do not stand together.
    longest = max(map(len, problems), default=0)
    pairs = [rows[place] for place in range(longest) for rows in problems if place < len(rows)]
    return load_benchmark("wemath").aggregate([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def test_strict_and_loose_scores_by_hand() -> None:
    found = aggregate(
        problem("1", [True, True], True),  # CM
        problem("2", [True, False], True),  # strict RM, loose CM
        problem("3", [False, False], True),  # RM
        problem("4", [True, True], False),  # IG
        problem("5", [True, False], False),  # IK
        problem("6", [False, None], None),  # IK
        problem("1", [True, True, True], True),  # CM; an ID that a problem of two steps has too
        problem("2", [False, True, False], True),  # strict RM, loose CM
        problem("3", [True, True, True], False),  # IG
        problem("4", [False, False, False], False),  # IK
    )
    # Ten problems: IK 3, IG 2; strict CM 2, RM 3; loose CM 4, RM 1.
    assert found["problems"] == 10
    assert found["n"] == 6 * 3 + 4 * 4
    assert found["ik"] == pytest.approx(30)
    assert found["ig"] == pytest.approx(20)
    assert found["cm_strict"] == pytest.approx(20)
    assert found["cm_loose"] == pytest.approx(40)
    assert found["rm_strict"] == pytest.approx(60)  # 3 / (3 + 2)
    assert found["rm_loose"] == pytest.approx(20)  # 1 / (1 + 4)
    assert found["strict"] == found["score"] == pytest.approx(30)  # (2 + 2 / 2) / 10
    assert found["loose"] == pytest.approx(50)  # (4 + 2 / 2) / 10
    # The reference writes it as 1 less IG / 2, RM and IK: (10 - 1 - 3 - 3) / 10 and (10 - 1 - 1 - 3) / 10.
    # Values 1, 1, 0.5, 0.5 and six 0: mean 0.3, squares 0.49 * 2 + 0.04 * 2 + 0.09 * 6 = 1.6, variance 1.6 / 9.
    assert found["stderr"] == pytest.approx(100 * math.sqrt(1.6 / 9 / 10))
    # Steps: 2 + 1 + 0 + 2 + 1 + 0 of 12, and 3 + 1 + 3 + 0 of 12; wholes: 3 of 6, and 2 of 4.
    assert found["one_step"] == pytest.approx(1300 / 24)
    assert found["two_step"] == pytest.approx(50)
    assert found["three_step"] == pytest.approx(50)
    assert found["steps/2"] == pytest.approx(25)  # (1 + 1 / 2) / 6
    assert found["steps/3"] == pytest.approx(37.5)  # (1 + 1 / 2) / 4
    assert found["undecided_rate"] == pytest.approx(200 / 34)
    # First steps: 1, 2, 4, 5 of the six, and 1, 3 of the four; third steps: 1 and 3 of four.
    assert found["concept/Concept 1"] == pytest.approx(60)
    assert found["concept/Concept 3"] == pytest.approx(50)
    assert "concept/Concept multi" not in found


def test_rote_memorisation_without_a_right_problem_is_zero() -> None:
    found = aggregate(problem("1", [True, True], False), problem("2", [False, True], False))
    assert (found["rm_strict"], found["rm_loose"]) == (0.0, 0.0)
    assert found["score"] == pytest.approx(25)
    assert found["stderr"] == pytest.approx(25)  # values 0.5, 0: sample variance 0.125, over 2, root


def test_nothing_and_a_problem_that_lacks_a_row() -> None:
    benchmark = load_benchmark("wemath")
    assert benchmark.aggregate([], [])["score"] == 0.0
    pairs = [pair for pair in problem("1", [True, True], True) if pair[0].group != ("2steps 1", "2")]
    found = benchmark.aggregate([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert (found["strict"], found["loose"], found["rm_strict"]) == (0.0, 100.0, 100.0)
