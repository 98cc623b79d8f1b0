"""Lets training loops of different frameworks take turns, one step each, so that a busy moment hits all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

Values = dict[str, Any]
Pause = Callable[[Values], None]
Run = Callable[[Pause], None]
"""A whole training; calls what it is given after every step."""


class Stepper:
    """A training that stands still between its steps. Only one thread of all works at any time."""

    def __init__(self, run: Run, threads: int) -> None:
        """Prepares a thread for `run`, with `threads` of PyTorch's; nothing runs yet."""
        self._run = run
        self._threads = threads
        self._go = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._values: Values | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def step(self) -> Values | None:
        """Runs to the end of the next step.

        Returns:
            What the training said of the step; None when it is over.
        """
        if not self._thread.is_alive():
            self._thread.start()
        self._values = None
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._values

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        self._go.acquire()
        try:
            self._run(self._pause)
        except BaseException as error:  # noqa: BLE001  # it is raised again where the step was asked for
            self._error = error
        self._values = None
        self._done.release()

    def _pause(self, values: Values) -> None:
        self._values = values
        self._done.release()
        self._go.acquire()


def take_turns(runs: Mapping[str, Run], *, warm_up: int, repeats: int, threads: int) -> dict[str, list[Values]]:
    """Runs the trainings in lockstep, in alternating order.

    Args:
        runs: By name, trainings of exactly `warm_up + repeats` steps.
        warm_up: First steps whose values are dropped.
        repeats: Steps that count.
        threads: PyTorch's threads for each; no two work at one time.
    """
    steppers = {name: Stepper(run, threads) for name, run in runs.items()}
    seen: dict[str, list[Values]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        names = list(steppers)
        for name in names if turn % 2 == 0 else reversed(names):
            values = steppers[name].step()
            if values is None:
                raise RuntimeError(f"{name} ended after {turn} steps, {warm_up + repeats} were wanted")
            if turn >= warm_up:
                seen[name].append(values)
    for name, stepper in steppers.items():
        if stepper.step() is not None:
            raise RuntimeError(f"{name} went on after {warm_up + repeats} steps")
    return seen
