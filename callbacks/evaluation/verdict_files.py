"""Reading verdicts back: the JSON Lines files that an evaluation leaves, a row an object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 1 << 24
"""A longer line is refused."""

_SHOWN = 80
_WRITTEN = "benchmarks"
"""Folder that an evaluation writes to, in or beside the log folder of its run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file says of one row of a benchmark."""

    hit: bool | None
    """None where neither rule nor judge decided."""
    tags: tuple[tuple[str, str], ...]
    """(tag, value), such as `("subject", "algebra")`; a tag of several values stands there with each."""
    group: str | None
    """The problem that the row belongs to; None for a row that stands alone."""
    origin: str
    """`file:line`, for messages."""


Key = tuple[str, str]
"""(benchmark, id) of a row."""


def read_verdicts(path: Path, name: str | None = None) -> dict[Key, Verdict]:
    """Reads all rows of one model.

    Args:
        path: A file, or a folder of `.jsonl` files, or an evaluation's folder with one such folder a benchmark. Files
            of different benchmarks are one evaluation, files of the same one are several.
        name: Of the evaluation (`test`, `final`, `step_100`), where there are several.

    Raises:
        ValueError: If it does not exist, holds no row or several evaluations, or a line is no verdict; the message
            names file and line.
    """
    files = _files(path, name) if path.is_dir() else [path]
    found: dict[Key, Verdict] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        for key, verdict in _rows(file):
            if (other := file_of.setdefault(key[0], file)) != file:
                raise ValueError(_several(path, sorted({one.stem for one in files}), key[0], (other, file)))
            earlier = found.setdefault(key, verdict)
            if earlier.hit is not verdict.hit:
                raise ValueError(
                    f"{verdict.origin}: row {_shown(key[1])} of {_shown(key[0])} has another verdict than in "
                    f"{earlier.origin}; a row has one verdict in one evaluation"
                )
    if not found:
        raise ValueError(f"{path}: there is no row; give what an evaluation wrote")
    return found


def _files(folder: Path, name: str | None) -> list[Path]:
    files = sorted(folder.glob("*.jsonl")) or sorted(folder.glob("*/*.jsonl"))
    names = sorted({file.stem for file in files})
    if name is None and len(names) > 1 and files[0].parent != folder:
        raise ValueError(_choose(folder, names))
    chosen = [file for file in files if name in {None, file.stem}]
    if not chosen:
        raise ValueError(
            f"{folder}: there is no {name or ''}.jsonl here or one level below"
            + (f"; there are {', '.join(names)}" if names else _where(folder))
        )
    return chosen


def _where(folder: Path) -> str:
    near = next((place for place in (folder / _WRITTEN, folder.parent / _WRITTEN) if place.is_dir()), None)
    return (
        "; give what an evaluation wrote"
        if near is None
        else f"; give {near}, which callbacks.BenchmarkEvaluation writes"
    )


def _several(path: Path, names: list[str], benchmark: str, files: tuple[Path, Path]) -> str:
    if len(names) > 1:
        return _choose(path, names)
    return f"{files[0]} and {files[1]} both hold {_shown(benchmark)}; give a file, or a folder of one evaluation"


def _choose(folder: Path, names: list[str]) -> str:
    return f"{folder}: there are several evaluations; choose one by --name: {', '.join(names)}"


def _rows(path: Path) -> Iterator[tuple[Key, Verdict]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                origin = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{origin}: the line is longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield _row(line, origin)
    except OSError as error:
        from lit_vlaa.hints import unreadable  # noqa: PLC0415 - the comparison itself knows nothing of the project

        raise ValueError(f"{path} {unreadable(path, error)}") from error


def _row(line: bytes, origin: str) -> tuple[Key, Verdict]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{origin}: not a JSON object: {_shown(line.decode('utf-8', 'replace').strip())}")  # noqa: TRY004
    missing = [name for name in ("benchmark", "id", "hit") if name not in row]
    if missing:
        raise ValueError(
            f"{origin}: no {' and no '.join(repr(name) for name in missing)}; give the files that an evaluation wrote"
        )
    if row["hit"] is not None and not isinstance(row["hit"], bool):
        raise ValueError(f"{origin}: 'hit' must be true, false or null, got {_shown(json.dumps(row['hit']))}")
    tags = row.get("tags")
    if tags is not None and not isinstance(tags, Mapping):
        raise ValueError(f"{origin}: 'tags' must be an object, got {_shown(json.dumps(tags))}")
    verdict = Verdict(
        hit=row["hit"],
        tags=tuple((tag, value) for tag, given in (tags or {}).items() for value in _values(tag, given, origin)),
        group=_problem(row.get("group"), origin),
        origin=origin,
    )
    return (str(row["benchmark"]), str(row["id"])), verdict


def _values(tag: str, given: Any, origin: str) -> list[str]:
    """The values of a tag, each once."""
    values = given if isinstance(given, list) else [given]
    if not all(isinstance(value, (str, int, float)) for value in values):
        raise ValueError(f"{origin}: tag {_shown(tag)} must be a text or a list of texts, got {type(given).__name__}")
    return list(dict.fromkeys(map(str, values)))


def _problem(group: Any, origin: str) -> str | None:
    if group is None:
        return None
    if not isinstance(group, list) or len(group) != 2:
        raise ValueError(f"{origin}: 'group' must be [problem, role] or null, got {_shown(json.dumps(group))}")
    return str(group[0])


def _shown(text: str) -> str:
    line = "".join(char if char.isprintable() else " " for char in text[: _SHOWN + 1])
    return f"{line[:_SHOWN]}..." if len(line) > _SHOWN else line
