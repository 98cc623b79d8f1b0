from __future__ import annotations

import pickle
from typing import Any

import pytest

from callbacks.benchmarks.images import EncodedImage
from callbacks.benchmarks.interface import Profile, Score
from callbacks.benchmarks.mathverse import MathVerse, extract_prompt, score_prompt
from helpers.judges import ScriptedJudge, picture

IMAGES = (EncodedImage(picture()),)
PAPER = MathVerse()


def row(**cells: Any) -> dict[str, Any]:
    return {
        "index": "5",
        "question": "Answer directly.",
        "query_cot": "Reason first, then answer.",
        "question_for_eval": "How long is BC?",
        "answer": "14",
        "metadata": "{'split': 'testmini', 'source': 'GeoQA', 'subject': 'Plane Geometry', 'subfield': 'Angle'}",
        "problem_version": "Vision Only",
        "image": picture(),
        **cells,
    }


ROWS = {
    "mc": row(question_for_eval="How large is angle B?\nChoices:\nA:65°\nB:75°\nC:85°", answer="B"),
    "free": row(),
    "interval": row(answer="(-2, 1]"),
    "kilo": row(answer="2 kg"),
}
SILENT: tuple[None, ...] = (None,) * 2
NO = Score(None, None, "fallback", 0)


def judged(hit: bool, text: str, calls: int) -> Score:
    return Score(hit, text, "judge", calls)


# (profiles, row, answer, judge's replies or None without a judge, verdict)
CASES: list[tuple[str, str, str, Any, Score]] = [
    # Without a judge.
    ("paper head fixed", "mc", "B", None, Score(True, "B", "rule")),
    ("paper head fixed", "mc", " B\n", None, Score(True, "B", "rule")),
    ("paper head", "mc", "C", None, NO),
    ("fixed", "mc", "C", None, Score(False, "C", "rule")),
    ("paper head", "mc", "B:75°", None, NO),
    ("fixed", "mc", "B:75°", None, Score(True, "B:75°", "rule")),
    ("fixed", "mc", "75°", None, Score(True, "75°", "rule")),
    ("fixed", "mc", "A or B", None, NO),
    ("paper head fixed", "free", "14", None, Score(True, "14", "rule")),
    ("paper head", "free", "14.0", None, NO),
    ("fixed", "free", "14.0", None, Score(True, "14.0", "rule")),
    ("fixed", "free", "13", None, NO),
    ("paper head fixed", "free", "", None, NO),
    ("paper head fixed", "interval", "(-2, 1]", None, Score(True, "(-2, 1]", "rule")),
    ("paper head fixed", "interval", "(-2,1]", None, NO),
    ("paper head fixed", "free", "9**9**9", None, NO),
    ("paper head fixed", "free", "(" * 100_000, None, NO),
    # The judge's extraction is the truth: no verdict is needed.
    ("paper head", "mc", "B", ["B"], judged(True, "B", 1)),
    ("fixed", "mc", "B", ["C"], Score(True, "B", "rule")),
    ("paper head fixed", "free", "so it is fourteen", ["14"], judged(True, "14", 1)),
    ("paper head fixed", "free", "so it is fourteen", [" 14\n"], judged(True, "14", 1)),
    ("paper head fixed", "free", "so it is fourteen", [None, "14"], judged(True, "14", 2)),
    # The judge compares.
    ("paper head fixed", "interval", "(-2,1]", ["(-2,1]", "1"], judged(True, "(-2,1]", 2)),
    ("paper head fixed", "interval", "(-2,1)", ["(-2,1)", "0"], judged(False, "(-2,1)", 2)),
    ("paper head fixed", "interval", "(-2,1]", ["(-2,1]", " 1\n"], judged(True, "(-2,1]", 2)),
    ("paper head fixed", "interval", "(-2,1]", ["(-2,1]", "yes", "1.", "1"], judged(True, "(-2,1]", 4)),
    ("paper head fixed", "interval", "(-2,1]", ["(-2,1]", None, "0"], judged(False, "(-2,1]", 3)),
    ("paper head fixed", "kilo", "2000 g", ["2000 g", "1"], judged(True, "2000 g", 2)),
    ("paper head fixed", "kilo", "двa", ["null", "0"], judged(False, "null", 2)),
    ("paper head fixed", "free", "", ["null", "0"], judged(False, "null", 2)),
    ("paper head fixed", "free", "", ["", "0"], judged(False, "", 2)),
    ("paper head", "free", "13", ["13", "1"], judged(True, "13", 2)),  # the judge has the last word
    # Failures.
    ("paper head", "free", "x", ["x", *["maybe"] * 5], Score(False, "x", "fallback", 6)),
    ("fixed", "free", "x", ["x", *["maybe"] * 5], Score(None, "x", "fallback", 6)),
    ("paper head", "free", "x", ["x", *["１", "true", "0/1", "", "01"]], Score(False, "x", "fallback", 6)),
    ("paper head fixed", "free", "x", ["x", *SILENT], Score(None, "x", "fallback", 3)),
    ("paper head", "free", "x", ["x", None, "?", None, None], Score(False, "x", "fallback", 5)),
    ("paper head fixed", "free", "x", SILENT, Score(None, None, "fallback", 2)),
]


@pytest.mark.parametrize(
    ("profile", "kind", "answer", "replies", "expected"),
    [(profile, *case) for profiles, *case in CASES for profile in profiles.split()],
    ids=[f"{number}-{profile}" for number, case in enumerate(CASES) for profile in case[0].split()],
)
def test_verdict(profile: Profile, kind: str, answer: str, replies: Any, expected: Score) -> None:
    benchmark = MathVerse(profile=profile)
    judge = None if replies is None else ScriptedJudge(replies)
    assert benchmark.score(benchmark.record_from_row(ROWS[kind]), answer, judge) == expected
    assert judge is None or len(judge.prompts) == expected.judge_calls


