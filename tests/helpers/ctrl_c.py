"""Ctrl-C at every place of some code, one after the other."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from types import FrameType
from typing import Any


class Interrupt:
    """Whether a place was reached."""

    came = False


@contextmanager
def _interrupted(interrupt: Interrupt, place: int, files: tuple[str, ...]) -> Iterator[None]:
    """Raises KeyboardInterrupt in this thread ahead of the bytecode instruction with this number in the files."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if interrupt.came or not frame.f_code.co_filename.endswith(files):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen > place:
                interrupt.came = True
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def everywhere(act: Callable[[Callable[[], AbstractContextManager[Any]]], object], *files: str) -> int:
    """Interrupts a piece of code at one place after the other.

    Args:
        act: Runs the whole; is given the context to put around the piece.
        files: Ends of the paths of the sources in whose code interrupts fall.

    Returns:
        The number of places.

    Raises:
        AssertionError: If `act` hides an interrupt.
    """
    # What earlier tests left in cycles may end in the code of these files, and no finaliser lets an interrupt through.
    gc.collect()
    gc.disable()
    try:
        for place in count():
            interrupt = Interrupt()
            try:
                act(partial(_interrupted, interrupt, place, files))
            except KeyboardInterrupt:
                continue
            assert not interrupt.came, f"the interrupt at place {place} was lost"
            return place
    finally:
        gc.enable()
    raise AssertionError
