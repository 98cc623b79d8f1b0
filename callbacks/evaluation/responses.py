"""Answers on disk: written as they come, found again by what they depend on.

A folder holds the answers of one model under one set of settings, in a file a rank, one JSON object a line. Each line
names its row by a digest of everything that the row adds to the prompt, images included.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from callbacks.benchmarks.interface import EvalRecord
from lit_vlaa.types import FinishReason


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote for one row."""

    row: str
    """`row_digest` of the row."""
    id: str
    response: str
    finish: FinishReason
    """`length` when it ran into the limit."""
    tokens: int


def row_digest(record: EvalRecord) -> str:
    """Names a row by its id, its prompt and its images. Reads images that lie in files of their own."""
    content = json.dumps([record.id, record.prompt, [image.fingerprint for image in record.images]])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def settings_digest(**settings: Any) -> str:
    """Names the folder of answers that depend on `settings`, which JSON can carry."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class AnswerFile:
    """This rank's file, open for appending; what a killed run left of its last line is cut off."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank{rank}.jsonl"
        self._file = path.open("r+b" if path.exists() else "w+b")
        content = self._file.read()
        self._file.seek(content.rfind(b"\n") + 1)
        self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, answers: Iterable[Answer]) -> None:
        """Adds answers and hands them to the operating system."""
        for answer in answers:
            self._file.write(json.dumps(asdict(answer)).encode() + b"\n")
        self._file.flush()


def read_answers(folder: Path, *, rank: int, ranks: int) -> dict[str, Answer]:
    """The answers that are there, shared out over the ranks by file.

    Args:
        folder: With files of any number of ranks; it need not exist.
        rank: Reads its own file, and those of ranks that do not exist now in turn. No rank depends on a file that
            another machine may keep for itself.
        ranks: How many read.

    Returns:
        Answers by their row's digest; lines that are cut off or no answers are passed over.
    """
    found: dict[str, Answer] = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        number = path.stem.removeprefix("rank")
        if number.isdecimal() and int(number) % ranks == rank:
            for line in path.read_bytes().split(b"\n"):
                answer = _parsed(line)
                if answer is not None:
                    found.setdefault(answer.row, answer)
    return found


def _parsed(line: bytes) -> Answer | None:
    try:
        content = json.loads(line)
        row, name, response = content["row"], content["id"], content["response"]
        finish, tokens = content["finish"], content["tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = all(isinstance(value, str) for value in (row, name, response))
    if not texts or finish not in ("stop", "length") or not isinstance(tokens, int):
        return None
    return Answer(row, name, response, cast("FinishReason", finish), tokens)


def write_whole(path: Path, content: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON Lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
