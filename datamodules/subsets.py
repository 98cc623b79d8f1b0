"""Some rows of a folder of shards as a folder of its own; images that lie in shards stay beside their rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.rows import BadRecord
from datamodules.shards import GROUP_BYTES, GROUP_ROWS, MANIFEST, ShardSet, is_shards, open_shard, open_writer
from lit_vlaa.digests import sha256_of
from lit_vlaa.whole_files import replacing

Integers = npt.NDArray[np.int64]


def copy_rows(folder: Path, ranks: Mapping[int, int], targets: Mapping[int, Path]) -> None:
    """Copies rows with all that belongs to them, in their order; each copy appears whole.

    Args:
        folder: Shards.
        ranks: Of each row to keep, by its number in the original file, from 0: a copy of N rows takes those below N.
        targets: Folders by their number of rows. Shards that are there make room.

    Raises:
        ValueError: If a target is something else than shards, or the folder lacks a row to keep.
        BadRecord: If a shard cannot be read.
    """
    found = ShardSet.read(folder)
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for target in targets.values():
        if target.exists() and not is_shards(target):
            raise ValueError(f"{target} is there and holds no shards; remove it, or give another --output-dir")
    with ExitStack() as stack:
        copies = {count: _Copy(stack.enter_context(replacing(target))) for count, target in targets.items()}
        for name, _, _ in found.shards:
            path = folder / name
            try:
                _copy_shard(path, ranks, copies)
            except (pa.ArrowException, OSError) as error:
                raise BadRecord.at(str(path), 1, "row", "the shard cannot be copied", str(error)) from error
        for count, copy in copies.items():
            if copy.rows != count:
                raise ValueError(f"{folder} changed: {count} rows were chosen and {copy.rows} found; run again")
            copy.finish(facts)


def numbers_of(folder: Path, origins: Iterable[str]) -> Integers:
    """Numbers in the original file of rows of shards.

    Args:
        folder: Shards.
        origins: `shard:row` of each row, as its record says.

    Raises:
        BadRecord: If a shard cannot be read, or its numbers do not rise from row to row.
    """
    found: dict[str, Integers] = {}
    last = 0
    for name, _, _ in ShardSet.read(folder).shards:
        path = folder / name
        try:
            numbers = open_shard(path).read(columns=["number"], use_threads=False).column(0).to_numpy()
        except (pa.ArrowException, OSError) as error:
            raise BadRecord.at(str(path), 1, "row", "the shard cannot be read", str(error)) from error
        if len(numbers) and (numbers[0] <= last or not (np.diff(numbers) > 0).all()):
            raise BadRecord.at(str(path), 1, "row", "its numbers do not rise from row to row", "convert again")
        last = int(numbers[-1]) if len(numbers) else last
        found[str(path)] = numbers
    places = (origin.rpartition(":") for origin in origins)
    return np.fromiter((found[shard][int(row) - 1] for shard, _, row in places), np.int64)


def _copy_shard(path: Path, ranks: Mapping[int, int], copies: Mapping[int, _Copy]) -> None:
    most = max(copies)
    file = open_shard(path)
    for group in range(file.num_row_groups):
        numbers = file.read_row_group(group, columns=["number"], use_threads=False).column(0).to_pylist()
        places = [ranks.get(number, most) for number in numbers]
        if min(places, default=most) >= most:
            continue
        rows = file.read_row_group(group, use_threads=False)
        for count, copy in copies.items():
            copy.add(rows.filter(pa.array([place < count for place in places])))
    for copy in copies.values():
        copy.close_shard()


class _Copy:
    """A folder of shards in progress."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.rows = folder, 0
        self._shards: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._shard_rows = self._first = 0

    def add(self, rows: pa.Table) -> None:
        """Adds rows, some of which wait until they make a row group."""
        if not rows.num_rows:
            return
        if not self._shard_rows:
            self._first = rows.column("number")[0].as_py()
        self._shard_rows += rows.num_rows
        self._waiting.append(rows)
        if (
            sum(table.num_rows for table in self._waiting) >= GROUP_ROWS
            or sum(table.nbytes for table in self._waiting) > GROUP_BYTES
        ):
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = open_writer(self.folder / self._name)
        self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting.clear()

    @property
    def _name(self) -> str:
        return f"rows-{len(self._shards):05d}.parquet"

    def close_shard(self) -> None:
        """Finishes a shard, if rows were added."""
        if not self._shard_rows:
            return
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()
        path = self.folder / self._name
        entry = {"file": path.name, "rows": self._shard_rows, "first": self._first, "bytes": path.stat().st_size}
        self._shards.append({**entry, "sha256": sha256_of(path)})
        self.rows += self._shard_rows
        self._writer, self._shard_rows = None, 0

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Writes the manifest, by that of the rows' origin."""
        text = json.dumps({**facts, "rows": self.rows, "shards": self._shards}, indent=1)
        (self.folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
