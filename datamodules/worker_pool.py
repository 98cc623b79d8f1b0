"""Processes that work on jobs, and neither a Ctrl-C nor one that is killed can leave the others waiting.

Python raises KeyboardInterrupt between any two instructions of the main thread: also after it has taken a lock of
`concurrent.futures` and before it stands in the block that gives it back. Another thread then waits for that lock, and
the main one for the thread, for ever. Here it is raised before or after such a step.

A process that `ProcessPoolExecutor` loses amid a message leaves the reader waiting for the rest, as the others hold
that pipe too. Here each has a pipe of its own, and a thread that waits for it.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # typeshed leaves it out
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from datamodules.workers import end_with_parent

_T = TypeVar("_T")
_P = ParamSpec("_P")
_LOOK_SECONDS = 0.2
"""How long a Ctrl-C can wait for the next look."""


@contextmanager
def worker_pool(workers: int, start: Callable[[], object] | None = None) -> Iterator[WorkerPool]:
    """Forks processes from this one, and waits for their jobs in progress at the end.

    Ctrl-C is the main process's affair: the first ends the body with KeyboardInterrupt, a second one the jobs in
    progress too. The processes end with the main one, however it ends.

    Args:
        workers: Number of processes.
        start: Prepares a process.
    """
    pool = WorkerPool()
    with pool.taking_ctrl_c():
        try:
            with pool.undisturbed():
                pool.begin(workers, start)
            yield pool
        finally:
            with pool.undisturbed():
                pool.end()


class WorkerPool:
    """What the body of `worker_pool` works with; for the thread that opened it."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._ends: list[Connection] = []
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._pressed = 0
        self._undisturbed = False

    def begin(self, workers: int, start: Callable[[], object] | None) -> None:
        """Starts the processes, and then a thread for each."""
        context = multiprocessing.get_context("fork")  # what was imported and loaded is shared
        for _ in range(workers):
            here, there = context.Pipe()
            self._ends.append(here)
            process = context.Process(target=_serve, args=(there, list(self._ends), start))
            process.start()
            self._processes.append(process)
            there.close()  # so that the end of its process is the end of the pipe
            self._free.put(here)
        self._threads = ThreadPoolExecutor(workers)

    def end(self) -> None:
        """Waits for jobs in progress, and for the processes' end."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for connection in self._ends:
            connection.close()
        for process in self._processes:
            process.join()

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Hands a job to whichever process is free.

        Args:
            work: A function of a module.
            *args: Its arguments.
            **kwargs: More of them.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
        """
        assert self._threads is not None  # noqa: S101 - for the type checker
        with self.undisturbed():
            return self._threads.submit(self._ask, work, args, kwargs)

    def _ask(self, *job: Any) -> Any:
        """Has a process do a job; in one of the threads, of which there are as many."""
        connection = self._free.get()
        try:
            connection.send(job)
            done, value = connection.recv()
        except (EOFError, OSError) as error:
            raise BrokenProcessPool("a process was killed") from error
        finally:
            self._free.put(connection)  # of a killed one too: whoever takes it learns of that at once
        if done:
            return value
        raise value

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
                for process in self._processes:
                    process.terminate()
            if not self._undisturbed:
                raising(signum, frame)

        signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _serve(mine: Connection, others: Sequence[Connection], start: Callable[[], object] | None) -> None:
    """Does one job after the other, in a process of the pool, until nobody holds the other end of its pipe."""
    for other in others:  # which a fork holds too
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if start is not None:
        start()
    while True:
        try:
            work, args, kwargs = mine.recv()
        except (EOFError, OSError):  # also with an answer that nobody has read
            return
        try:
            answer = True, work(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # raised again where the job came from
            answer = False, ExceptionWithTraceback(error, error.__traceback__)
        try:
            mine.send(answer)
        except OSError:  # nobody waits for it any more
            return
        except Exception as error:  # noqa: BLE001  # it cannot be pickled
            mine.send((False, ExceptionWithTraceback(error, error.__traceback__)))
