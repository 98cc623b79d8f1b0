"""When an evaluation is due."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.evaluation.progress import Progress, after_training


@pytest.mark.parametrize(
    ("last", "every", "due"),
    [
        (0, None, []),
        (0, 4, [4, 5, 6, 7, 8, 9]),
        (3, 4, [4, 5, 6, 7, 8, 9]),
        (4, 4, [8, 9]),
        # Two steps a batch: the evaluation at 6 was the one of 5.
        (6, 5, []),
        # Evaluated at 4 with every step before; the rhythm of 3 goes on at 6.
        (4, 3, [6, 7, 8, 9]),
    ],
)
def test_due_at_and_past_the_next_multiple(last: int, every: int | None, due: list[int]) -> None:
    progress = Progress(last=last)
    assert [step for step in range(last, 10) if progress.due(step, every)] == due


def test_what_is_to_be_done_after_training_is_done_once_and_not_after_an_error() -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("fail")
        raise RuntimeError

    for run, expected in ((lambda: done.append("run"), ["run", "one", "two"]), (fail, ["fail"])):
        trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(run=run))
        after_training(trainer, lambda: done.append("one"))
        after_training(trainer, lambda: done.append("two"))
        done.clear()
        try:
            trainer.fit_loop.run()
        except RuntimeError:
            assert run is fail
        assert done == expected
        assert trainer.fit_loop.run is run
