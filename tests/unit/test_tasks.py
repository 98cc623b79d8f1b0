"""Calls in other threads: results, errors, and nothing that is waited for after Ctrl-C, wherever it falls."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from helpers.ctrl_c import everywhere
from lit_vlaa import tasks
from lit_vlaa.tasks import Task, Tasks

PATIENCE = 120.0


def left(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_results_belong_to_their_calls() -> None:
    second = threading.Event()

    def first() -> int:
        assert second.wait(PATIENCE)  # ends last
        return 1

    def other() -> str:
        second.set()
        return "2"

    with Tasks(2, "two") as threads:
        begun: list[Task[Any]] = [threads.begin(first), threads.begin(other)]
        assert [task.result() for task in begun] == [1, "2"]
        assert begun[0].result() == 1


def test_what_a_call_raises_is_raised_by_its_result() -> None:
    def broken() -> None:
        raise LookupError("out of order")

    with Tasks(1, "one") as threads:
        task = threads.begin(broken)
        task.wait()
        with pytest.raises(LookupError, match="out of order"):
            task.result()
        assert threads.begin(lambda: 3).result() == 3


def test_an_exception_waits_for_nothing_and_drops_what_has_not_begun() -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[str] = []

    def stuck() -> None:
        begun.set()
        assert go.wait(PATIENCE)
        calls.append("stuck")

    def leave() -> None:
        with Tasks(1, "leaving") as threads:
            threads.begin(stuck)
            threads.begin(lambda: calls.append("dropped"))
            assert begun.wait(PATIENCE)
            raise MemoryError

    with pytest.raises(MemoryError):
        leave()
    (thread,) = left("leaving")
    assert thread.daemon  # Python does not wait for it either
    assert not calls
    go.set()
    thread.join(PATIENCE)
    assert calls == ["stuck"]


def test_a_call_under_way_may_be_given_time_to_end() -> None:
    begun = threading.Event()
    calls: list[str] = []

    def slow() -> None:
        begun.set()
        assert not threading.Event().wait(0.3)
        calls.append("over")

    def leave() -> None:
        with Tasks(1, "patient", linger_s=PATIENCE) as threads:
            threads.begin(slow)
            assert begun.wait(PATIENCE)
            raise MemoryError

    with pytest.raises(MemoryError):
        leave()
    assert calls == ["over"]


def test_ctrl_c_leaves_no_thread_behind_wherever_it_falls() -> None:
    """`ThreadPoolExecutor`, by contrast, keeps its thread when Ctrl-C falls into `Condition.__enter__`."""

    def act(interrupting: Callable[[], AbstractContextManager[Any]]) -> None:
        try:
            with Tasks(1, "interrupted") as threads, interrupting():
                assert threads.begin(lambda: 5).result() == 5
        finally:
            for thread in left("interrupted"):
                thread.join(PATIENCE)
                assert not thread.is_alive()

    assert everywhere(act, "lit_vlaa/tasks.py", "/queue.py", "/threading.py", "/contextlib.py") > 50


def test_python_ends_though_a_judge_never_answers() -> None:
    script = (
        "import threading\nfrom tasks import Tasks\nbegun = threading.Event()\n"
        "def stuck():\n    begun.set()\n    threading.Event().wait()\n"
        "with Tasks(2, 'judge') as threads:\n    threads.begin(stuck)\n    begun.wait()\n    raise KeyboardInterrupt"
    )
    alone = Path(tasks.__file__).parent  # the package would import much
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=alone, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stderr.endswith("KeyboardInterrupt\n")