def test_rules_do_not_suffice() -> None:
    assert MathVerse.rules_suffice is False


def test_the_judge_first_extracts_then_compares() -> None:
    judge = ScriptedJudge(["(-2,1]", "?", "1"])
    PAPER.score(PAPER.record_from_row(ROWS["interval"]), "It is (-2,1].", judge)
    extract, *compare = judge.prompts
    assert extract == extract_prompt("It is (-2,1].")
    assert extract.endswith("7.\nModel response: 'It is (-2,1].'\nExtracted answer:")
    assert compare == [score_prompt("How long is BC?", "(-2, 1]", "(-2,1]")] * 2
    assert compare[0].endswith(
        "[Question]: How long is BC?\n[Standard answer]: (-2, 1]\n[Model answer]: (-2,1]\nVerdict:"
    )
    assert compare[0].count("Verdict: 0") == 4
    assert judge.temperatures == [0.0, 0.0, 0.5]


def test_record_of_a_row() -> None:
    record = PAPER.record_from_row(ROWS["mc"])
    assert (record.id, record.kind, record.answer, record.choices) == ("5", "mc", "B", ("65°", "75°", "85°"))
    assert record.prompt == "Reason first, then answer."
    assert record.question.startswith("How large is angle B?")
    assert record.tags == {"subject": "Plane Geometry", "subfield": "Angle", "problem_version": "Vision Only"}
    assert record.images[0].open().size == (40, 30)
    assert pickle.loads(pickle.dumps((PAPER, record)))[1] == record  # noqa: S301  # made here


@pytest.mark.parametrize(
    ("listing", "choices"),
    [
        ("A:1\nB:2", ("1", "2")),
        ("(A) x\n(B) y\n(C) z", ("x", "y", "z")),
        ("A. x\n\n B. y", ("x", "y")),
        ("B:1\nC:2", ()),
        ("A:1\nC:2", ()),
        ("A:\nB:2", ()),
        ("", ()),
        ("A:" + " " * 90_000, ()),
    ],
    ids=range(8),
)
def test_options_come_from_the_question(listing: str, choices: tuple[str, ...]) -> None:
    record = PAPER.record_from_row(row(answer="A", question_for_eval=f"How?\nChoices:\n{listing}"))
    assert record.choices == choices
    assert record.kind == ("mc" if choices else "free")


def test_without_a_prompt_that_asks_to_reason_the_question_is_the_prompt() -> None:
    assert PAPER.record_from_row(row(query_cot="")).prompt == "Answer directly."
    assert PAPER.record_from_row(row(question="", question_for_eval="Why?")).prompt == "Reason first, then answer."


@pytest.mark.parametrize(
    ("metadata", "subject"),
    [
        ("", "unknown"),
        ("no dictionary", "unknown"),
        ('{"subject": "Functions"}', "Functions"),
        ("{'subject': ''}", "unknown"),
        ("{'subject': \"Euler's\"}", "Euler's"),
        ("{" * 50_000, "unknown"),
        ("'a':" * 20_000, "unknown"),
        ({"subject": "Functions", "subfield": None}, "Functions"),
        ("__import__('os')", "unknown"),
    ],
    ids=range(9),
)
def test_metadata_is_only_read(metadata: Any, subject: str) -> None:
    assert PAPER.record_from_row(row(metadata=metadata)).tags["subject"] == subject


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"answer": ""}, "'answer' is empty"),
        ({"index": ""}, "'index' is empty"),
        ({"question": "", "query_cot": ""}, "'question' is empty"),
        ({"metadata": "x" * 100_001}, "'metadata' has 100001 characters"),
    ],
    ids=range(4),
)
def test_malformed_rows_name_the_column(cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="column ") as error:
        PAPER.record_from_row(row(**cells))
    assert message in str(error.value)


def test_hub_rows_take_the_columns_of_the_file() -> None:
    hub: dict[str, Any] = {
        "sample_index": "5",
        "problem_index": "1",
        "problem_version": "Vision Only",
        "question": "",
        "image": IMAGES,
        "answer": "B",
        "question_type": "multi-choice",
        "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": "Answer directly.",
        "query_cot": "Reason first.",
        "question_for_eval": "How?\nChoices:\nA:1\nB:2",
    }
    record = PAPER.record_from_row(PAPER.row_from_hub(hub))
    assert (record.id, record.answer, record.choices, record.images) == ("5", "B", ("1", "2"), IMAGES)
    assert record.prompt == "Reason first."
    assert record.tags["subfield"] == "Angle"
    assert PAPER.record_from_row(PAPER.row_from_hub({**hub, "query_cot": ""})).prompt == "Answer directly."
    assert PAPER.keeps_hub_row(hub)
    assert not PAPER.keeps_hub_row({**hub, "problem_version": "Text Lite"})
    assert not PAPER.keeps_hub_row({})


def test_aggregate() -> None:
    about = "{'subject': 'Functions', 'subfield': 'Property'}"
    cells = [row(index="1"), row(index="2"), row(index="3", metadata=about), row(index="4", metadata=about)]
    scores = [Score(hit, None, "judge", 2) for hit in (True, True, False, None)]
    assert PAPER.aggregate([PAPER.record_from_row(each) for each in cells], scores) == {
        "score": 50.0,
        "stderr": pytest.approx(28.86751345948129),  # variance 4 * 0.25 / 3, divided by 4: 1/12
        "undecided_rate": 25.0,
        "n": 4.0,
        "subject/Plane Geometry": 100.0,
        "subject/Functions": 0.0,
        "subfield/Angle": 100.0,
        "subfield/Property": 0.0,
        "problem_version/Vision Only": 50.0,
    }
