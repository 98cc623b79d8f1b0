"""Calls in threads of their own that nobody has to wait for.

`concurrent.futures` would not do: Ctrl-C can reach the main thread while it takes a future's lock, which then stays
held; the pool's thread waits for it for ever, and Python, at its end, for the pool's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

_AT_ONE_GO_S = 0.5

T = TypeVar("T")


class Task(Generic[T]):
    """A call that is made in another thread."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: T
        self._error: BaseException | None = None
        self._ended = False
        self._end: SimpleQueue[None] = SimpleQueue()
        """Wakes who waits for `_ended`."""

    def result(self) -> T:
        """Waits for the end of the call, and gives what it returned.

        Raises:
            BaseException: Whatever it raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self) -> None:
        """Waits for the end of the call; an interrupt ends the waiting."""
        while not self._ended:
            # For ever at one go would overlook a signal that another thread was handed.
            with suppress(Empty):
                self._end.get(timeout=_AT_ONE_GO_S)

    def run(self) -> None:
        """Makes the call."""
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._error = error
        self._ended = True
        self._end.put(None)


class Tasks:
    """Threads that make calls; a context around all that waits for them.

    Left by an exception it drops what has not begun. Otherwise the caller has waited for its tasks.

    Args:
        threads: Calls at a time.
        name: Of the threads.
        linger_s: Seconds that calls under way may take to end after an exception.
    """

    def __init__(self, threads: int, name: str, *, linger_s: float = 0.0) -> None:
        self._linger_s = linger_s
        self._waiting: SimpleQueue[Task[object] | None] = SimpleQueue()
        self._left = False
        # Python waits for other threads than such at its end.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = kind is not None
        for _ in self._threads:
            self._waiting.put(None)
        end = time.monotonic() + self._linger_s
        for thread in self._threads if self._left else ():
            thread.join(max(0.0, end - time.monotonic()))

    def begin(self, call: Callable[[], T]) -> Task[T]:
        """Makes a call as soon as a thread is free."""
        task = Task(call)
        self._waiting.put(task)  # type: ignore[arg-type]
        return task

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None and not self._left:
            task.run()
