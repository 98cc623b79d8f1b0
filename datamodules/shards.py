"""Rows in Parquet shards with their images inside or beside them: what `lit-vlaa data convert` writes.

A folder holds `manifest.json` and `rows-00000.parquet`, ... Each row keeps the object of the original file as JSON
text, its number there, and its images: paths alone (`link`), or with the bytes of their files (`embed`). Shards are
mapped into memory; an image is read by the number of its row, a few rows at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.images import ImageError
from datamodules.rows import MAX_ROW_CHARS, BadRecord, iter_rows
from lit_vlaa.digests import sha256_of
from lit_vlaa.hints import missing
from lit_vlaa.types import Record

Images = Literal["embed", "link"]

MANIFEST = "manifest.json"
FORMAT = 1
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("source", pa.string()),
        ("row", pa.string()),
        ("images", pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.binary())]))),
    ]
)
GROUP_ROWS = 4
GROUP_BYTES = 8 << 20
"""Rows are read a group at a time, in the order of a shuffle, so groups stay small."""

_NAME = re.compile(r"rows-\d{5,7}\.parquet")
_MAX_GROUP_BYTES = 1 << 30
_ROWS_PER_READ = 256


@dataclass(frozen=True, slots=True)
class RowAt:
    """A row with its place."""

    file: str
    """The file that holds it, for messages."""
    row: int
    """In that file, from 1."""
    name: str
    """`file:row` by the original file's name, whichever form the row is read from."""
    number: int
    """In the original file, from 1."""
    value: dict[str, Any] | BadRecord


def rows_of(path: Path) -> Iterator[RowAt]:
    """Reads the rows of a JSON file, or of a folder of shards, in order.

    Raises:
        BadRecord: If the file breaks off, or a shard cannot be read.
        OSError: If there is no such file.
    """
    if is_shards(path):
        yield from ShardSet.read(path).rows()
        return
    for number, value in iter_rows(path):
        yield RowAt(str(path), number, f"{path.name}:{number}", number, value)


def is_shards(path: Path | str) -> bool:
    """Whether a path is a folder that `lit-vlaa data convert` finished."""
    return (Path(path) / MANIFEST).is_file()


def stamp(path: Path) -> list[tuple[int, int]]:
    """Size and time of change of a data file, or of all files of a folder of shards.

    Raises:
        BadRecord: If shards are not there as a whole.
        OSError: If there is no such file.
    """
    names = [MANIFEST, *(name for name, _, _ in ShardSet.read(path).shards)] if is_shards(path) else [""]
    stats = [(path / name).stat() for name in names]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def stamped(path: Path) -> Path:
    """The file that stands for all: of a folder of shards its manifest, which holds their checksums."""
    return path / MANIFEST if is_shards(path) else path


def trouble_with(path: Path) -> str:
    """Says why rows cannot be read from a path, to follow its name in a message; empty where they can be."""
    if not path.exists():
        return missing(path)
    if path.is_dir() and not is_shards(path):
        return f"is a folder without {MANIFEST}; `lit-vlaa data convert` writes that at its end"
    return ""


def check_files(files: Mapping[str, str], image_root: Path) -> None:
    """Looks whether what the options name is there.

    Args:
        files: Data files by option.
        image_root: Folder of the images, which rows with embedded images do without.

    Raises:
        FileNotFoundError: If something is not.
    """
    for flag, file in files.items():
        if trouble := trouble_with(Path(file)):
            raise FileNotFoundError(f"{flag}={file} {trouble}")
    embedded = [is_shards(file) and ShardSet.read(Path(file)).images == "embed" for file in files.values()]
    if not image_root.is_dir() and not (embedded and all(embedded)):
        raise FileNotFoundError(f"image_root={image_root} is no folder")


