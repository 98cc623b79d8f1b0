"""The file of answers: one command at a time writes to it, and goes on where another stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_HEAD = b'{"id": "'
"""How every line begins."""


class Answers:
    """JSON Lines that are only added to. A last line that was cut off is removed, and nothing else ever is."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Reads what is there.

        Args:
            path: For messages.
            file: Opened to append, at any place.

        Raises:
            ValueError: If it holds anything else; the message names the line.
        """
        self.path = path
        self.asked: dict[str, str] = {}
        """What was asked of the answers that are there, by the questions' ids."""
        self._file = file
        self._numbers: dict[str, int] = {}
        file.seek(0)
        end, line = 0, b""
        for number, line in enumerate(file, start=1):
            row = _answer(line)
            if row is None:
                if line.endswith(b"\n") or not _cut_off(line):
                    raise ValueError(f"--output {path}:{number} is no answer of this command; name another file")
                file.truncate(end)
                return
            self.asked[row["id"]], self._numbers[row["id"]] = row["asked"], number
            end += len(line)
        if line and not line.endswith(b"\n"):
            file.write(b"\n")

    def check(self, asked: Mapping[str, str]) -> None:
        """Refuses to go on with answers to something else.

        Args:
            asked: What is asked now, by the questions' ids.

        Raises:
            ValueError: If a question was answered by another model, or asked otherwise; the message names the line.
        """
        for name, before in self.asked.items():
            if asked.get(name, before) != before:
                raise ValueError(
                    f"--output {self.path}:{self._numbers[name]}: {name!r} was answered by another model, under other "
                    "settings, or was another question; name another file"
                )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes answers, and brings them to the disk."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def answers_in(path: Path, questions: Path) -> Iterator[Answers]:
    """Opens the file of answers, for this process alone.

    Args:
        path: The file; made if it is not there.
        questions: The file of questions, which must be another.

    Raises:
        ValueError: If it is the same, holds something else, or another process writes to it.
        OSError: If it cannot be written.
    """
    if path.exists() and path.samefile(questions):
        raise ValueError(f"--output {path} is the file of --rows; name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is no regular file")
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--output {path}: another command is writing to it; wait for its end") from error
        yield Answers(path, file)


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("id", "response", "asked"))
    return row if known else None


def _cut_off(line: bytes) -> bool:
    """Whether a command that was killed may have left it."""
    try:
        json.loads(line)
    except RecursionError:
        return False
    except ValueError:
        return line.startswith(_HEAD[: len(line)])
    return False
