"""Counters by row: whoever scores a row, and how often, it counts once."""

from __future__ import annotations

from typing import Any

import torch

from callbacks.evaluation.metric import COUNTERS, RowVerdicts, Verdicts, read_counters

KNOWN = {
    "hit": [1, 0, 0],
    "undecided": [0, 0, 1],
    "truncated": [0, 1, 0],
    "tokens": [5, 8, 3],
    "judge_calls": [0, 2, 5],
}


def collected(*updates: tuple[list[int], dict[str, list[int]]], rows: int = 4) -> Verdicts:
    """What several ranks know together; their states are added up, as torch.distributed would."""
    metrics = []
    for places, counters in updates:
        metric = RowVerdicts(rows)
        metric.update(places, counters)
        metrics.append(metric.compute())
    return read_counters({name: torch.stack([m[name].reshape(-1) for m in metrics]).sum(0) for name in COUNTERS})


def test_rows_of_one_rank() -> None:
    known = collected(([0, 1, 3], {"seen": [1, 1, 1], **KNOWN}))
    assert known == Verdicts(
        seen=(True, True, False, True),
        hit=(True, False, None, None),
        failed=(False,) * 4,
        truncated=(False, True, False, False),
        tokens=(5, 8, 0, 3),
        judge_calls=(0, 2, 0, 5),
    )


def test_rows_that_two_ranks_scored_count_once() -> None:
    once: Any = ([0, 1, 3], {"seen": [1, 1, 1], **KNOWN})
    assert collected(once, once) == collected(once)


def test_a_verdict_beats_none_and_an_answer_beats_a_failure() -> None:
    seen = {"seen": [1], "hit": [1], "undecided": [0]}
    assert collected(([0], seen), ([0], {"seen": [1], "undecided": [1]}), rows=1).hit == (True,)
    assert collected(([0], seen), ([0], {"failed": [1]}), rows=1).failed == (False,)
    assert collected(([0], {"failed": [1]}), ([], {"failed": []}), rows=1).failed == (True,)


def test_ranks_without_rows() -> None:
    known = collected(([], {name: [] for name in COUNTERS}), rows=2)
    assert known.seen == (False, False)
    assert known.hit == (None, None)


def test_a_single_row_is_still_a_row() -> None:
    assert collected(([0], {"seen": [1], "hit": [1]}), rows=1).hit == (True,)
