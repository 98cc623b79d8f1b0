"""Many requests at a time from a thread of their own, with the replies in the caller's as they come."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from lit_vlaa.generation.vllm.server import Server
from lit_vlaa.generation.vllm.wire import GENERATE
from lit_vlaa.rewards.scorers.wire import RequestError

T = TypeVar("T")

_LOOK_EVERY_S = 0.5
_FAREWELL_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request, for one server."""

    index: int
    """Of the prompt."""
    server: int
    """Which of the servers."""
    body: Callable[[], dict[str, Any]]
    most_bytes: int
    """Of the reply."""


Answer = tuple[Request, dict[str, Any] | RequestError]


def ask_all(servers: Sequence[Server], requests: Sequence[Request]) -> Generator[Answer]:
    """Asks everything, each server with its own bound of requests at a time; answers come in order of arrival.

    A request and its repetitions have the client's time limit together, and one that it runs out on is not for asking
    again: the server would begin it anew, and the other ranks wait no longer for this one than half an hour.

    Closing the iterator ends what is under way.

    Args:
        servers: To be asked.
        requests: With the numbers of their servers.
    """

    async def one(session: Any, slots: asyncio.Semaphore, request: Request, give: Callable[[Answer], None]) -> None:
        client = servers[request.server].client
        async with slots:
            try:
                async with asyncio.timeout(client.timeout_s):
                    give((request, await session.persist("POST", GENERATE, request.body)))
            except RequestError as error:
                give((request, error))
            except TimeoutError:
                give((request, RequestError(f"no reply within {client.prefix}.timeout_s {client.timeout_s:g}")))

    async def of_server(number: int, give: Callable[[Answer], None]) -> None:
        own = [request for request in requests if request.server == number]
        if not own:
            return
        client = servers[number].client
        slots = asyncio.Semaphore(client.concurrency)
        most = max(request.most_bytes for request in own)
        async with client.session(max_reply_bytes=most) as session, asyncio.TaskGroup() as group:
            for request in own:
                group.create_task(one(session, slots, request, give))

    async def work(give: Callable[[Answer], None]) -> None:
        await asyncio.gather(*(of_server(number, give) for number in range(len(servers))))

    return arrivals(work)


def arrivals(work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]) -> Generator[T]:
    """Runs a coroutine in a thread of its own; gives what it hands out, in the caller's thread, as it comes.

    Args:
        work: Takes what it is to call with each item.

    Raises:
        BaseException: Whatever the coroutine raised.
    """
    items: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(lambda item: items.put((item,))))

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(task)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(error)
        finally:
            items.put(None)
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=run, name="rollout-requests", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = items.get(timeout=_LOOK_EVERY_S)  # for ever at one go would overlook an interrupt
            except queue.Empty:
                continue
            if item is None:
                break
            yield item[0]
    finally:
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(task.cancel)
        thread.join(_FAREWELL_S)
    if failed:
        raise failed[0]
