"""Time limits that tell a hang from a machine that is busy with something else."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CEILING = 4
"""How many times the seconds may be added for want of a processor."""


class Patience:
    """Seconds to wait for processes, and as many more as one of them, at most, lacked a processor.

    Processes that hang wait for each other and not for a processor. Where the kernel does not count (`schedstat` of
    Linux), all seconds are.

    Args:
        seconds: How many.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._most = _CEILING * seconds
        self._starved: dict[int, float] = {}

    def lost(self, pids: Iterable[int]) -> bool:
        """Whether the time is over.

        Args:
            pids: The processes that are waited for; others may join them.
        """
        for pid in pids:
            with suppress(OSError, IndexError):  # it has ended
                self._starved[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        # Not the sum: two that spin at half a processor each would be waited for for ever.
        return time.monotonic() > self._end + min(max(self._starved.values(), default=0.0), self._most)
