"""Files and folders that are whole or not there.

Either is written beside its place under a hidden name (`.NAME.part`), brought to the disk and renamed. A folder cannot
take another's place in one step: for an instant the old one is called `NAME.replaced` with the same ending.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LEFTOVERS = ".*.ckpt.part"

_ABANDONED = 3600.0
"""Seconds without a byte written after which a part belongs to a run that was killed, not to one that is writing it."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a hidden path beside `path` to write to, and puts what is there at the end in the place of `path`.

    After an error `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = hidden(path)
    remove(part)
    try:
        yield part
    except BaseException:
        remove(part)
        raise
    put_in_place(part, path)


def hidden(path: Path) -> Path:
    """Where to write what is to be called `path`; on the same file system."""
    return path.with_name(f".{path.name}.part")


def put_in_place(part: Path, path: Path) -> None:
    """Renames what `hidden` named, in place of what may be there."""
    aside = path.with_name(f"{path.stem}.replaced{path.suffix}")
    if path.exists() and (path.is_dir() or part.is_dir()):
        remove(aside)
        path.rename(aside)
    part.replace(path)
    sync_folder(path.parent)
    remove(aside)


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, below: bool = False) -> None:
    """Removes parts of checkpoints that killed runs left.

    Another process may be writing in the same folder: only a part that has not changed for an hour is taken for left.

    Args:
        folder: Where to look.
        below: Look at any depth.
    """
    parts: list[Path] = []
    with suppress(OSError):  # a folder that another process removes meanwhile
        parts += folder.rglob(_LEFTOVERS) if below else folder.glob(_LEFTOVERS)
    for part in parts:
        with suppress(OSError):  # gone already, or not ours to remove
            changed = [entry.stat().st_mtime for entry in (part, *(part.iterdir() if part.is_dir() else ()))]
            if max(changed) < time.time() - _ABANDONED:
                remove(part)


def sync_folder(path: Path) -> None:
    """Brings a folder's entries to the disk, where its file system can be asked to."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
