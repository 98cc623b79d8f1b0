"""Evaluations that an interruption cut short are made up for, whatever the run still has to train."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure

from callbacks import BenchmarkEvaluation, Preemption
from callbacks.benchmarks.interface import EvalRecord, Score
from callbacks.evaluation import publish
from helpers.evaluated import OtherBenchmark, ToyBenchmark, answered, verdicts
from helpers.modules import make_module, quiet_trainer
from helpers.resumable import PlacedData
from lit_vlaa.checks import PreemptedExit
from lit_vlaa.policy import PolicyModule

EVERY = {"sft": 1, "grpo": 2}
"""Optimiser steps of a batch; a run has three."""


@pytest.fixture(autouse=True)
def _blank_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar chart takes longer than a tiny evaluation, and none is looked at here."""
    monkeypatch.setattr(publish, "chart", lambda *_: Figure())


class Levels(OtherBenchmark):
    """Gives scores that were laid down in advance, and sends SIGTERM or breaks off at one of them.

    Args:
        levels: One for each evaluation.
        told_at: The score at which SIGTERM is sent.
        breaks_at: The score at which scoring breaks off.
    """

    def __init__(self, levels: Sequence[float], *, told_at: float = -1, breaks_at: float = -1) -> None:
        super().__init__()
        self.levels, self.told_at, self.breaks_at = list(levels), told_at, breaks_at

    def aggregate(self, records: Sequence[EvalRecord], scores: Sequence[Score]) -> dict[str, float]:
        level = self.levels.pop(0)
        if level == self.breaks_at:
            raise RuntimeError("broken off")
        if level == self.told_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {**super().aggregate(records, scores), "score": level}


def run(
    folder: Path,
    levels: Levels,
    kind: str = "sft",
    *,
    ckpt_path: Path | None = None,
    every: int | None = None,
    at_end: bool = False,
    **trainer_options: Any,
) -> tuple[PolicyModule, ModelCheckpoint, BenchmarkEvaluation]:
    seed_everything(1, verbose=False)
    module = make_module(kind, seed=3) if kind == "grpo" else make_module(kind)
    best = ModelCheckpoint(
        dirpath=folder / "best",
        filename="{step}",
        monitor="eval/other",
        mode="max",
        every_n_train_steps=every or EVERY[kind],
    )
    evaluation = BenchmarkEvaluation(
        custom=[levels, ToyBenchmark()],
        max_new_tokens=6,
        batch_size=4,
        every_n_steps=every or EVERY[kind],
        at_end=at_end,
        dirpath=str(folder / "out"),
    )
    callbacks = [Preemption(), evaluation, best]
    trainer = quiet_trainer(callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True, **trainer_options)
    trainer.fit(module, PlacedData(kind), ckpt_path=ckpt_path)
    return module, best, evaluation


def files(folder: Path, benchmark: str) -> list[str]:
    return sorted(path.stem for path in (folder / "out" / benchmark).glob("*.jsonl"))


def assert_same_weights(one: PolicyModule, other: PolicyModule) -> None:
    for name, value in one.backbone.state_dict().items():
        assert torch.equal(value, other.backbone.state_dict()[name]), name


