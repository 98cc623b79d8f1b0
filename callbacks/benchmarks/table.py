"""An LMUData file: tab-separated text with a header, images as base64 in the column `image`."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from callbacks.benchmarks.images import POINTER_CHARS, EncodedImage, digest, split_cell
from callbacks.benchmarks.interface import EvalImage

MAX_CELL_CHARS = 1 << 28
"""Size above which a cell or line is refused."""


@dataclass(frozen=True, slots=True)
class TSVImage:
    """An image by its place in a TSV file."""

    path: Path
    offset: int
    """Bytes of the file before the row."""
    column: int
    place: int
    """Which of the cell's images, from 0."""
    origin: str
    """`file:row`, for messages."""
    cell: str
    """Digest of the cell as it was loaded."""

    @property
    def fingerprint(self) -> str:
        """Digest of the cell, and the place in it."""
        return f"{self.cell}/{self.place}"

    def open(self) -> Image.Image:
        """Reads the row again and decodes the image.

        Raises:
            ValueError: If the image is broken, or the file has changed since it was loaded; the message names the row.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                cells = next(_reader(_Lines(stream)))
            data = split_cell(cells[self.column], self.origin)[self.place]
        except (OSError, csv.Error, StopIteration, UnicodeDecodeError, IndexError) as error:
            raise ValueError(f"{self.origin}: the row cannot be read again; has the file changed? {error}") from error
        return EncodedImage(data, self.origin).open()


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    """From 1, without the header."""
    offset: int
    cells: dict[str, str]
    """Without the image."""
    pointer: str | None
    """What stands in an image cell that is too short for an image."""
    images: int
    """In the cell."""
    digest: str
    """Of the cell."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file's rows, and where their images lie."""

    path: Path
    md5: str
    column: int
    """Place of the column `image`."""
    content: tuple[_Row, ...]

    def rows(self) -> Iterator[tuple[str, Mapping[str, str], tuple[EvalImage, ...]]]:
        """Yields each row's origin, its cells but the image, and its images.

        Raises:
            ValueError: If a row points to the image of a row that is not there or has none itself.
        """
        owners = {row.cells["index"]: row for row in self.content if row.pointer is None}
        for row in self.content:
            origin = f"{self.path}:{row.number}"
            if row.pointer == "":
                yield origin, row.cells, (EncodedImage("", origin),)
                continue
            owner = row if row.pointer is None else owners.get(row.pointer)
            if owner is None:
                raise ValueError(f"{origin}: column 'image': {row.pointer!r} is neither an image nor a row with one")
            places = range(owner.images)
            yield (
                origin,
                row.cells,
                tuple(TSVImage(self.path, owner.offset, self.column, place, origin, owner.digest) for place in places),
            )


class _Lines:
    """A file's lines as text; `consumed` counts the bytes read, `digest` hashes them."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.consumed = 0
        self.digest = hashlib.md5(usedforsecurity=False)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(MAX_CELL_CHARS)
        if not line:
            raise StopIteration
        if len(line) == MAX_CELL_CHARS:
            raise csv.Error(f"a line of more than {MAX_CELL_CHARS} bytes")
        encoding = "utf-8" if self.consumed else "utf-8-sig"
        self.consumed += len(line)
        self.digest.update(line)
        return line.decode(encoding)


def _reader(lines: _Lines) -> Iterator[list[str]]:
    # The limit belongs to the whole process. It is only ever raised, so that threads do not undo each other's.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARS))
    return csv.reader(lines, delimiter="\t", strict=True)


def read_table(path: Path) -> Table:
    """Reads a file once, keeping the text and the places of the images.

    Args:
        path: The TSV file.

    Raises:
        ValueError: If it has no columns `index` and `image`, or a row does not fit the header or is not UTF-8; the
            message names the row as `file:row`.
    """
    rows: list[_Row] = []
    with path.open("rb") as stream:
        lines = _Lines(stream)
        reader = _reader(lines)
        try:
            header = next(reader, [])
            for name in ("index", "image"):
                if header.count(name) != 1:
                    raise ValueError(f"{path}: the header has {header.count(name)} columns {name!r}, needs 1")
            column = header.index("image")
            while True:
                offset = lines.consumed
                cells = next(reader, None)
                if cells is None:
                    break
                if cells:
                    rows.append(_row(f"{path}:{len(rows) + 1}", len(rows) + 1, offset, header, cells))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{len(rows) + 1}: not tab-separated UTF-8 text: {error}") from error
    return Table(path, lines.digest.hexdigest(), column, tuple(rows))


def _row(origin: str, number: int, offset: int, header: list[str], cells: list[str]) -> _Row:
    if len(cells) != len(header):
        absent = f"; column {header[len(cells)]!r} is missing" if len(cells) < len(header) else ""
        raise ValueError(f"{origin}: {len(cells)} cells for {len(header)} columns{absent}")
    row = dict(zip(header, cells, strict=True))
    image = row.pop("image").strip()
    if len(image) <= POINTER_CHARS:
        return _Row(number, offset, row, image, 0, "")
    return _Row(number, offset, row, None, len(split_cell(image, origin)), digest(image.encode()))
