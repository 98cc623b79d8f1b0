"""Ctrl-C and SIGTERM while a step asks: the first waits for the replies that are paid for, the second does not."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedBuildError(Exception):
    """A step that was told to stop, and has.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """Whether a signal came, as a future of the event loop that waits for it."""

    def __init__(self) -> None:
        self.signum = 0
        self._future: asyncio.Future[None] | None = None

    def future(self) -> asyncio.Future[None]:
        """Done when a signal has come. To be called once, on the loop that waits."""
        self._future = asyncio.get_running_loop().create_future()
        if self.signum:
            self._future.set_result(None)
        return self._future

    def came(self, signum: int) -> None:
        """Tells of a signal; from any thread."""
        self.signum = signum
        future = self._future
        if future is not None:
            with suppress(RuntimeError):  # the loop has been closed, in its own thread
                future.get_loop().call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextmanager
def watching() -> Iterator[Interrupts]:
    """Takes the first signal of each kind; a second one does what it did before. Only the main thread can."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before: dict[int, Any] = {}

    def first(signum: int, _: FrameType | None) -> None:
        signal.signal(signum, before[signum])
        interrupts.came(signum)

    for taken in _SIGNALS:
        before[taken] = signal.getsignal(taken)
        signal.signal(taken, first)
    try:
        yield interrupts
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
