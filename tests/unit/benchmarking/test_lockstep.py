"""Trainings take turns: one works at a time, in alternating order."""

from __future__ import annotations

import pytest

from benchmarks.lockstep import Pause, Run, take_turns


def counting(name: str, steps: int, log: list[str]) -> Run:
    def run(pause: Pause) -> None:
        for step in range(steps):
            log.append(f"{name}{step}")
            pause({"step": float(step)})
        log.append(f"{name} over")

    return run


def test_order_alternates_and_warm_up_is_dropped() -> None:
    log: list[str] = []
    runs = {name: counting(name, 3, log) for name in "ab"}
    seen = take_turns(runs, warm_up=1, repeats=2, threads=1)

    assert log == ["a0", "b0", "b1", "a1", "a2", "b2", "a over", "b over"]
    assert seen == {"a": [{"step": 1.0}, {"step": 2.0}], "b": [{"step": 1.0}, {"step": 2.0}]}


def test_failure_of_a_training_is_raised() -> None:
    def fail(_: Pause) -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        take_turns({"a": fail}, warm_up=0, repeats=1, threads=1)


@pytest.mark.parametrize(("steps", "message"), [(1, "ended after 1 steps"), (3, "went on after 2 steps")])
def test_number_of_steps_is_checked(steps: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        take_turns({"a": counting("a", steps, [])}, warm_up=0, repeats=2, threads=1)
