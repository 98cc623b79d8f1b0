"""Responses of an evaluation on disk: every row once, in the data's order, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from callbacks import ResponseWriter
from callbacks.ranked_lines import RankedLines
from helpers.modules import EvaluatedData, make_module, quiet_trainer, training_samples
from lit_vlaa.study.responses import ScoredResponse, read_responses


@pytest.mark.parametrize(("verb", "stage"), [("test", "test"), ("validate", "val")])
def test_each_row_with_its_verdict_and_no_padding(verb: str, stage: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    trainer = quiet_trainer(callbacks=[ResponseWriter(path=str(path))])
    (logged,) = getattr(trainer, verb)(make_module("grpo"), EvaluatedData("grpo"), verbose=False)
    rows = read_responses(path)
    records = [item.record for item in training_samples()[:5]]
    assert [row.id for row in rows] == [record.id for record in records]
    # What helpers.modules.FixedGenerator writes and FixedReward finds.
    first = rows[0]
    text = "<think> it is 0 </think><answer>0</answer>"
    failed = len(text) % 7 == 3
    assert first == ScoredResponse(
        set=stage,
        id="row0",
        response=text,
        score=None if failed else 1.0,
        kind="digit",
        source="clevr_math",
        question=records[0].question,
        truth="0",
        image="row0-0.png",
        tokens=first.tokens,
        finish="stop",
        status="timeout" if failed else "ok",
        extracted="0",
    )
    assert rows[2].image is None
    assert first.tokens is not None
    assert first.tokens > 5
    scores = [row.score for row in rows if row.score is not None]
    assert logged[f"{stage}/n"] == len(scores)
    if scores:
        assert logged[f"{stage}/reward"] == pytest.approx(sum(scores) / len(scores))
    assert [file.name for file in path.parent.iterdir()] == ["r.jsonl"]


def test_lies_in_the_log_folder(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[ResponseWriter()], default_root_dir=tmp_path)
    trainer.test(make_module("grpo"), EvaluatedData("grpo"), verbose=False)
    assert len(read_responses(tmp_path / "responses.jsonl")) == 5


def test_validation_within_training_writes_nothing(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[ResponseWriter()], default_root_dir=tmp_path, limit_train_batches=1)
    trainer.fit(make_module("grpo"), EvaluatedData("grpo"))
    assert list(tmp_path.rglob("*responses*")) == []


def test_a_module_without_responses_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[ResponseWriter()], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"SFTModule hands out no responses; use it with lit_vlaa\.grpo"):
        trainer.test(make_module("sft"), EvaluatedData("sft"), verbose=False)
    assert not (tmp_path / "responses.jsonl").exists()


class _Strategy:
    def barrier(self) -> None:
        """Nobody to wait for."""


class _Trainer:
    """One of several ranks, as far as a file needs to know."""

    strategy = _Strategy()
    log_dir = None

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self.default_root_dir = str(folder)
        self.global_rank, self.world_size, self.is_global_zero = rank, ranks, rank == 0


def test_ranks_keep_the_order_of_the_data(tmp_path: Path) -> None:
    """Three ranks share seven rows of two loaders; a row in the middle that only stands in for another is left out."""
    (tmp_path / "out.jsonl").write_text("an earlier run's\n")
    trainers: list[Any] = [_Trainer(tmp_path, rank, 3) for rank in range(3)]
    files = [RankedLines(trainer, None, "out.jsonl") for trainer in trainers]
    data: list[dict[str, int] | None] = [{"n": number} for number in range(7)]
    data[3] = None
    for rank, file in enumerate(files):
        file.add([{"n": 100 + rank}], loader=1)
        own = [*data[rank::3], *([None] if rank else [])]
        file.add(own[:1])
        file.add(own[1:])
    assert (tmp_path / "out.jsonl").read_text() == "an earlier run's\n"
    assert [file.finish(trainer) for file, trainer in zip(files[::-1], trainers[::-1], strict=True)] == [None, None, 9]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert lines == [f'{{"n": {number}}}' for number in (0, 1, 2, 4, 5, 6, 100, 101, 102)]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