@dataclass(frozen=True, slots=True)
class ShardSet:
    """The shards of one data file."""

    folder: Path
    images: Images
    source: str
    """Name of the original file."""
    shards: tuple[tuple[str, int, int], ...]
    """Name, rows and bytes of each."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest and looks whether its shards are there as a whole.

        Raises:
            BadRecord: If they are not; the message names file and remedy.
        """
        path = folder / MANIFEST
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            shards = tuple((str(s["file"]), int(s["rows"]), int(s["bytes"])) for s in facts["shards"])
            form, images, source = facts["format"], facts["images"], str(facts["source"]["file"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _bad(path, 1, "no manifest that can be read", error) from error
        if form != FORMAT or images not in {"embed", "link"} or not all(_NAME.fullmatch(name) for name, _, _ in shards):
            raise _bad(path, 1, f"no manifest of format {FORMAT}")
        for name, _, size in shards:
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found != size:
                raise _bad(folder / name, 1, f"{found or 0} bytes instead of {size}", "copy it again, or convert again")
        return cls(folder, images, source, shards)

    def verify(self) -> None:
        """Compares each shard's SHA-256 with the manifest's, which takes as long as reading them.

        Raises:
            BadRecord: If one differs; the message names file and remedy.
        """
        facts = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        stated = {shard["file"]: shard.get("sha256") for shard in facts["shards"]}
        total = sum(size for _, _, size in self.shards)
        desc = f"checking {self.folder.name}"
        with tqdm(total=total, desc=desc, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
            for name, _, size in self.shards:
                path = self.folder / name
                if sha256_of(path) != stated[name]:
                    raise _bad(path, 1, "not the bytes that were written", "copy it again, or convert again")
                bar.update(size)

    def rows(self) -> Iterator[RowAt]:
        """Reads the rows without their images.

        Raises:
            BadRecord: If a shard cannot be read.
        """
        for name, count, _ in self.shards:
            path, at = self.folder / name, 0
            try:
                for batch in open_shard(path).iter_batches(
                    _ROWS_PER_READ, columns=["number", "row"], use_threads=False
                ):
                    for number, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        at += 1
                        original = f"{self.source}:{number}"
                        yield RowAt(str(path), at, original, int(number or 0), _object(path, at, text))
            except (pa.ArrowException, OSError) as error:
                raise _bad(path, at + 1, "the shard cannot be read", error) from error
            if at != count:
                raise _bad(path, at + 1, f"{at} rows instead of {count}", "convert again")


def embedded_images(record: Record) -> tuple[bytes, ...] | None:
    """Reads the files of a record's images out of its shard.

    Args:
        record: Any record.

    Returns:
        The bytes of the files; None where the record was not read from a shard, or that has no images inside.

    Raises:
        ImageError: If the shard cannot be read, or holds other images than the row asks for.
    """
    file, _, row = record.origin.rpartition(":")
    if not record.images or not file.endswith(".parquet"):
        return None
    shard = _mapped(file, os.getpid())
    if shard is None:
        return None
    try:
        images = shard.images(int(row) - 1)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ImageError("its shard cannot be read", str(error)) from error
    if tuple(path for path, _ in images) != record.images or any(content is None for _, content in images):
        raise ImageError("its shard holds other images than the row asks for", f"{record.images!r}")
    return tuple(cast("bytes", content) for _, content in images)


class _Shard:
    """One shard, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._file = open_shard(path)
        metadata = self._file.metadata
        self._groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *(group.num_rows for group in self._groups)])
        self._last: tuple[int, Any] = (-1, None)

    def images(self, row: int) -> list[tuple[str, bytes | None]]:
        """Path and content of a row's images."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"row {row + 1} of {self._starts[-1]}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._last[0] != group:
            if self._groups[group].total_byte_size > _MAX_GROUP_BYTES:
                raise OSError(f"a row group of more than {_MAX_GROUP_BYTES} bytes")
            read = self._file.read_row_group(group, columns=["images"], use_threads=False)
            self._last = group, read.column("images")
        value = self._last[1][row - int(self._starts[group])].as_py() or []
        return [(image["path"], image["bytes"]) for image in value]


@lru_cache(maxsize=1024)
def _mapped(file: str, pid: int) -> _Shard | None:  # noqa: ARG001  (a forked worker opens files of its own)
    path = Path(file)
    if not is_shards(path.parent) or ShardSet.read(path.parent).images != "embed":
        return None
    return _Shard(path)


def open_shard(path: Path) -> pq.ParquetFile:
    """Maps a shard into memory.

    Raises:
        OSError: If it is none.
    """
    file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
    if not file.schema_arrow.equals(SCHEMA):
        raise OSError(f"its columns are not {SCHEMA.names} as `lit-vlaa data convert` writes them")
    return file


def open_writer(path: Path) -> pq.ParquetWriter:
    """Opens a shard to write, a row group at a time."""
    return pq.ParquetWriter(
        path,
        SCHEMA,
        # The bytes of images do not shrink, and uncompressed ones are read where they are mapped.
        compression={"number": "zstd", "source": "zstd", "row": "zstd", "images.list.element.path": "zstd"}
        | {"images.list.element.bytes": "NONE"},
        use_dictionary=["source"],
        write_statistics=["number"],
    )


def _object(path: Path, row: int, text: str | None) -> dict[str, Any] | BadRecord:
    if text is None or len(text) > MAX_ROW_CHARS:
        return _bad(path, row, f"no text, or longer than {MAX_ROW_CHARS} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _bad(path, row, "no valid JSON", error)
    return value if isinstance(value, dict) else _bad(path, row, "no object")


def _bad(path: Path, row: int, reason: str, detail: object = "") -> BadRecord:
    return BadRecord.at(str(path), row, "row", reason, detail if isinstance(detail, str) else str(detail))
