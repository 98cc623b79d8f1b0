"""Whether a server still answers, learnt from how calls to it end: a dead one must not hold up an evaluation."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from time import monotonic
from typing import Literal

FAILURES = 3
"""Calls in a row, every try of which failed, after which a server may be gone ..."""

PATIENCE_S = 30.0
"""... if that took so long: what passes sooner costs a few rows, being taken for gone costs all that wait."""

MIN_REST_S = 1.0
REST = 9.0
"""A probe in vain is followed by a rest of so many times its own length, and of `MIN_REST_S` at least."""

End = Literal["reply", "refusal", "failure", "unreachable", "abandoned"]
"""How a call ended: with a reply; with a server that is there and would not; with none, at the last try as at the
first; without a connection; or by an exception that says nothing of the server."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave to send one call."""

    probe: bool
    """Whether the server counts as gone and the call is to find out, by one try, if it is back."""
    within_s: float
    """Seconds for the call, repetitions included."""
    started: float
    """On the clock of `time.monotonic`."""


class Breaker:
    """Lets calls through while a server answers, and of a server that is gone one probe now and then.

    A server is gone when a call could not connect, when a few calls in a row failed, or when calls have been under way
    for `give_up_after_s` without a single reply; time in which nobody asks does not count. It is back with the first
    reply. Safe to use from many threads.

    Args:
        give_up_after_s: Seconds of calling without a reply.
    """

    def __init__(self, give_up_after_s: float) -> None:
        self.give_up_after_s = give_up_after_s
        self._lock = threading.Lock()
        self._gone = False
        self._failed = 0
        self._silent_s = 0.0
        self._counted = 0.0
        """Up to when `_silent_s` has been counted."""
        self._under_way = 0
        self._probing = False
        self._rests_until = 0.0

    @property
    def gone(self) -> bool:
        """Whether calls are held back."""
        return self._gone or self._silent_s >= self.give_up_after_s

    def admit(self) -> Turn | None:
        """Asks for leave to send a call, None where it must not be sent. Who got leave calls `release`."""
        with self._lock:
            now = self._count()
            probe = self.gone
            if probe:
                if self._probing or now < self._rests_until:
                    return None
                self._probing = True
            self._under_way += 1
            return Turn(probe, self.give_up_after_s - (0.0 if probe else self._silent_s), now)

    def release(self, turn: Turn, end: End) -> None:
        """Learns from a call that is over."""
        with self._lock:
            now = self._count()
            self._under_way -= 1
            if turn.probe:
                self._probing = False
                self._rests_until = now + max(MIN_REST_S, REST * (now - turn.started))
            if end == "reply":
                self._silent_s = 0.0
            if end in {"reply", "refusal"}:
                self._failed, self._gone = 0, False
            elif end in {"failure", "unreachable"}:
                self._failed += 1
                lasting = self._failed >= FAILURES and self._silent_s >= PATIENCE_S
                self._gone |= lasting or end == "unreachable"

    def reset(self) -> None:
        """Takes the server for present, as after a reply."""
        with self._lock:
            self._gone, self._failed, self._silent_s, self._rests_until = False, 0, 0.0, 0.0

    def _count(self) -> float:
        """The time now, up to which silence is counted."""
        now = monotonic()
        if self._under_way:
            self._silent_s += now - self._counted
        self._counted = now
        return now
