"""Reading saved responses in all their forms, and refusing what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.benchmarks.interface import EvalRecord, Score
from callbacks.evaluation.responses import Answer
from callbacks.evaluation.scoring import ScoredRow
from lit_vlaa.study.responses import MAX_LINE_BYTES, ScoredResponse, read_responses

FULL: dict[str, Any] = {
    "set": "test",
    "id": "row1",
    "response": "<think>a</think><answer>4</answer>",
    "score": 0.5,
    "kind": "iou",
    "source": "coco",
    "question": "Where?",
    "truth": "[0, 0, 1, 1]",
    "image": "coco/1.png",
    "tokens": 12,
    "finish": "stop",
    "status": "ok",
    "extracted": "4",
}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def verdict(name: str, hit: bool | None, tags: dict[str, str]) -> ScoredRow:
    """As an evaluation makes it."""
    record = EvalRecord(
        id=name, images=(), prompt="p", question="q", kind="int", choices=(), answer="1", tags=tags, origin="f:1"
    )
    return ScoredRow(0, record, Answer("digest", name, "it is 1", "length", 7), "1", Score(hit, "1", "rule"))


def test_a_row_with_everything_and_one_with_a_response_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "any.jsonl", FULL, "", {"response": "x", "score": None, "later": [1]})
    assert read_responses(path) == [ScoredResponse(**FULL), ScoredResponse("test", "3", "x")]


def test_verdicts_of_a_benchmark(tmp_path: Path) -> None:
    rows = [
        verdict("a", True, {"kind": "algebra", "source": "s1, s2"}).line("mathvista", ("source",)),
        verdict("b", None, {}).line("mathvista"),
        verdict("c", False, {}).line("mathvista"),
    ]
    first, second, third = read_responses(write(tmp_path / "test.jsonl", *rows))
    assert first == ScoredResponse(
        "mathvista", "a", "it is 1", 1.0, "algebra", "s1, s2", tokens=7, finish="length", status="ok", extracted="1"
    )
    assert (second.score, second.status, second.kind) == (None, "undecided", "")
    assert (third.score, third.status) == (0.0, "ok")


def test_a_folder_gives_own_responses_and_verdicts_alone(tmp_path: Path) -> None:
    line = verdict("a", True, {}).line("mathvista")
    write(tmp_path / "responses.jsonl", FULL)
    write(tmp_path / "perplexity.jsonl", {"set": "test", "id": "row1", "nll": 1.0, "tokens": 3})
    write(tmp_path / "predictions.jsonl", {"id": "row1", "response": "x"})
    write(tmp_path / "rollouts.jsonl", "not JSON")
    write(tmp_path / "benchmarks" / "mathvista" / "test.jsonl", line)
    write(tmp_path / "benchmarks" / "mathvista" / "0123" / "rank0.jsonl", {"row": "d", "id": "a", "response": "x"})
    write(tmp_path / ".hidden.jsonl", line)
    assert [(row.set, row.id) for row in read_responses(tmp_path)] == [("test", "row1"), ("mathvista", "a")]
    assert [row.set for row in read_responses(str(tmp_path / "benchmarks"))] == ["mathvista"]


def test_a_folder_of_several_evaluations_is_refused(tmp_path: Path) -> None:
    for name in ("test", "step_100"):
        write(tmp_path / f"{name}.jsonl", verdict("a", True, {}).line("toy"))
    with pytest.raises(
        ValueError, match=r"step_100.jsonl and .*test.jsonl both hold row a of toy; give one of the fil"
    ):
        read_responses(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is neither responses.jsonl nor a benchmark's verdicts"):
        read_responses(tmp_path)
    with pytest.raises(ValueError, match=r"empty.jsonl: there is no row"):
        read_responses(write(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"none.jsonl does not exist; seen from"):
        read_responses(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "not a JSON object"),
        ("{" * 5000, "not a JSON object"),
        ("\x1b[31m", r"not a JSON object:  \[31m"),
        ({"id": "1"}, "'response' is missing"),
        ({"response": 4}, "'response' must be a text, got 4"),
        ({"response": "x", "score": "1"}, "'score' must be a finite number"),
        ('{"response": "x", "score": NaN}', "'score' must be a finite number"),
        ('{"response": "x", "score": 1%s}' % ("0" * 400), "'score' must be a finite number"),
        ({"response": "x", "tokens": -1}, "'tokens' must be a number of tokens or null, got -1"),
        ({"response": "x", "tokens": True}, "'tokens' must be a number of tokens or null, got True"),
        ({"response": "x", "finish": ["stop"]}, "'finish' must be 'stop', 'length' or null"),
        ({"response": "x", "kind": {}}, "'kind' must be a text"),
        ({"response": "x", "tags": [1]}, "'tags' must be an object"),
        ({"response": "x", "benchmark": "b", "hit": "yes"}, "'hit' must be a finite number"),
    ],
    ids=range(14),
)
def test_rows_that_cannot_be_read(row: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", FULL, row)
    with pytest.raises(ValueError, match=rf"^{path}:2: {message}"):
        read_responses(path)


def test_other_types_that_are_texts_too(tmp_path: Path) -> None:
    (row,) = read_responses(write(tmp_path / "r.jsonl", {"response": "x", "id": 7, "truth": [0.5, 1], "score": True}))
    assert (row.id, row.truth, row.score) == ("7", "[0.5, 1]", 1.0)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 2))
    with pytest.raises(ValueError, match=r"r.jsonl:1: the line is longer"):
        read_responses(path)
