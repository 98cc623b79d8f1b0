"""Keeps two processes from running one job, or one study, at the same time.

The locks are the operating system's: it takes them from a process that dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_vlaa.checks import UsageError


@contextmanager
def locked(path: Path, what: str, *, shared: bool = False) -> Iterator[int]:
    """Holds a lock.

    Args:
        path: The lock's file; it stays, and names who held it last.
        what: What is locked, for the message.
        shared: Allow others that share it.

    Yields:
        The lock's file descriptor; a process that inherits it holds the lock as well.

    Raises:
        UsageError: If another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(handle, path, what, shared=shared)
        yield handle
    finally:
        os.close(handle)


def share(handle: int, path: Path, what: str) -> None:
    """Turns a lock into one that others may share, for a process that shall hold it too."""
    _take(handle, path, what, shared=True)


def join(path: Path) -> int:
    """Shares a lock in a process that was started under it, for as long as the process lives."""
    handle = os.open(path, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle


def _take(handle: int, path: Path, what: str, *, shared: bool) -> None:
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise UsageError([f"{what} is being run by {holder} (lock {path}); wait for it, or stop it first"]) from error
    if not shared:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
