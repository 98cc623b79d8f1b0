"""The folder of one run: two runs that start together never share one, and a run that goes on is known by its lock."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from lightning_utilities.core.rank_zero import rank_zero_info

LOCK = ".running"
"""A file in the run's folder, locked as long as the run's first process lives; it holds the name of its host."""

_SETTINGS = ("config.yaml", "hparams.yaml")
"""What is written of a run's settings while it is set up."""

_LEASE = 120.0
"""Seconds within which a file server gives free what a dead host had locked; NFS 4 takes 90."""

_held: list[IO[str]] = []


def _let_go() -> None:
    """Closes what a forked process was handed: a data loader's worker that outlives the run would keep its lock."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)


def claim(root: Path, number: int) -> int:
    """Makes the first free folder `version_<n>` and locks it for the life of this process.

    Args:
        root: The folder of all runs.
        number: The n to begin with.

    Returns:
        The n of the folder.

    Raises:
        OSError: If folders cannot be made there.
    """
    root.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (root / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
            continue
        handle = (root / f"version_{number}" / LOCK).open("w", encoding="utf-8")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        handle.write(socket.gethostname())
        handle.flush()
        _held.append(handle)
        return number


def release(*, begun: bool = True) -> None:
    """Gives the folders of this process free; one that nothing was written to is removed.

    Args:
        begun: Whether the run can have come to anything; else its settings alone are nothing either.
    """
    while _held:
        handle = _held.pop()
        folder = Path(handle.name).parent
        with suppress(OSError):  # the disk may have gone away
            settings = set() if begun else {folder / name for name in _SETTINGS}
            if {*folder.iterdir()} <= {folder / LOCK, *settings}:
                for path in settings:
                    path.unlink(missing_ok=True)
            Path(handle.name).unlink(missing_ok=True)
            folder.rmdir()
        handle.close()


def going_on(checkpoint: Path, lease: float = _LEASE) -> Path | None:
    """The folder of a run that is still going on and wrote a checkpoint; None where that run has ended.

    Args:
        checkpoint: Anywhere in the run's folder.
        lease: Seconds to wait for the lock of another host, which may have died.
    """
    for folder in checkpoint.absolute().parents[:2]:
        end, told = time.monotonic() + lease, False
        while (host := _holder(folder / LOCK)) is not None:
            if host in {"", socket.gethostname()} or time.monotonic() > end:
                return folder
            if not told:
                rank_zero_info(f"{folder} is in use by {host}; waiting for {lease:.0f} s, as that may have died")
            told = True
            time.sleep(1.0)
    return None


def _holder(lock: Path) -> str | None:
    """The host whose process holds a lock, empty where it is not told; None where nobody does."""
    try:
        with lock.open(encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read()
    except OSError:
        pass  # no lock, or no locks
    return None
