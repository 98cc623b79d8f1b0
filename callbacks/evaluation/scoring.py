"""Verdicts on answers; where a judge is asked, many at a time, while the model goes on writing."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from callbacks.benchmarks.interface import Benchmark, EvalRecord, Judge, Score
from callbacks.evaluation.responses import Answer
from lit_vlaa.tasks import Task, Tasks


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row of a benchmark with its answer and the verdict on it."""

    place: int
    """Of the row in the benchmark."""
    record: EvalRecord
    answer: Answer
    prediction: str
    """What `Benchmark.reduce` left of the answer."""
    score: Score

    def line(self, benchmark: str, plural_tags: Collection[str] = ()) -> dict[str, Any]:
        """What the file of verdicts says of the row; a tag that holds several values is a list there."""
        return {
            "benchmark": benchmark,
            "id": self.record.id,
            "response": self.answer.response,
            "prediction": self.prediction,
            "extracted": self.score.extracted,
            "hit": self.score.hit,
            "method": self.score.method,
            "judge_calls": self.score.judge_calls,
            "finish": self.answer.finish,
            "tokens": self.answer.tokens,
            "tags": {tag: text.split(", ") if tag in plural_tags else text for tag, text in self.record.tags.items()},
            "group": None if self.record.group is None else list(self.record.group),
        }


class Scorer:
    """Scores answers in threads where there is a judge to wait for, at once otherwise.

    A context; left by an exception, such as Ctrl-C, it waits for no judge.
    """

    def __init__(self, benchmark: Benchmark, judge: Judge | None, threads: int) -> None:
        self.benchmark = benchmark
        self.unanswered = 0
        """Calls of the judge without a reply."""
        self.calls = 0
        self.errors: list[str] = []
        """Exceptions of the benchmark's own code; their rows count as undecided."""
        self._judge = judge
        self._lock = threading.Lock()
        self._threads = None if judge is None else Tasks(max(1, threads), "judge")
        self._rows: list[ScoredRow | Task[ScoredRow]] = []

    def __enter__(self) -> Self:
        if self._threads is not None:
            self._threads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.__exit__(kind, error, trace)

    def add(self, place: int, record: EvalRecord, answer: Answer) -> None:
        """Takes an answer to score."""
        score = partial(self._score, place, record, answer)
        self._rows.append(score() if self._threads is None else self._threads.begin(score))

    def rows(self) -> list[ScoredRow]:
        """Waits for all verdicts; they come in the order of the rows' places."""
        done = [row.result() if isinstance(row, Task) else row for row in self._rows]
        return sorted(done, key=lambda row: row.place)

    def _score(self, place: int, record: EvalRecord, answer: Answer) -> ScoredRow:
        prediction = answer.response
        try:
            prediction = self.benchmark.reduce(answer.response)
            score = self.benchmark.score(record, prediction, None if self._judge is None else self._ask)
        except Exception as error:  # noqa: BLE001  # hostile text met code of the user's own, hours into a run
            with self._lock:
                self.errors.append(f"{record.origin or record.id}: {error!r}")
            score = Score(hit=None, extracted=None, method="fallback")
        return ScoredRow(place, record, answer, prediction, score)

    def _ask(self, prompt: str, temperature: float) -> str | None:
        assert self._judge is not None  # noqa: S101  # only then is this called
        reply = self._judge(prompt, temperature)
        with self._lock:
            self.calls += 1
            self.unanswered += reply is None
        return reply
