"""A rate limit for requests of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic


class TokenBucket:
    """Lets so many through a minute, in the order in which they asked, and at most `burst` of them at once.

    Args:
        per_minute: Turns a minute in the long run.
        burst: Turns that a time without requests saves up.
        clock: Seconds on a clock that never goes back.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        per_minute: float,
        *,
        burst: float = 1.0,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_a_turn = 60.0 / per_minute
        self._saved_s = (max(burst, 1.0) - 1.0) * self._seconds_a_turn
        self._clock = clock
        self._sleep = sleep
        self._next: float | None = None
        """When the turn after those that were given falls due."""

    async def take(self) -> None:
        """Waits for a turn."""
        now = self._clock()
        due = now if self._next is None else max(self._next, now - self._saved_s)
        self._next = due + self._seconds_a_turn
        if due > now:
            await self._sleep(due - now)
