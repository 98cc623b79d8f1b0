"""The folder of one run: two runs that start together never share one, and a run that goes on is known by its lock."""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = ".running"
"""A file in the run's folder, locked as long as the run's first process lives."""

_held: list[IO[str]] = []


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
        _held.append(handle)
        return number


def release() -> None:
    """Gives the folders of this process free; one that nothing was written to is removed."""
    while _held:
        handle = _held.pop()
        with suppress(OSError):  # the disk may have gone away
            Path(handle.name).unlink(missing_ok=True)
            Path(handle.name).parent.rmdir()
        handle.close()


def going_on(checkpoint: Path) -> Path | None:
    """The folder of a run that is still going on and wrote a checkpoint; None where that run has ended.

    Args:
        checkpoint: Anywhere in the run's folder.
    """
    for folder in checkpoint.absolute().parents[:2]:
        try:
            with (folder / LOCK).open(encoding="utf-8") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return folder
        except OSError:
            continue  # no lock, or no locks
    return None
