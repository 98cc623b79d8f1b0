"""Verdicts, with and without a judge to wait for."""

from __future__ import annotations

import threading

import pytest

from callbacks.benchmarks.interface import EvalRecord, Judge, Score
from callbacks.evaluation.responses import Answer
from callbacks.evaluation.scoring import ScoredRow, Scorer
from helpers.evaluated import CountingJudge, ToyBenchmark

RECORDS = ToyBenchmark(rows=12).load(None)


def scored(benchmark: ToyBenchmark, judge: Judge | None, threads: int = 3) -> tuple[Scorer, list[ScoredRow]]:
    with Scorer(benchmark, judge, threads) as scorer:
        for place in reversed(range(len(RECORDS))):
            record = RECORDS[place]
            scorer.add(place, record, Answer("", record.id, f"so <answer> {place} </answer>", "stop", 4))
        rows = scorer.rows()
    return scorer, rows


def test_verdicts_come_in_the_order_of_the_rows() -> None:
    benchmark = ToyBenchmark()
    _, rows = scored(benchmark, None)
    assert [row.place for row in rows] == list(range(12))
    assert [row.prediction for row in rows] == [str(place) for place in range(12)]
    assert [row.score for row in rows] == [benchmark.score(row.record, row.prediction, None) for row in rows]
    assert None in {row.score.hit for row in rows}


def test_a_judge_decides_the_rest() -> None:
    judge = CountingJudge()
    scorer, rows = scored(ToyBenchmark(), judge)
    _, alone = scored(ToyBenchmark(), None)
    asked = [row for row in alone if row.score.hit is None]
    assert scorer.calls == len(judge.asked) == len(asked) > 0
    for row in asked:
        assert rows[row.place].score == Score(row.place % 2 == 1, None, "judge", 1)


def test_a_dead_judge_leaves_rows_undecided() -> None:
    scorer, rows = scored(ToyBenchmark(), CountingJudge(dead=True))
    assert scorer.unanswered == scorer.calls == sum(row.score.hit is None for row in rows) > 0


@pytest.mark.parametrize("threads", [1, 4])
def test_as_many_calls_at_a_time_as_the_judge_takes(threads: int) -> None:
    together = threading.Barrier(threads)

    def judge(prompt: str, temperature: float) -> str:
        together.wait(timeout=120)  # breaks if fewer come
        return "1"

    class Asking(ToyBenchmark):
        def score(self, record: EvalRecord, prediction: str, judge: Judge | None) -> Score:
            assert judge is not None
            return Score(judge(f"{record.id}: {prediction}", 0.0) == "1", None, "judge", 1)

    _, rows = scored(Asking(), judge, threads)
    assert all(row.score.hit for row in rows)


def test_ctrl_c_waits_for_no_judge() -> None:
    begun, go = threading.Event(), threading.Event()
    asked: list[str] = []

    def stuck(prompt: str, temperature: float) -> str:
        asked.append(prompt)
        begun.set()
        go.wait(120)
        return "1"

    def interrupted() -> None:
        with Scorer(ToyBenchmark(), stuck, 1) as scorer:
            for place, record in enumerate(RECORDS):
                scorer.add(place, record, Answer("", record.id, f"so <answer> {place} </answer>", "stop", 4))
            assert begun.wait(120)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not go.is_set()
    go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("judge"):
            thread.join(120)
    assert len(asked) == 1


@pytest.mark.parametrize("judge", [None, CountingJudge()])
def test_code_that_fails_on_an_answer_leaves_it_undecided(judge: Judge | None) -> None:
    scorer, rows = scored(ToyBenchmark(raises=True), judge)
    assert {row.score for row in rows} == {Score(None, None, "fallback")}
    assert len(scorer.errors) == 12
    assert "no verdict on hostile text" in scorer.errors[0]
    assert "toy.tsv:" in scorer.errors[0]


def test_a_line_has_what_comparisons_need() -> None:
    _, rows = scored(ToyBenchmark(), CountingJudge())
    line = rows[5].line("toy")
    assert line == {
        "benchmark": "toy",
        "id": "row5",
        "response": "so <answer> 5 </answer>",
        "prediction": "5",
        "extracted": rows[5].score.extracted,
        "hit": rows[5].score.hit,
        "method": rows[5].score.method,
        "judge_calls": rows[5].score.judge_calls,
        "finish": "stop",
        "tokens": 4,
        "tags": {"shade": "dark"},
        "group": ["2", "1"],
    }
