"""What passes from step to step, and its files: each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lit_vlaa.digests import sha256_of
from lit_vlaa.endpoints.completions import Usage
from lit_vlaa.hints import unreadable
from lit_vlaa.pipeline.config import STEPS
from lit_vlaa.prompts import format_response
from lit_vlaa.rewards.scorers.wire import printable
from lit_vlaa.whole_files import replacing

FORMAT = 1
"""Of the step files; raised when a step changes what it makes of the same input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question on its way; later steps fill the fields below."""

    number: int
    """Its place among all rows of all sources, from 0; the order of every file."""
    id: str
    source: str
    kind: str
    """Its verifier."""
    images: tuple[str, ...]
    """Paths below the image root."""
    digests: tuple[str, ...]
    """SHA-256 of their bytes."""
    question: str
    truth: str
    context: dict[str, str]
    """What the source tells about the image beside question and answer, by name."""
    origin: str
    """`file:row`, the file below the folder of the configuration where it lies there."""
    caption: str = ""
    """Step 2."""
    thinking: str = ""
    """Step 3; without its mentions from step 4 on."""
    answer: str = ""
    """Likewise."""
    verified_by: str = ""
    """Step 5: `rule` or `model`."""

    @property
    def response(self) -> str:
        """The target of SFT."""
        return format_response(self.thinking, self.answer)


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a row goes no further."""

    reason: str
    """In words that are the same for every row; rows are counted by it."""
    detail: str = ""
    """More about this row; others wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What is known of a step that is finished."""

    step: str
    fingerprint: str
    """Of its input, its settings and its prompt."""
    output_sha256: str
    rows_in: int
    rows_out: int
    rejected: dict[str, int] = field(default_factory=dict)
    """Rows by reason."""
    notes: dict[str, int] = field(default_factory=dict)
    """Counts of the step's own."""
    usage: dict[str, int] | None = None
    """`Usage` of the steps that ask a model."""


class StepFiles:
    """The files of one step in the folder of a build.

    Args:
        folder: `steps` in the output folder.
        step: Its name.
    """

    def __init__(self, folder: Path, step: str) -> None:
        stem = f"{STEPS.index(step) + 1}_{step}"
        self.step = step
        self.rows = folder / f"{stem}.jsonl"
        self.rejects = folder / f"{stem}.rejects.jsonl"
        self.counted = folder / f"{stem}.counted.jsonl"
        """Of a shard: the tokens of each reply by question."""
        self._done = folder / f"{stem}.json"

    def done(self) -> Done | None:
        """What the step left when it finished; None where it did not, or something of it is gone."""
        try:
            value = json.loads(self._done.read_text(encoding="utf-8"))
            done = Done(**value)
        except (OSError, ValueError, TypeError):
            return None
        return done if done.step == self.step and self.rows.is_file() and self.rejects.is_file() else None

    def read(self) -> Iterator[Row]:
        """The rows that passed, in order."""
        for line in lines(self.rows):
            yield Row(**{**line, "images": tuple(line["images"]), "digests": tuple(line["digests"])})

    @contextmanager
    def writing(self, fingerprint: str) -> Iterator[StepWriter]:
        """Collects the outcome of each row; the files are put in place when all are there, the sign of it last."""
        self._done.unlink(missing_ok=True)
        with (
            replacing(self.rejects) as rejects,
            replacing(self.rows) as rows,
            rows.open("w", encoding="utf-8", newline="\n") as out,
            rejects.open("w", encoding="utf-8", newline="\n") as aside,
        ):
            writer = StepWriter(self.step, out, aside)
            yield writer
            for stream in (out, aside):
                stream.flush()
                os.fsync(stream.fileno())
        self.finish(
            Done(
                step=self.step,
                fingerprint=fingerprint,
                output_sha256=writer.digest.hexdigest(),
                rows_in=writer.rows_in,
                rows_out=writer.rows_out,
                rejected=dict(sorted(writer.rejected.items())),
                notes=dict(sorted(writer.notes.items())),
                usage=None if writer.usage is None else asdict(writer.usage),
            )
        )

    def finish(self, done: Done) -> None:
        """Writes the sign that the step is finished."""
        write_text(self._done, json.dumps(asdict(done), indent=1) + "\n")


class StepWriter:
    """Takes the outcome of each row of a step."""

    def __init__(self, step: str, out: TextIO, aside: TextIO) -> None:
        self.step = step
        self.rows_in = 0
        self.rows_out = 0
        self.rejected: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.usage: Usage | None = None
        self.digest = hashlib.sha256()
        self._out = out
        self._aside = aside

    def keep(self, row: Row) -> None:
        """Passes a row on."""
        self.rows_in += 1
        self.rows_out += 1
        line = json.dumps(asdict(row), ensure_ascii=False) + "\n"
        self.digest.update(line.encode())
        self._out.write(line)

    def reject(self, reject: Reject, *, number: int, name: str, origin: str) -> None:
        """Lays a row aside."""
        line = {"number": number, "id": name, "origin": origin, "step": self.step, "reason": reject.reason}
        self.copy_reject({**line, "detail": printable(reject.detail)})

    def copy_reject(self, line: Mapping[str, Any]) -> None:
        """Lays a row aside that another writer of this step has laid aside."""
        self.rows_in += 1
        self.rejected[line["reason"]] += 1
        self._aside.write(json.dumps(line, ensure_ascii=False) + "\n")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file that this package wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)


def write_lines(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """Writes a JSON Lines file whole or not at all; returns the number of its rows."""
    count = 0
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    return count


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def fingerprint(*parts: object) -> str:
    """A digest of what can be written as JSON."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        ValueError: If it cannot be read; the message names it.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise ValueError(f"{path} {unreadable(path, error)}") from error
