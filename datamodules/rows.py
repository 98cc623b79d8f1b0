"""From bytes to rows: JSON arrays and JSON Lines of any size, one row in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_CHUNK = 1 << 20
MAX_ROW_CHARS = 1 << 24
"""A row longer than this is refused; without a limit one missing quote would pull the whole file into memory."""


class BadRecord(ValueError):  # noqa: N818  # the name that users see in `on_bad_record`
    """A row that cannot be used; `str()` of it names file, row, field and reason."""

    def __init__(self, message: str, *, file: str = "", row: int = 0, field: str = "", reason: str = "") -> None:
        """Use `at`; a lone message must do too, because data loader workers rebuild exceptions from their text.

        Args:
            message: The whole message.
            file: File that holds the row.
            row: Row in the file, from 1.
            field: Key of the row that is at fault, or `row`.
            reason: What is wrong with it.
        """
        super().__init__(message)
        self.file, self.row, self.field, self.reason = file, row, field, reason

    @classmethod
    def at(cls, file: str, row: int, field: str, reason: str, detail: object = "") -> BadRecord:
        """Makes the exception with a message of its parts.

        Args:
            file: File that holds the row.
            row: Row in the file, from 1.
            field: Key of the row that is at fault, or `row`.
            reason: What is wrong with it, in words that are the same for every row; bad rows are counted by it.
            detail: The value at fault or more about it, shown shortened.
        """
        text = detail if isinstance(detail, str) else repr(detail)
        tail = f" ({text[:200]})" if text else ""
        return cls(f"{file}:{row}: {field}: {reason}{tail}", file=file, row=row, field=field, reason=reason)


_Row = tuple[int, dict[str, Any] | BadRecord, str]
"""Number from 1, the object or what is wrong with it, its text."""


def iter_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Reads a JSON array of objects or JSON Lines; the content decides which, not the name.

    Args:
        path: File in UTF-8, a byte-order mark allowed.

    Yields:
        Row number from 1 with the row, or with what is wrong with that row. Blank lines are no rows.

    Raises:
        BadRecord: If nothing after this place can be read: an array that breaks off, a row without an end, or a file
            that starts like neither form.
        OSError: If the file cannot be read.
    """
    for row, value, _ in _decoded(path):
        yield row, value


def iter_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Reads the rows' own text, for copies that change no byte; arguments and errors as for `iter_rows`.

    Yields:
        Row number from 1 with the row as it stands in the file, without blanks around it.
    """
    for row, _, text in _decoded(path):
        yield row, text


def is_array(path: Path) -> bool:
    """Whether a file starts as a JSON array; JSON Lines otherwise."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return _first(stream) == "["


def _decoded(path: Path) -> Iterator[_Row]:
    row = 0
    try:
        for row, value, text in _rows(path):
            yield row, value, text
    except UnicodeDecodeError as error:
        raise BadRecord.at(str(path), row + 1, "row", "not UTF-8", str(error)) from error


def _first(stream: TextIO) -> str:
    """The first character that is no blank; empty for none."""
    first = stream.read(1)
    while first.isspace():
        first = stream.read(1)
    return first


def _rows(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        first = _first(stream)
        if first == "[":
            yield from _array(stream, str(path))
        elif first == "{":
            yield from _lines(stream, first, str(path))
        elif first:
            raise BadRecord.at(str(path), 1, "row", "neither a JSON array nor JSON Lines", f"it starts with {first!r}")


def _lines(stream: TextIO, first: str, file: str) -> Iterator[_Row]:
    row = 0
    while line := first + stream.readline(MAX_ROW_CHARS + 1):
        first = ""
        if not line.strip():
            continue
        row += 1
        if len(line) > MAX_ROW_CHARS:
            raise BadRecord.at(file, row, "row", f"longer than {MAX_ROW_CHARS} characters")
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield row, BadRecord.at(file, row, "row", "no valid JSON", _why(error)), line.strip()
        else:
            yield row, _object(value, file, row), line.strip()


def _array(stream: TextIO, file: str) -> Iterator[_Row]:
    decoder = json.JSONDecoder()
    buffer, at, row = "", 0, 0
    separator_due = False
    while True:
        at = _skip_blanks(buffer, at)
        if at == len(buffer):
            buffer, at = stream.read(_CHUNK), 0
            if not buffer:
                raise BadRecord.at(file, row + 1, "row", "the file ends inside the array; is the download complete?")
            continue
        if buffer[at] == "]" and (separator_due or row == 0):
            return
        if separator_due:
            if buffer[at] != ",":
                raise BadRecord.at(file, row + 1, "row", "expected a comma between rows", repr(buffer[at]))
            at, separator_due = at + 1, False
            continue
        row += 1
        if buffer[at] != "{":
            raise BadRecord.at(file, row, "row", "expected an object", repr(buffer[at]))
        value, buffer, start, at = _decode(decoder, stream, buffer, at, file=file, row=row)
        separator_due = True
        yield row, _object(value, file, row), buffer[start:at]


def _decode(
    decoder: json.JSONDecoder, stream: TextIO, buffer: str, at: int, *, file: str, row: int
) -> tuple[Any, str, int, int]:
    """Decodes the object at `buffer[at:]`, reading on (twice as much each time) until it is whole.

    Returns:
        The object, the buffer that holds it, and where in the buffer it starts and ends.
    """
    while True:
        try:
            value, end = decoder.raw_decode(buffer, at)
        except (ValueError, RecursionError) as error:
            buffer, at = buffer[at:], 0
            more = "" if isinstance(error, RecursionError) else stream.read(max(_CHUNK, len(buffer)))
            if not more or len(buffer) > MAX_ROW_CHARS:
                raise BadRecord.at(file, row, "row", "no valid JSON", _why(error)) from error
            buffer += more
        else:
            return value, buffer, at, end


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _object(value: Any, file: str, row: int) -> dict[str, Any] | BadRecord:
    return value if isinstance(value, dict) else BadRecord.at(file, row, "row", "no object")


def _why(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
