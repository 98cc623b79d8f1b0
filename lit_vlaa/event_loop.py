"""An event loop in a thread of its own, for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_PATIENCE_S = 5.0
"""For what was left on a loop and does not end when it is cancelled."""

T = TypeVar("T")


def run_apart(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end on an event loop in a thread of its own.

    So it works where a loop is running already (notebooks) and leaves the caller's alone. An exception in the waiting
    thread, such as KeyboardInterrupt, cancels it.
    """
    outcome: Future[T] = Future()
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            outcome.set_result(loop.run_until_complete(task))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            outcome.set_exception(error)
        finally:
            loop.run_until_complete(_close_the_rest())
            loop.close()

    task = loop.create_task(work())
    thread = threading.Thread(target=run, name="requests", daemon=True)
    try:
        thread.start()
        # A signal that another thread was handed is seen by this one only when it wakes up.
        while thread.is_alive():
            thread.join(0.5)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            loop.call_soon_threadsafe(task.cancel)
        raise
    return outcome.result()


async def _close_the_rest() -> None:
    """Ends what work left on its loop, such as a reply that was read in part: later Python would complain of it."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)  # Python closes what is dropped by tasks, which begin in the next turn
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_PATIENCE_S)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
