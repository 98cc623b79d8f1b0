"""Likelihoods on disk: a folder for each model, in it a file for each process that scored.

A line is `{"row", "nll", "tokens"}`, or `{"row", "unscored": reason}`. A folder's name holds a digest of everything
that the numbers depend on, so that those of other settings lie beside and never between them. Lines are handed to the
operating system a batch at a time; what a killed process left of its last line does not count.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from lit_vlaa.selection.choice import Floats, Integers

_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of R rows under one model."""

    nll: Floats
    """`[R]`; NaN where there is none."""
    tokens: Integers
    """`[R]`; 0 where there are none."""
    unscored: Mapping[int, str]
    """Why a row cannot be scored, by place."""

    def done(self, *, again: Collection[str] = ()) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """`[R]` whether a row needs no further look; rows that could not be scored need one for reasons in `again`."""
        done = self.tokens > 0
        done[[place for place, reason in self.unscored.items() if reason not in again]] = True
        return done


class ScoreFolder:
    """The likelihoods under one model.

    Args:
        root: Folder of all models' folders.
        model: Its name, for people.
        settings: What the numbers depend on; JSON can carry them.
    """

    def __init__(self, root: Path, model: str, settings: Mapping[str, Any]) -> None:
        self.model, self.settings = model, settings
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", model).strip("._")[-60:] or "model"
        self.path = root / f"{name}-{digest}"

    def open(self, name: str) -> ScoreFile:
        """Opens the file of one process to go on with it.

        Args:
            name: Tells it from those of processes that score at the same time.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        note = self.path / _SETTINGS
        if not note.exists():
            part = self.path / f".{uuid.uuid4().hex}.part"  # other processes may write the same now
            part.write_text(json.dumps(self.settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            part.replace(note)
        return ScoreFile(self.path / f"{name}.jsonl")

    def read(self, rows: Integers) -> Scores:
        """Reads what all processes wrote.

        Args:
            rows: `[R]` ascending numbers of rows in the data file; lines of others are passed over.

        Raises:
            ValueError: If a line is none of ours.
        """
        found = Scores(np.full(len(rows), math.nan), np.zeros(len(rows), np.int64), unscored := {})
        for path in sorted(self.path.glob("*.jsonl")):
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if not line.endswith(b"\n"):
                        break
                    row, nll, tokens, reason = _parsed(line, path, number)
                    place = int(np.searchsorted(rows, row))
                    if place == len(rows) or rows[place] != row:
                        continue
                    if reason is None:
                        found.nll[place], found.tokens[place] = nll, tokens
                    else:
                        unscored[place] = reason
        return found


def _parsed(line: bytes, path: Path, number: int) -> tuple[int, float, int, str | None]:
    """Row, sum, tokens and, where it cannot be scored, why."""
    try:
        value = json.loads(line)
        row, reason = int(value["row"]), value.get("unscored")
        nll, tokens = (math.nan, 0) if reason is not None else (float(value["nll"]), int(value["tokens"]))
        sound = reason is not None or (math.isfinite(nll) and tokens > 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path}:{number}: not a line of likelihoods; delete the file to score its rows again")
    return row, nll, tokens, None if reason is None else str(reason)


class ScoreFile:
    """Lines of one process, written as they come; an unfinished last line is cut off first."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b" if path.exists() else "w+b") as stream:
            stream.truncate(_end_of_lines(stream))
        # At the end whatever comes between: the same command twice at a time scores twice, and spoils nothing.
        self._stream: BinaryIO = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds the lines of a batch and hands them to the operating system."""
        self._stream.write(b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines))
        self._stream.flush()


def _end_of_lines(stream: BinaryIO, chunk: int = 1 << 16) -> int:
    """Where the last finished line of a file ends."""
    place = stream.seek(0, 2)
    while place:
        start = max(0, place - chunk)
        stream.seek(start)
        found = stream.read(place - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        place = start
    return 0