@pytest.mark.parametrize("bound", [{}, {"max_steps": 3}], ids=["epochs", "steps"])
def test_a_full_evaluation_that_broke_off_is_made_up_for(bound: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken off"):
        run(tmp_path, Levels([1.0, 2.0, 3.0, 9.0], breaks_at=9.0), at_end=True, **bound)
    assert "final" not in files(tmp_path, "toy")
    checkpoint = tmp_path / "best" / "step=3.ckpt"
    run(tmp_path, Levels([9.0]), ckpt_path=checkpoint, at_end=True, **bound)
    assert files(tmp_path, "toy") == files(tmp_path, "other") == ["final", "step_1", "step_2", "step_3"]
    # Ten rows of the subset at each of three steps; the last weights' answers serve the whole, too.
    assert sum(map(len, answered(tmp_path / "out", "other").values())) == 30


@pytest.mark.parametrize(
    ("kind", "bound"), [("sft", {}), ("sft", {"max_steps": 3}), ("grpo", {})], ids=["sft", "sft-steps", "grpo"]
)
def test_an_evaluation_at_the_last_step_is_made_up_for(kind: str, bound: dict[str, Any], tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    expected, best, _ = run(straight, Levels([1.0, 2.0, 3.0, 9.0]), kind, at_end=True, **bound)
    with pytest.raises(PreemptedExit):
        run(stopped, Levels([1.0, 2.0, 3.0], told_at=3.0), kind, at_end=True, **bound)
    last = f"step_{3 * EVERY[kind]}"
    assert last in files(stopped, "other")
    assert last not in files(stopped, "toy"), "it stopped between two benchmarks"
    preempted = stopped / "checkpoints" / "preempted.ckpt"
    module, late, evaluation = run(stopped, Levels([3.0, 9.0]), kind, ckpt_path=preempted, at_end=True, **bound)
    for benchmark in ("other", "toy"):
        assert files(stopped, benchmark) == files(straight, benchmark)
        for label in (last, "final"):
            theirs = verdicts(straight / "out", label, benchmark)
            assert verdicts(stopped / "out", label, benchmark) == theirs
    # The score came after Lightning had done with training, and the checkpoint was kept all the same.
    assert Path(late.best_model_path).name == Path(best.best_model_path).name == f"step={3 * EVERY[kind]}.ckpt"
    assert late.best_model_score == 3.0
    assert_same_weights(expected, module)
    assert evaluation.state_dict() == {"last": 3 * EVERY[kind], "pending": False, "full": 3 * EVERY[kind]}


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_score_that_comes_late_reaches_the_checkpoint(kind: str, tmp_path: Path) -> None:
    expected, best, _ = run(tmp_path / "straight", Levels([1.0, 9.0, 2.0]), kind)
    assert best.best_model_score == 9.0
    stopped = tmp_path / "stopped"
    with pytest.raises(PreemptedExit):
        run(stopped, Levels([1.0, 9.0], told_at=9.0), kind)
    preempted = stopped / "checkpoints" / "preempted.ckpt"
    module, late, _ = run(stopped, Levels([9.0, 2.0]), kind, ckpt_path=preempted)
    assert Path(late.best_model_path).name == Path(best.best_model_path).name == f"step={2 * EVERY[kind]}.ckpt"
    assert late.best_model_score == 9.0
    assert_same_weights(expected, module)
    # A run can go on from what was saved then, without evaluating once more at that step.
    again, _, _ = run(tmp_path / "again", Levels([2.0]), kind, ckpt_path=Path(late.best_model_path))
    assert_same_weights(expected, again)
    assert files(tmp_path / "again", "toy") == [f"step_{3 * EVERY[kind]}"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Two evaluations every step are no two multiples of 3.
        (1, 3, ["step_1", "step_2", "step_3"]),
        (2, 1, ["step_2", "step_3"]),
    ],
)
def test_another_rhythm_on_resuming(before: int, after: int, expected: list[str], tmp_path: Path) -> None:
    run(tmp_path, Levels([1.0, 2.0]), every=before, max_steps=2)
    run(tmp_path, Levels([3.0]), every=after, ckpt_path=tmp_path / "best" / "step=2.ckpt")
    assert files(tmp_path, "other") == expected


def test_a_run_that_is_made_longer_is_evaluated_at_its_new_end(tmp_path: Path) -> None:
    module, _, _ = run(tmp_path, Levels([1.0, 9.0]), every=2, max_steps=2, at_end=True)
    checkpoint = tmp_path / "end.ckpt"
    module.trainer.save_checkpoint(checkpoint)
    run(tmp_path, Levels([8.0]), every=2, max_steps=3, at_end=True, ckpt_path=checkpoint)
    summary = (tmp_path / "out" / "summary.json").read_text()
    assert '"headline": 8.0' in summary
    assert '"headline": 9.0' not in summary


def test_a_callback_serves_a_second_run(tmp_path: Path) -> None:
    evaluation = BenchmarkEvaluation(
        custom=[OtherBenchmark()], max_new_tokens=3, every_n_steps=2, at_end=True, dirpath=str(tmp_path)
    )
    for _ in range(2):
        trainer = quiet_trainer(callbacks=[evaluation], default_root_dir=tmp_path)
        trainer.fit(make_module("sft"), PlacedData("sft"))
        for label in ("step_2", "final"):
            (tmp_path / "other" / f"{label}.jsonl").unlink()


def test_a_run_of_no_batches_is_not_evaluated_at_its_end(tmp_path: Path) -> None:
    evaluation = BenchmarkEvaluation(custom=[OtherBenchmark()], at_end=True, dirpath=str(tmp_path))
    quiet_trainer(callbacks=[evaluation], limit_train_batches=0, max_steps=1).fit(make_module("sft"), PlacedData("sft"))
    assert not list(tmp_path.iterdir())
