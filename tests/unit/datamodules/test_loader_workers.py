from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, _utils

from datamodules.workers import end_with_parent, worker_options
from helpers import ctrl_c

PATIENCE = 120


class Slow:
    """Rows that tell the process that loads them, each after a while."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> int:
        time.sleep(0.02)
        return os.getpid()


class KilledInTurn(Slow):
    """A process that is killed with all locks that it can take for what PyTorch's processes share."""

    def __init__(self, *, writing: bool) -> None:
        self.writing = writing

    def __getitem__(self, row: int) -> int:
        if row == 3:
            frame: Any = sys._getframe()
            while "done_event" not in frame.f_locals:
                frame = frame.f_back
            with suppress(AttributeError):
                frame.f_locals["done_event"]._cond.acquire()
            if self.writing:
                messages = frame.f_locals["data_queue"]
                messages._turn.acquire()
                os.write(messages._writer.fileno(), b"\x00\x10\x00\x00" * 9)  # the head of a long message, and no more
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


class Hung(Slow):
    def __getitem__(self, row: int) -> int:
        while row > 1:
            time.sleep(1)
        return super().__getitem__(row)


class Unfit(Slow):
    def __getitem__(self, row: int) -> Any:
        return lambda: row


class Long(Slow):
    """Rows that fill the pipe to a trainer that does not read."""

    def __getitem__(self, row: int) -> Any:
        return "x" * 2**20


def loader(data: Slow | None = None, workers: int = 1, **options: Any) -> DataLoader[int]:
    return DataLoader(data or Slow(), prefetch_factor=1, **options, **worker_options(workers))  # type: ignore[arg-type]


def test_a_schedulers_signals_pass_a_worker_by() -> None:
    rows = []
    for place, row in enumerate(loader()):
        rows.append(int(row))
        if place in (2, 5, 8):
            os.kill(int(row), signal.SIGUSR1)
            os.kill(int(row), signal.SIGTERM)
    assert len(rows) == 20
    assert len(set(rows)) == 1


def printed_by(program: str, *arguments: str) -> str:
    """What a program prints that can import this file; it is to say nothing else."""
    # PyTorch warns of more workers than processors that it sees.
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    words = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
    assert ended.stderr == ""
    return ended.stdout


AT_START = """
import os, signal, sys
from torch.utils.data import DataLoader
from datamodules.workers import worker_options

heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))

def told():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGUSR1), after_in_child=told)
rows = DataLoader([1, 2, 3, 4], **worker_options(2))
print([int(row) for row in rows], len(heard), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_signals_at_a_workers_start_pass_it_by_and_reach_the_trainer() -> None:
    assert printed_by(AT_START) == "[1, 2, 3, 4] 2 set()\n"


@pytest.fixture
def pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's thread for pinned memory, as on a GPU; it hands things on as they are."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(_utils.pin_memory, "pin_memory", lambda data, _: data)
    monkeypatch.setattr(_utils.pin_memory, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.parametrize("pin", [False, True], ids=["plain", "pinned"])
@pytest.mark.parametrize("writing", [False, True], ids=["event", "message"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_holds_nothing_up(workers: int, writing: bool, pin: bool, pinning: None) -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader(KilledInTurn(writing=writing), workers, pin_memory=pin))


def test_rows_that_cannot_be_sent_end_the_loader() -> None:
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader(Unfit(), collate_fn=list))


def test_pinned_rows_come_whole(pinning: None) -> None:
    assert [len(row[0]) for row in loader(Long(), 2, pin_memory=True, collate_fn=list)] == [2**20] * 20


def test_a_worker_that_hangs_is_killed_with_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    batches = iter(loader(Hung()))
    worker = int(next(batches))
    del batches
    end = time.monotonic() + PATIENCE
    while worker in {child.pid for child in multiprocessing.active_children()}:
        assert time.monotonic() < end
        time.sleep(0.01)


def orphans_end(parent: Callable[[Callable[[], object]], object]) -> bool:
    """Forks a process that calls `parent` with what tells that it is ready, kills it, and sees its processes end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        parent(lambda: os.write(writing, b"."))
        time.sleep(600)
        os._exit(1)
    os.close(writing)
    try:
        ready = bool(select.select([reading], [], [], PATIENCE)[0]) and os.read(reading, 1) == b"."
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # The pipe ends with the last process that was handed it.
        return ready and bool(select.select([reading], [], [], PATIENCE)[0]) and os.read(reading, 1) == b""
    finally:
        os.close(reading)


def test_workers_end_with_a_trainer_that_is_killed() -> None:
    def train(ready: Callable[[], object]) -> None:
        batches = iter(loader(Long(), 2))
        next(batches)
        time.sleep(0.5)  # the next rows are on their way, and nobody takes them
        ready()

    assert orphans_end(train)


def test_a_process_ends_whose_parent_has_died_before() -> None:
    def work(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.01)
        end_with_parent()
        time.sleep(600)

    def start(ready: Callable[[], object]) -> None:
        multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(),)).start()
        ready()

    assert orphans_end(start)


def test_ctrl_c_while_rows_are_asked_for_leaves_no_lock() -> None:
    def act(interrupted: Any) -> None:
        messages = worker_options(1)["multiprocessing_context"].Queue()
        messages.put("first")
        assert messages.get(timeout=PATIENCE) == "first"
        try:
            with interrupted():
                messages.put("second")
        finally:
            messages.put("third")
            while messages.get(timeout=PATIENCE) != "third":
                pass
            messages.close()

    assert ctrl_c.everywhere(act, "/threading.py", "/queues.py", "/workers.py") > 10


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


@pytest.mark.parametrize(
    ("method", "place"), [("fork", "here"), ("fork", "in a child"), ("spawn", "here"), ("forkserver", "here")]
)
def test_python_ends_beside_a_loader_in_use(method: str, place: str) -> None:
    first, second = map(int, printed_by(SCRIPT, method, place).split())
    assert first != second
    for worker in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_no_workers() -> None:
    assert {int(row) for row in DataLoader(Slow(), **worker_options(0))} == {os.getpid()}  # type: ignore[arg-type]
