"""Checkpoints by score, ahead of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from callbacks.evaluation.checkpoints import check_monitors

NAMES = {"average", "toy"}


def check(every: int | None, steps: int | None, monitor: str | None, **options: Any) -> None:
    checkpoints = [OnExceptionCheckpoint("."), ModelCheckpoint(monitor=monitor, **options)]
    module: Any = SimpleNamespace() if steps is None else SimpleNamespace(steps_per_batch=lambda: steps)
    trainer: Any = SimpleNamespace(checkpoint_callbacks=checkpoints)
    check_monitors(trainer, module, names=NAMES, every_n_steps=every)


@pytest.mark.parametrize("monitor", ["eval/average", "eval/toy", "eval/toy_stderr", "eval/toy/undecided_rate"])
@pytest.mark.parametrize(("every", "steps", "saves"), [(2, 1, 4), (2, None, 2), (6, 3, 6), (4, 4, 8)])
def test_checkpoints_that_meet_a_score(monitor: str, every: int, steps: int | None, saves: int) -> None:
    check(every, steps, monitor, every_n_train_steps=saves)


@pytest.mark.parametrize("monitor", ["loss", None, "evaluation"])
def test_other_checkpoints_are_left_alone(monitor: str | None) -> None:
    check(3, 2, monitor, every_n_train_steps=5)
    check(None, 2, monitor)


@pytest.mark.parametrize(
    ("every", "steps", "options", "message"),
    [
        (2, 1, {"every_n_train_steps": 3}, "set every_n_train_steps and every_n_steps alike"),
        (None, 1, {"every_n_train_steps": 3}, "evaluates every None"),
        (2, 1, {"every_n_epochs": 1}, "saves every 0 steps"),
        (3, 2, {"every_n_train_steps": 3}, "gives 2 steps, .* to a multiple of 2"),
        # Every third evaluation would meet it, yet the best may be another one.
        (4, 3, {"every_n_train_steps": 12}, "gives 3 steps, .* to a multiple of 3"),
    ],
    ids=["rhythm", "no rhythm", "epochs", "beside", "seldom"],
)
def test_checkpoints_that_would_meet_none(every: int | None, steps: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(every, steps, "eval/toy", **options)
