from __future__ import annotations

import json
import math
from typing import Any

import pytest

from callbacks.benchmarks import EvalRecord, Judge, Profile, Score, load_benchmark

KINDS = {"mc": "multiple choice", "float": "float", "text": "text"}


def row(kind: str, answer: str, **cells: Any) -> dict[str, Any]:
    return {
        "index": "1",
        "qid": "1",
        "varid": "1",
        "question": "How wide?",
        "answer": answer,
        "answer_type": KINDS.get(kind, kind),
        "subject": "algebra",
        "knowledge_level": "high school",
        **cells,
    }


def record(kind: str, answer: str, **cells: Any) -> EvalRecord:
    return load_benchmark("dynamath").record_from_row(row(kind, answer, **cells))


class Script:
    """A judge that gives its replies one after the other and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float]] = []

    def __call__(self, prompt: str, temperature: float) -> str | None:
        self.asked.append((prompt, temperature))
        return self.replies.pop(0)


def short(value: str) -> str:
    return '{"solution": "It is so.", "short answer": ' + value + "}"


# kind, truth, response, hit in `paper`, hit in `fixed` (None: undecided without a judge)
CASES = [
    ("float", "1.5", short('"1.500"'), True, True),
    ("float", "1.5", short('"1.501"'), True, True),  # within 0.001
    ("float", "1.5", short('"1.502"'), False, False),
    ("float", "9.425", short('"3π"'), True, True),  # 9.4248
    ("float", "6.283", short('"2 π"'), False, True),  # read as 2
    ("float", "3.142", short('"π"'), None, True),
    ("float", "2", short('"2"'), True, True),
    ("float", "2", short('"2 cm"'), True, True),
    ("float", "1200", short('"1,200"'), None, True),
    ("float", "2.333", short('"7/3"'), None, True),
    ("float", "2.5", short("2.5"), None, True),  # a JSON number
    ("float", "2.5", short('"about two"'), None, None),
    ("float", "1.5", "1.5", True, True),
    ("float", "1.5", "I think 1.5", None, None),
    ("float", "1.5", "", None, None),
    ("float", "1.5", short('"nan"'), False, None),
    ("float", "1.5", short('"inf"'), False, None),
    ("float", "1.5", short('"²"'), None, None),
    ("float", "1.5", short('"9**9**9"'), None, None),
    ("float", "3", short('"٣"'), True, True),  # Python's float reads digits of any script
    ("float", "1.5", "So:\n```json\n" + short('"1.5"') + "\n```", True, True),
    ("float", "1.5", short('"1.5"') + " and {more}", None, None),  # up to the last brace it is no JSON
    ("float", "1.5", '{"solution": "first\nthen", "short answer": "1.5"}', True, True),  # bare line break
    ("float", "1.5", '{"solution": "\\(x\\)", "short answer": "1.5"}', True, True),  # not JSON until backslashes go
    ("float", "1.5", '{"solution": "a \\"b\\" c", "short answer": "1.5"}', None, True),  # JSON until they go
    ("float", "1.5", '{"short answer": null}', None, None),
    ("float", "1.5", '["1.5"]', None, None),
    ("float", "1.5", "[" * 100_000, None, None),
    ("float", "1.5", '{"a":' * 50_000 + "}" * 50_000, None, None),
    ("float", "1.5", short("9" * 5000), None, None),  # more digits than Python reads
    ("mc", "B", short('"B"'), True, True),
    ("mc", "B", short('"b"'), True, True),
    ("mc", "B", short('"(B)"'), True, True),
    ("mc", "B", short('"C"'), False, False),
    ("mc", "B", short('"B or C"'), None, None),
    ("mc", "B", short('"?"'), False, None),  # one character is taken for a choice
    ("mc", "B", "B", True, True),
    ("mc", "B", short('"The option is B"'), None, True),  # T-h-E holds an E
    ("mc", "B", "Bad luck, none fits", True, None),  # B is among the first three characters
    ("mc", "B", "答えは B", True, True),
    ("mc", "B", "", None, None),
    ("mc", "E", short('["E"]'), None, None),
    ("text", "even", short('"Even"'), True, True),
    ("text", "even", short('"odd"'), False, False),
    ("text", "even", short('"e"'), True, False),  # part of the truth
    ("text", "even", short('""'), True, False),
    ("text", "even", "", True, False),
    ("text", "even", "the answer is even", False, False),
    ("text", "(A, B, C)", short('"A, B, C"'), True, True),
    ("text", "größer", short('"GRÖSSER"'), False, False),
    ("text", "größer", short('"Größer"'), True, True),
    ("text", "5", short("5"), False, True),
    ("text", "even", "x" * 200_000, False, False),
]


@pytest.mark.parametrize(("kind", "truth", "response", "paper", "fixed"), CASES, ids=map(str, range(len(CASES))))
def test_rules(kind: str, truth: str, response: str, paper: bool | None, fixed: bool | None) -> None:
    for profile, hit in (("paper", paper), ("head", paper), ("fixed", fixed)):
        benchmark = load_benchmark("dynamath", profile)  # type: ignore[arg-type]
        score = benchmark.score(record(kind, truth), benchmark.reduce(response), None)
        assert (profile, score.hit) == (profile, hit)
        assert score.judge_calls == 0


def test_only_what_stands_in_the_answer_block_is_read() -> None:
    benchmark = load_benchmark("dynamath")
    response = "<think>" + short('"9"') + "</think><answer>" + short('"1.5"') + "</answer>"
    assert benchmark.score(record("float", "1.5"), benchmark.reduce(response), None) == Score(True, "1.5", "rule")


JUDGED: list[tuple[str, str, Profile, str | None, Score]] = [
    ("float", "1.5", "paper", "1.500", Score(True, "1.5", "judge", 1)),
    ("float", "1.5", "paper", " 1.500\n", Score(True, "1.5", "judge", 1)),
    ("float", "1.5", "paper", "1.6", Score(False, "1.6", "judge", 1)),
    ("float", "1.5", "paper", "one and a half", Score(False, None, "fallback", 1)),
    ("float", "1.5", "fixed", "3/2", Score(True, "1.5", "judge", 1)),
    ("float", "1.5", "paper", "3/2", Score(False, None, "fallback", 1)),
    ("float", "1.5", "paper", "", Score(False, None, "fallback", 1)),
    ("float", "1.5", "paper", None, Score(None, None, "fallback", 1)),
    ("mc", "B", "paper", "B", Score(True, "B", "judge", 1)),
    ("mc", "B", "paper", "I cannot say", Score(False, None, "fallback", 1)),
    ("mc", "B", "fixed", "Option B.", Score(True, "B", "judge", 1)),
    ("mc", "B", "paper", None, Score(None, None, "fallback", 1)),
]


@pytest.mark.parametrize(("kind", "truth", "profile", "reply", "expected"), JUDGED, ids=map(str, range(len(JUDGED))))
def test_one_call_of_the_judge(kind: str, truth: str, profile: Profile, reply: str | None, expected: Score) -> None:
    judge = Script(reply)
    score = load_benchmark("dynamath", profile).score(record(kind, truth), "I would say it is a fair half", judge)
    assert score == expected
    [(prompt, temperature)] = judge.asked
    assert "I would say it is a fair half" in prompt
    assert temperature == 0.0


def test_the_judge_is_not_asked_where_the_rule_decides() -> None:
    for kind, truth, response in (("float", "1.5", short('"7.1"')), ("mc", "B", short('"C"')), ("text", "x", "y")):
        judge = Script()
        assert load_benchmark("dynamath").score(record(kind, truth), response, judge).hit is False
        assert not judge.asked


def test_a_choice_that_no_one_could_read_counts_by_its_first_three_characters() -> None:
    judge: Judge = Script("neither A nor B")
    assert load_benchmark("dynamath").score(record("mc", "B"), "Both, A and C", judge) == Score(
        True, None, "fallback", 1
    )
    judge = Script("neither A nor B")
    score = load_benchmark("dynamath", "fixed").score(record("mc", "B"), "Both, A and C", judge)
    assert score == Score(False, None, "fallback", 1)


def test_a_long_answer_is_shown_to_the_judge_by_its_end() -> None:
    judge = Script("1.5")
    load_benchmark("dynamath").score(record("float", "1.5"), "a" * 90_000 + " the end", judge)
    assert len(judge.asked[0][0]) < 25_000
    assert "the end" in judge.asked[0][0]


def test_a_record_of_a_row() -> None:
    made = record("mc", "C", index=17, qid=3, varid=2, question="Wie groß ist π?")
    assert (made.id, made.group, made.kind, made.answer) == ("17", ("3", "2"), "mc", "C")
    assert dict(made.tags) == {"subject": "algebra", "knowledge_level": "high school"}
    assert next(iter(made.tags)) == "subject"
    assert made.prompt.startswith("Question:\nWie groß ist π?\n")
    form = made.prompt[made.prompt.rindex("\n\n") :]
    assert set(json.loads(form)) == {"solution", "short answer"}
    assert "letter" in made.prompt
    assert "three digits" in record("float", "1").prompt
    assert "three digits" in record("text", "1").prompt


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"answer": ""}, "column 'answer' is empty"),
        ({"answer": math.nan}, "column 'answer' is empty"),
        ({"answer": "two"}, "column 'answer' is 'two', not a number"),
        ({"answer_type": "integer"}, "column 'answer_type' is 'integer', known are float, multiple choice, text"),
        ({"question": " "}, "column 'question' is empty"),
        ({"qid": None}, "column 'qid' is empty"),
    ],
)
def test_malformed_rows(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record("float", **{"answer": "1.5", **cells})


def test_a_missing_column_is_named() -> None:
    cells = row("float", "1.5")
    del cells["varid"]
    with pytest.raises(ValueError, match="column 'varid' is missing"):
        load_benchmark("dynamath").record_from_row(cells)


def group(seed: str, subject: str, hits: list[bool | None]) -> tuple[list[EvalRecord], list[Score]]:
    records = [
        record("text", "x", index=f"{seed}-{place}", qid=seed, varid=place, subject=subject)
        for place, _ in enumerate(hits, 1)
    ]
    return records, [Score(hit, "x", "rule") for hit in hits]


def test_the_worst_case_and_the_average_by_hand() -> None:
    groups = [
        group("1", "algebra", [True, True, True]),
        group("2", "algebra", [True, False, True]),
        group("3", "geometry", [False, False, False]),
        group("4", "geometry", [True, True, None]),
        group("5", "geometry", [True, True, True]),
    ]
    # Rows interleaved by variant, as in the file.
    records = [records[place] for place in range(3) for records, _ in groups]
    scores = [scores[place] for place in range(3) for _, scores in groups]
    found = load_benchmark("dynamath").aggregate(records, scores)
    # Seeds right in all variants: 1 and 5 of 5. Rows: 3 + 2 + 0 + 2 + 3 = 10 of 15.
    assert found["worst"] == found["score"] == pytest.approx(40.0)
    assert found["average"] == pytest.approx(1000 / 15)
    # Over seeds 1, 0, 0, 0, 1: mean 0.4, sample variance (2 * 0.36 + 3 * 0.16) / 4 = 0.3, error sqrt(0.3 / 5).
    assert found["stderr"] == pytest.approx(100 * math.sqrt(0.06))
    assert found["undecided_rate"] == pytest.approx(100 / 15)
    assert (found["n"], found["seeds"]) == (15, 5)
    assert found["subject/algebra"] == pytest.approx(50.0)
    assert found["subject/geometry"] == pytest.approx(100 / 3)
    assert found["average/subject/algebra"] == pytest.approx(500 / 6)
    assert found["average/subject/geometry"] == pytest.approx(500 / 9)
    assert found["knowledge_level/high school"] == pytest.approx(40.0)


def test_aggregates_of_nothing_and_of_one_row() -> None:
    benchmark = load_benchmark("dynamath")
    assert benchmark.aggregate([], [])["score"] == 0.0
    records, scores = group("1", "algebra", [True])
    found = benchmark.aggregate(records, scores)
    assert (found["score"], found["stderr"], found["n"]) == (100.0, 0.0, 1.0)
