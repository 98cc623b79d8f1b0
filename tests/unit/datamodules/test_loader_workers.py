from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from datamodules.workers import worker_options


class Slow:
    """Rows that tell the process that loads them, each after a while."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> int:
        time.sleep(0.02)
        return os.getpid()


class KilledInTurn(Slow):
    """A process that is killed with all locks that it can take for what PyTorch's processes share."""

    def __getitem__(self, row: int) -> int:
        if row == 3:
            frame: Any = sys._getframe()
            while "done_event" not in frame.f_locals:
                frame = frame.f_back
            here = frame.f_locals
            here["data_queue"]._wlock.acquire()
            with suppress(AttributeError):
                here["done_event"]._cond.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def loader(data: Slow | None = None, workers: int = 1) -> DataLoader[int]:
    return DataLoader(data or Slow(), prefetch_factor=1, **worker_options(workers))  # type: ignore[arg-type]


def test_a_schedulers_signals_pass_a_worker_by() -> None:
    rows = []
    for place, row in enumerate(loader()):
        rows.append(int(row))
        if place in (2, 5, 8):
            os.kill(int(row), signal.SIGUSR1)
            os.kill(int(row), signal.SIGTERM)
    assert len(rows) == 20
    assert len(set(rows)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_holds_no_lock(workers: int) -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader(KilledInTurn(), workers))


def test_workers_end_with_a_loader_that_is_left() -> None:
    batches = iter(loader(workers=2))
    workers = {int(next(batches)), int(next(batches))}
    assert workers == {child.pid for child in multiprocessing.active_children()} & workers
    del batches
    assert not workers & {child.pid for child in multiprocessing.active_children()}


SCRIPT = """
import multiprocessing, sys
from test_loader_workers import loader

kept = []

def use():
    kept.append(iter(loader(workers=2)))
    print(int(next(kept[0])), int(next(kept[0])), flush=True)

if __name__ == "__main__":
    method, place = sys.argv[1:]
    multiprocessing.set_start_method(method)
    if place == "here":
        use()
    else:
        child = multiprocessing.Process(target=use)
        child.start()
        child.join()
"""


@pytest.mark.parametrize(("method", "place"), [("fork", "here"), ("fork", "in a child"), ("spawn", "here")])
def test_python_ends_beside_a_loader_in_use(method: str, place: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    words = [sys.executable, "-c", SCRIPT, method, place]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert ended.stderr == ""
    first, second = map(int, ended.stdout.split())
    assert first != second
    for worker in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_no_workers() -> None:
    assert {int(row) for row in DataLoader(Slow(), **worker_options(0))} == {os.getpid()}  # type: ignore[arg-type]
