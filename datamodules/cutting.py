"""A data file cut into the shards that it becomes, in one pass over its rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from datamodules.images import MAX_FILE_BYTES, ImageError, locate
from datamodules.records import OnBadRecord, Split, image_paths, normalise
from datamodules.rows import BadRecord, iter_rows
from datamodules.shards import FORMAT
from datamodules.sources import source_of

WORK = ".convert"
"""Folder within the shards' for what is in progress, and for notes of what is finished."""


@dataclass(frozen=True, slots=True)
class Job:
    """A shard to write."""

    folder: Path
    index: int
    key: str
    """Tells its content: its rows, and size and time of change of its images."""
    root: Path | None
    """Folder of the images to embed."""

    @property
    def target(self) -> Path:
        """The shard."""
        return self.folder / f"rows-{self.index:05d}.parquet"

    @property
    def rows(self) -> Path:
        """Its rows as lines, until it is written."""
        return self.folder / WORK / f"{self.index:05d}.rows"

    @property
    def stamp(self) -> Path:
        """The note that it is finished."""
        return self.folder / WORK / f"{self.index:05d}.json"


@dataclass(slots=True)
class Cutter:
    """Cuts a data file into jobs, in one pass."""

    folder: Path
    file: Path
    root: Path | None
    split: Split | None
    most_bytes: int
    on_bad_record: OnBadRecord
    skipped: Counter[str] = field(default_factory=Counter)

    def jobs(self) -> Iterator[Job]:
        """Writes the rows of each shard to a file of its own and yields the shard."""
        index, size = 0, 0
        stream: BinaryIO | None = None
        digest = hashlib.sha256()
        for number, value in iter_rows(self.file):
            try:
                line, facts, cost = self._row(number, value)
            except BadRecord as error:
                if self.on_bad_record == "error":
                    raise
                self.skipped[f"{error.field}: {error.reason}"] += 1
                continue
            if stream is not None and size + cost > self.most_bytes:
                stream.close()
                yield Job(self.folder, index, digest.hexdigest(), self.root)
                index, size, stream = index + 1, 0, None
            if stream is None:
                stream = Job(self.folder, index, "", None).rows.open("wb")
                digest = hashlib.sha256(repr((FORMAT, pa.__version__, self.root is None)).encode())
            stream.write(line)
            digest.update(line + facts)
            size += cost
        if stream is not None:
            stream.close()
            yield Job(self.folder, index, digest.hexdigest(), self.root)

    def _row(self, number: int, value: dict[str, Any] | BadRecord) -> tuple[bytes, bytes, int]:
        """A row as a line of the shard's file, what tells its images, and about how many bytes it takes."""
        if isinstance(value, BadRecord):
            raise value
        if self.split is not None:
            normalise(value, file=str(self.file), number=number, split=self.split)
        paths = image_paths(value, file=str(self.file), number=number)
        source = source_of(paths[0] if paths else "", str(value.get("id", "")))
        text = json.dumps(value, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape
            text = json.dumps(value)
        facts, cost = "", len(text)
        files = [self._image(self.root, number, path) for path in paths] if self.root is not None else []
        for file, path in zip(files, paths, strict=False):
            stat = file.stat()
            if stat.st_size > MAX_FILE_BYTES:
                raise BadRecord.at(str(self.file), number, "image", f"more than {MAX_FILE_BYTES} bytes", path)
            facts += f"{stat.st_size}:{stat.st_mtime_ns};"
            cost += stat.st_size
        line = json.dumps([number, source, text, paths]).encode()
        return line + b"\n", facts.encode(), cost

    def _image(self, root: Path, number: int, path: str) -> Path:
        try:
            return locate(root, path)
        except ImageError as error:
            raise BadRecord.at(str(self.file), number, "image", error.reason, error.detail) from error
