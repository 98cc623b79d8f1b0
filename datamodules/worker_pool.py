"""Processes that work on jobs, and a Ctrl-C that cannot leave them waiting for each other.

Python raises KeyboardInterrupt between any two instructions of the main thread: also after it has taken a lock of
`concurrent.futures` and before it stands in the block that gives it back. The thread that manages the processes then
waits for that lock, and the main one for the thread, for ever. Here it is raised before or after such a step.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec, TypeVar

from datamodules.workers import end_with_parent

_T = TypeVar("_T")
_P = ParamSpec("_P")
_LOOK_SECONDS = 0.2
"""How long a Ctrl-C can wait for the next look."""


@contextmanager
def worker_pool(workers: int, start: Callable[[], object] | None = None) -> Iterator[WorkerPool]:
    """Opens processes, forked from this one at the first job, and waits for their jobs in progress at the end.

    Ctrl-C is the main process's affair: the first ends the body with KeyboardInterrupt, a second one the jobs in
    progress too. The processes end with the main one, however it ends.

    Args:
        workers: Number of processes.
        start: Prepares a process.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),  # what was imported and loaded is shared
        initializer=_start,
        initargs=(start,),
    )
    here = WorkerPool(pool)
    with here.taking_ctrl_c():
        try:
            yield here
        finally:
            with here.undisturbed():
                pool.shutdown(cancel_futures=True)


class WorkerPool:
    """What the body of `worker_pool` works with; for the thread that opened it.

    Args:
        pool: The processes.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._pressed = 0
        self._undisturbed = False

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Hands a job to whichever process is free.

        Args:
            work: A function of a module.
            *args: Its arguments.
            **kwargs: More of them.

        Raises:
            BrokenProcessPool: If a process was killed.
            KeyboardInterrupt: After Ctrl-C.
        """
        with self.undisturbed():
            return self._pool.submit(work, *args, **kwargs)

    def finished(self, jobs: set[Future[_T]], *, block: bool) -> list[_T]:
        """Takes the finished ones out of `jobs`, and gives what they returned.

        Args:
            jobs: Jobs that are waited for.
            block: Wait for one of them.

        Raises:
            BrokenProcessPool: If a process was killed.
            KeyboardInterrupt: After Ctrl-C.
        """
        done: set[Future[_T]] = set()
        while jobs and not done:
            with self.undisturbed():
                done, _ = wait(jobs, _LOOK_SECONDS if block else 0, FIRST_COMPLETED)
            if not block:
                break
        jobs -= done
        with self.undisturbed():
            return [job.result() for job in done]

    def result(self, job: Future[_T]) -> _T:
        """Waits for a job.

        Raises:
            BrokenProcessPool: If a process was killed.
            KeyboardInterrupt: After Ctrl-C.
        """
        return self.finished({job}, block=True)[0]

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Puts a Ctrl-C off until the block has ended."""
        self._undisturbed = True
        try:
            yield
        except BrokenProcessPool:
            if not self._pressed:  # else it is the second Ctrl-C that ended them
                raise
        finally:
            self._undisturbed = False
        if self._pressed:
            raise KeyboardInterrupt

    @contextmanager
    def taking_ctrl_c(self) -> Iterator[None]:
        """Decides when Ctrl-C is raised. Signals reach the main thread alone, and a job in the background none."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return
        raising = before

        def press(signum: int, frame: FrameType | None) -> None:
            self._pressed += 1
            if self._pressed > 1:
                for process in multiprocessing.active_children():
                    process.terminate()
            if not self._undisturbed:
                raising(signum, frame)

        signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _start(start: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if start is not None:
        start()
