"""Where a command is to write: what keeps it from that, told in one line before anything large is read."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ADDED = 24
"""Bytes that a name has to spare, for what stands around it while it is written, such as `.NAME.settings.json.part`."""
_SHOWN = 60
"""Letters of a long path that a message shows of either end."""


def output_fault(path: Path, *, file: bool = False, writes: bool = True) -> str:
    """Says what keeps a command from writing to a path; makes nothing.

    Args:
        path: A folder, there or not.
        file: It is a file.
        writes: Ask whether it may be written to, too.

    Returns:
        The end of a sentence on the path, with the remedy; empty where nothing is in the way.
    """
    another = f"name another {'file' if file else 'folder'}"
    names: list[str] = []
    too_long = ""
    for place in (path, *path.parents):
        where = "" if place == path else f": {short(place)}"
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink() and (names or not file):
                return f"{where} is a link to {short(place.readlink())}, which is not there; {another}"
        except ValueError:  # a null character, which a YAML file can hold
            return f" is no path; {another}"
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                return f"{where}: {error.strerror}; {another}"
            too_long = f": {error.strerror}; {another}"
        else:
            itself = file and not names
            if itself == stat.S_ISDIR(mode):
                return " is a folder; name a file in it" if itself else f"{where} is a file; name a folder"
            allowed = not writes or os.access(place, os.W_OK if itself else os.W_OK | os.X_OK)
            closed = "" if allowed else f"{where} cannot be written to; {another}"
            return (_long_name(place, names) if names else "") or too_long or closed
        names.append(place.name)
    return ""


def _long_name(folder: Path, names: list[str]) -> str:
    """Whether one of the names cannot be made, in a folder and below it."""
    most = os.pathconf(folder, "PC_NAME_MAX")
    for place, name in enumerate(names):
        size, room = len(os.fsencode(name)), most - (0 if place else _ADDED)
        if most > 0 and size > room:  # a file system may have no limit, which is -1
            return f": a name of at most {room} bytes is needed, not of {size}"
    return ""


def refused(flag: str, path: Path, fault: str) -> str:
    """A fault as a sentence on a flag and its value."""
    return f"{flag} {short(path)}{fault}"


def run_problems(trainer: Mapping[str, Any]) -> Iterator[str]:
    """Looks at the folders that a run is to write to, where the process is the one that makes them.

    Args:
        trainer: Its parsed settings.

    Yields:
        One line for each that cannot be written to.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only  # noqa: PLC0415 (tools that are quick read this too)

    if getattr(rank_zero_only, "rank", 0):
        return
    own = {
        # Of runs that log elsewhere callbacks may write there, and say so themselves.
        "default_root_dir": [trainer["default_root_dir"] or "."] if isinstance(trainer["logger"], bool | None) else [],
        "callbacks.dirpath": given_to(trainer["callbacks"], "dirpath"),
        "logger.save_dir": given_to(trainer["logger"], "save_dir"),
    }
    for flag, folders in own.items():
        for folder in folders:
            # Lightning takes addresses of remote file systems too.
            if "://" not in str(folder) and (fault := output_fault(Path(folder))):
                yield refused(f"--trainer.{flag}", Path(folder), fault)


def given_to(parsed: Any, name: str) -> list[str]:
    """What the classes of `--trainer.callbacks` or `--trainer.logger` are given as their argument `name`."""
    entries = parsed if isinstance(parsed, list) else [parsed]
    settings = [entry.get("init_args") or {} for entry in entries if isinstance(entry, Mapping)]
    return [str(own[name]) for own in settings if own.get(name)]


def short(path: object) -> str:
    """A path as a message shows it."""
    text = str(path)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}...{text[-_SHOWN:]}"
