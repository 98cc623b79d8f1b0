"""Responses with their verdicts as they lie on disk: those of `callbacks.ResponseWriter`, and benchmarks' verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_vlaa.hints import unreadable
from lit_vlaa.types import FinishReason

MAX_LINE_BYTES = 1 << 24
"""A longer line is refused."""
OWN_FILE = "responses.jsonl"
"""Name of the file that `callbacks.ResponseWriter` writes."""

_DEPTH = 3
"""Folders below the one given in which verdicts are looked for: `<job>/benchmarks/<benchmark>/test.jsonl`."""
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response and what is known of it."""

    set: str
    """`test` for rows of the data module (`val` for those of `lit-vlaa validate`), else the benchmark's name."""
    id: str
    """Of the row, in its set."""
    response: str
    """The policy's text, hostile input."""
    score: float | None = None
    """Reward, or a benchmark's hit as 0 or 1; None without a verdict."""
    kind: str = ""
    """What scores the row, such as `mcq`; empty where it is not known, as all texts below."""
    source: str = ""
    question: str = ""
    truth: str = ""
    image: str | None = None
    """Path below the image root, as the row has it; of several the first."""
    tokens: int | None = None
    """Of the response."""
    finish: FinishReason | None = None
    """`length` where the response ran into the limit."""
    status: str = ""
    """Of the verdict: `ok`, `no_answer`, or why there is none."""
    extracted: str | None = None
    """The answer that was judged."""


def read_responses(path: Path | str) -> list[ScoredResponse]:
    """Reads saved responses.

    Args:
        path: A JSON Lines file whose rows have a `response` and whatever else is known: keys as the fields of
            `ScoredResponse`, or those of a benchmark's verdicts (`benchmark`, `hit`, `tags`). Or a folder: its
            `responses.jsonl` and the files of verdicts there and up to three folders below. A row without an id is
            named by its line.

    Returns:
        The rows, file by file.

    Raises:
        ValueError: If there is no such file, no row, or a row that cannot be read; the message names file and row. Also
            where a folder holds several verdicts on one row, as those of several evaluations.
    """
    given = Path(path)
    if not given.is_dir():
        found = list(_rows(given))
        if not found:
            raise ValueError(f"{given}: there is no row; give what an evaluation wrote")
        return found
    files = [file for file in _candidates(given) if file.name == OWN_FILE or _holds_verdicts(file)]
    if not files:
        raise ValueError(f"{given}: there is neither {OWN_FILE} nor a benchmark's verdicts; give a file of responses")
    rows: list[ScoredResponse] = []
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        for row in _rows(file):
            if (other := seen.setdefault((row.set, row.id), file)) != file:
                raise ValueError(
                    f"{other} and {file} both hold row {_cut(row.id)} of {_cut(row.set)}; give one of the files"
                )
            rows.append(row)
    if not rows:
        raise ValueError(f"{given}: there is no row; give what an evaluation wrote")
    return rows


def _candidates(folder: Path) -> list[Path]:
    files: list[Path] = []
    for depth in range(_DEPTH + 1):
        files += sorted(folder.glob("*/" * depth + "*.jsonl"))
    return [file for file in files if file.is_file() and not file.name.startswith(".")]


def _holds_verdicts(file: Path) -> bool:
    """Whether the first line is a benchmark's verdict; answers, predictions and rollouts lie in folders too."""
    first = next(_lines(file), None)
    try:
        row = json.loads(first[1]) if first else None
    except (ValueError, RecursionError):
        return False
    return isinstance(row, Mapping) and {"benchmark", "hit", "response"} <= row.keys()


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank with its place, `file:line`."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield f"{path}:{number}", line
    except OSError as error:
        raise ValueError(f"{path} {unreadable(path, error)}") from error


def _rows(path: Path) -> Iterator[ScoredResponse]:
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: not a JSON object: {_cut(line.decode('utf-8', 'replace').strip())}")  # noqa: TRY004
        yield _Row(row, place).read()


class _Row:
    """One row's object with its place, so that every complaint can name it."""

    def __init__(self, row: dict[str, Any], place: str) -> None:
        self.row, self.place = row, place

    def read(self) -> ScoredResponse:
        response = self.row.get("response")
        if not isinstance(response, str):
            raise self._bad("response", "a text", response)
        verdict = "benchmark" in self.row
        tags = self.row.get("tags") or {}
        if not isinstance(tags, dict):
            raise self._bad("tags", "an object", tags)
        score = self._score("hit" if verdict and "score" not in self.row else "score")
        status = self._text("status")
        if verdict and not status:
            status = "undecided" if score is None else "ok"
        return ScoredResponse(
            set=self._text("benchmark" if verdict else "set") or "test",
            id=self._text("id") or self.place.rpartition(":")[2],
            response=response,
            score=score,
            kind=self._text("kind") or self._tag(tags, "kind"),
            source=self._text("source") or self._tag(tags, "source"),
            question=self._text("question"),
            truth=self._text("truth"),
            image=self._text("image") or None,
            tokens=self._tokens(),
            finish=self._finish(),
            status=status,
            extracted=None if self.row.get("extracted") is None else self._text("extracted"),
        )

    def _bad(self, key: str, wanted: str, value: object) -> ValueError:
        found = "is missing" if key not in self.row else f"must be {wanted}, got {_cut(repr(value))}"
        return ValueError(f"{self.place}: {key!r} {found}")

    def _text(self, key: str) -> str:
        value = self.row.get(key)
        if value is None:
            return ""
        if isinstance(value, (bool, dict)):
            raise self._bad(key, "a text", value)
        return value if isinstance(value, str) else json.dumps(value)

    @staticmethod
    def _tag(tags: Mapping[str, Any], name: str) -> str:
        """A tag's text; several values are one, since a row stands in one group alone."""
        value = tags.get(name, "")
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    def _score(self, key: str) -> float | None:
        value = self.row.get(key)
        if value is None:
            return None
        try:
            score = float(value) if isinstance(value, (bool, int, float)) else math.nan
        except OverflowError:
            score = math.inf
        if not math.isfinite(score):
            raise self._bad(key, "a finite number, true, false or null", value)
        return score

    def _tokens(self) -> int | None:
        value = self.row.get("tokens")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise self._bad("tokens", "a number of tokens or null", value)
        return value

    def _finish(self) -> FinishReason | None:
        value: Literal["stop", "length"] | None = self.row.get("finish")
        if value not in ("stop", "length", None):  # no set: it may be a list
            raise self._bad("finish", "'stop', 'length' or null", value)
        return value


def _cut(text: str) -> str:
    line = "".join(char if char.isprintable() else " " for char in text[: _SHOWN + 1])
    return f"{line[:_SHOWN]}..." if len(line) > _SHOWN else line
