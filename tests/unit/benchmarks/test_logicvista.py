from __future__ import annotations

import math
from typing import Any

import pytest

from callbacks.benchmarks import EvalRecord, Profile, Score, load_benchmark

PROFILES: tuple[Profile, ...] = ("paper", "head", "fixed")


def record(**cells: Any) -> EvalRecord:
    row = {"index": "3", "question": "Which shape comes next? A, B, C or D", "answer": "B", "skill": "inductive"}
    return load_benchmark("logicvista").record_from_row({**row, **cells})


class Script:
    """A judge that gives its replies one after the other and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float]] = []

    def __call__(self, prompt: str, temperature: float) -> str | None:
        self.asked.append((prompt, temperature))
        return self.replies.pop(0)


# truth, reply, hit in `paper`, `head`, `fixed` (None: the reply cannot be read)
REPLIES = [
    ("B", "B", True, True, True),
    ("B", "C", False, False, False),
    ("B", " B\n", True, True, True),
    ("B", "Z", False, False, False),
    ("B", "b", None, True, True),
    ("B", "B.", None, None, None),
    ("B", "The answer is B", None, None, None),
    ("B", "", None, None, None),
    ("B", "BB", True, False, True),  # the reference of 2026 counts labels
    ("B", "BC", False, False, False),
    ("A, C", "AC", True, True, True),
    ("A, C", "CA", True, True, True),
    ("A, C", "A, C", None, True, True),
    ("A, C", "A;C", None, True, True),
    ("A, C", "A C", None, True, True),
    ("A, C", "A", False, False, False),
    ("A, C", "AND", False, False, False),
    ("a, c", "AC", True, True, True),
    ("A,C", "AC", False, True, True),  # the reference of 2025 wants a blank behind the comma
    ("3", "3", None, True, True),
    ("1, 3", "13", None, True, True),
    ("3", "C", False, False, False),
    ("B", "Β", False, None, None),  # a Greek capital
    ("B", "答", None, None, None),
    ("B", "B" * 4000, True, False, True),
    ("B", "(" * 4000, None, None, None),
]


@pytest.mark.parametrize(("truth", "reply", "paper", "head", "fixed"), REPLIES, ids=map(str, range(len(REPLIES))))
def test_replies(truth: str, reply: str, paper: bool | None, head: bool | None, fixed: bool | None) -> None:
    for profile, hit in zip(PROFILES, (paper, head, fixed), strict=True):
        judge = Script(*[reply] * 5)
        score = load_benchmark("logicvista", profile).score(record(answer=truth), "surely the second", judge)
        expected = Score(hit, reply.strip(), "judge", 1) if hit is not None else Score(False, None, "fallback", 5)
        assert (profile, score) == (profile, expected)


# truth, response, hit in `fixed` without a judge; `paper` and `head` are undecided
BARE = [
    ("B", "B", True),
    ("B", "C", False),
    ("B", "(B)", True),
    ("B", "B.", True),
    ("A, C", "A, C", True),
    ("A, C", "C;A", True),
    ("A, C", "A", False),
    ("3", "3", True),
    ("B", "b", None),
    ("B", "The answer is B", None),
    ("B", "BAD", None),
    ("B", "", None),
    ("B", "A " * 50_000, None),
    ("B", "答えは B", None),
    ("B", "A, B, C, D, E, F, G, H, A, B, C, D", None),
]


@pytest.mark.parametrize(("truth", "response", "hit"), BARE, ids=map(str, range(len(BARE))))
def test_without_a_judge(truth: str, response: str, hit: bool | None) -> None:
    for profile in ("paper", "head"):
        benchmark = load_benchmark("logicvista", profile)
        assert benchmark.score(record(answer=truth), response, None) == Score(None, None, "fallback")
    score = load_benchmark("logicvista", "fixed").score(record(answer=truth), f" {response}\n", None)
    assert (score.hit, score.method) == (hit, "fallback" if hit is None else "rule")


def test_paper_and_head_ask_even_for_a_bare_letter() -> None:
    for profile in ("paper", "head"):
        judge = Script("C")
        score = load_benchmark("logicvista", profile).score(record(), "B", judge)
        assert score == Score(False, "C", "judge", 1)
    judge = Script()
    assert load_benchmark("logicvista", "fixed").score(record(), "B", judge) == Score(True, "B", "rule")
    assert not judge.asked


def test_five_calls_of_rising_temperature() -> None:
    judge = Script("I see", None, "hm", "no", "B")
    score = load_benchmark("logicvista").score(record(), "surely the second", judge)
    assert score == Score(True, "B", "judge", 5)
    assert [temperature for _, temperature in judge.asked] == [0.0, 0.5, 1.0, 1.5, 2.0]
    prompt = judge.asked[0][0]
    assert prompt.endswith("Question:\nWhich shape comes next? A, B, C or D\nAnswer:\nsurely the second\nLabels:")


def test_a_judge_that_never_answers_leaves_the_row_undecided() -> None:
    score = load_benchmark("logicvista").score(record(), "surely the second", Script(None, None))
    assert score == Score(None, None, "fallback", 2)


def test_a_record_of_a_row() -> None:
    made = record(question="Wie geht es weiter? 次は?")
    assert (made.prompt, made.question) == ("Wie geht es weiter? 次は?",) * 2
    assert (made.id, made.kind, made.choices, made.group) == ("3", "mc", (), None)
    assert dict(made.tags) == {"skill": "inductive"}
    assert dict(record(skill="['numerical', 'Spatial']").tags) == {"skill": "numerical, spatial"}
    assert dict(record(skill="").tags) == {"skill": "unknown"}
    assert dict(record(skill="verbal, other").tags) == {"skill": "verbal and other"}


@pytest.mark.parametrize("column", ["index", "question", "answer"])
def test_malformed_rows(column: str) -> None:
    for empty in ("", None, math.nan, "  "):
        with pytest.raises(ValueError, match=f"column '{column}' is empty"):
            record(**{column: empty})


def test_scores_by_hand() -> None:
    rows = [("inductive", True), ("inductive", False), ("spatial", True), ("numerical, spatial", None)]
    records = [record(index=number, skill=skill) for number, (skill, _) in enumerate(rows)]
    found = load_benchmark("logicvista").aggregate(records, [Score(hit, None, "judge") for _, hit in rows])
    # Two of four; sample variance 4 * 0.25 / 3, over 4.
    assert found == pytest.approx(
        {
            "score": 50.0,
            "stderr": 100 * math.sqrt(1 / 12),
            "undecided_rate": 25.0,
            "n": 4.0,
            "skill/inductive": 50.0,
            "skill/numerical": 0.0,
            "skill/spatial": 50.0,
        }
    )
    assert load_benchmark("logicvista").aggregate([], [])["score"] == 0.0
