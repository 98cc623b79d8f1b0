"""Warnings and messages of a command on lines of their own, not behind a progress bar.

Rich, whose bars Lightning shows where it is installed, puts what is written to `sys.stderr` above its bar, but log
handlers that were made before know the terminal itself; tqdm's bars want to be asked.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_KEPT = ("lightning", "lightning.fabric", "lightning.pytorch", "transformers")
"""Loggers whose handlers keep the standard error that there was when they were made."""


class _Lines:
    """What log handlers write to: the standard error of the moment, beside the bars of the moment."""

    def __init__(self) -> None:
        self._owner = os.getpid()

    def write(self, text: str) -> int:
        """Writes whole lines."""
        stream = sys.stderr
        proxied = getattr(stream, "rich_proxied_file", None)
        if os.getpid() != self._owner:
            # A fork has no bars. It could wait for ever for their locks, or be killed while it holds a shared one.
            (proxied or stream).write(text)
        elif proxied is not None:
            # Rich would bring to the terminal what is to go to a file.
            (stream if proxied.isatty() else proxied).write(text)
        elif (tqdm := sys.modules.get("tqdm.std")) is not None:
            tqdm.tqdm.write(text, file=stream, end="")
        else:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Brings it out."""
        sys.stderr.flush()


@contextmanager
def beside_bars() -> Iterator[None]:
    """Has warnings, and what is logged, written beside progress bars."""
    lines: Any = _Lines()
    last_resort, show = logging.lastResort, warnings.showwarning

    def show_beside(  # noqa: PLR0917  # Python's own
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        (file or lines).write(warnings.formatwarning(message, category, filename, lineno, line))

    stderr = {sys.stderr, sys.__stderr__, getattr(sys.stderr, "rich_proxied_file", None)}
    handlers = [
        handler
        for name in _KEPT
        for handler in logging.getLogger(name).handlers
        if type(handler) is logging.StreamHandler and handler.stream in stderr
    ]
    streams = [handler.setStream(lines) for handler in handlers]
    ours: Any = logging.StreamHandler(lines)
    ours.setLevel(logging.WARNING)
    logging.lastResort = ours
    warnings.showwarning = show_beside
    try:
        yield
    finally:
        logging.lastResort, warnings.showwarning = last_resort, show
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream or sys.stderr)
