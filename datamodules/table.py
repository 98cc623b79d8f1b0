"""Records on disk as Arrow, mapped into memory: written once a file, shared by all ranks and workers."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc  # what `datasets` keeps its rows in
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from datamodules.records import OnBadRecord, RecordReader, Split
from datamodules.shards import ShardSet, is_shards, stamp
from lit_vlaa.types import Record

_FORMAT = 3
_TEXT = Value("string")
_FEATURES = Features(
    {
        "id": _TEXT,
        "source": _TEXT,
        "kind": _TEXT,
        "images": List(_TEXT),
        "question": _TEXT,
        "truth": _TEXT,
        "response": _TEXT,
        "origin": _TEXT,
    }
)
_ROWS_PER_WRITE = 256


class RecordTable(Sequence[Record]):
    """The usable records of one file, in file order.

    `skipped` says how many rows were left out, by field and reason.
    """

    def __init__(self, rows: Dataset, skipped: dict[str, int]) -> None:
        """Use `prepare` or `open`."""
        self._rows = rows
        self.skipped = skipped

    @classmethod
    def prepare(
        cls,
        path: Path | str,
        *,
        split: Split,
        image_root: Path | str,
        on_bad_record: OnBadRecord,
        cache_dir: Path | str | None,
    ) -> RecordTable:
        """Opens the table of a data file, and writes it first where there is none.

        Any number of processes may do so at once: a table appears whole, by renaming. One that lacks rows because their
        images were missing is written anew, as the images may have come since. Checksums of shards are verified before
        their table is written, and again when one of them has changed.

        Args:
            path: JSON array or JSON Lines, or a folder of shards.
            split: `sft` needs a response in every row, `grpo` a ground truth.
            image_root: Folder of the images, which must exist there.
            on_bad_record: `error` raises at the first row that cannot be used, `skip` leaves it out.
            cache_dir: Where to write. None takes `.lit_vlaa_cache` beside the file, or the user's cache folder if that
                cannot be written to.

        Raises:
            BadRecord: See `RecordReader`.
            FileNotFoundError: If there is no such file.
            ValueError: If no row can be used.
            OSError: If the table can be written nowhere.
        """
        reader = RecordReader(path, split=split, image_root=image_root, on_bad_record=on_bad_record)
        name = _fingerprint(reader)
        folders = _folders(reader.path, cache_dir)
        table = cls._find(folders, name)
        if table is None or any(reason.startswith("image: ") for reason in table.skipped):
            table = cls._write(reader, folders, name)
        if not len(table):
            raise ValueError(
                f"{path}: no usable row for split {split}; left out: {table.skipped or 'none, it is empty'}"
            )
        return table

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        split: Split,
        image_root: Path | str,
        on_bad_record: OnBadRecord,
        cache_dir: Path | str | None,
    ) -> RecordTable:
        """Opens the table that `prepare` with the same arguments wrote; never writes.

        Raises:
            FileNotFoundError: If there is no such file, or no table for it.
        """
        reader = RecordReader(path, split=split, image_root=image_root, on_bad_record=on_bad_record)
        table = cls._find(_folders(reader.path, cache_dir), _fingerprint(reader))
        if table is None:
            raise FileNotFoundError(f"no table for {path}; call prepare_data() first (the Trainer does so by itself)")
        return table

    @classmethod
    def _find(cls, folders: list[Path], name: str) -> RecordTable | None:
        for folder in folders:
            try:
                skipped = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            return cls(Dataset.from_file(str(folder / f"{name}.arrow")), skipped)
        return None

    @classmethod
    def _write(cls, reader: RecordReader, folders: list[Path], name: str) -> RecordTable:
        folder = _writable(folders)
        if is_shards(reader.path):
            # Once: the table's name tells that none of them has changed since.
            ShardSet.read(reader.path).verify()
        draft = folder / f"{name}.{uuid.uuid4().hex}.tmp"
        note = draft.with_suffix(".note")
        try:
            # A stream of our own, because the writer makes no file of its own accord while it has no row.
            with draft.open("wb") as stream:
                writer = ArrowWriter(stream=stream, features=_FEATURES, writer_batch_size=_ROWS_PER_WRITE)
                for record in reader:
                    writer.write({**asdict(record), "images": list(record.images)})
                writer.finalize(close_stream=False)
            note.write_text(json.dumps(dict(reader.skipped)), encoding="utf-8")
            # Another node may have written the same meanwhile and be reading it; over NFS that must not be replaced.
            # The note goes last: where it stands, the table is whole.
            present = cls._find([folder], name)
            if present is None or present.skipped != reader.skipped:
                draft.replace(folder / f"{name}.arrow")
                note.replace(folder / f"{name}.json")
        finally:
            draft.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        table = cls._find([folder], name)
        if table is None:
            raise FileNotFoundError(f"the table {folder / name} vanished while it was written")
        return table

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Returns the record at `index`, or a list of records for a slice."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        row = self._rows[int(index)]
        return Record(**{**row, "images": tuple(row["images"])})

    def __iter__(self) -> Iterator[Record]:
        """Yields the records in file order."""
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Returns one text column (`source`, `kind`) as an array."""
        return np.asarray(self._rows.data.column(name).to_pylist())

    def texts(self, name: str) -> Iterator[str | None]:
        """Yields one text column (`id`, `origin`, `response`) in file order, a few rows in memory at a time."""
        for chunk in self._rows.data.column(name).chunks:
            for start in range(0, len(chunk), _ROWS_PER_WRITE):
                yield from chunk.slice(start, _ROWS_PER_WRITE).to_pylist()

    def text_bytes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bytes of question and response of each record, by which its tokens can be compared with those of others.

        Arrow stores where each text begins, so that no text is read. Images, whose sizes only their files know, do not
        count.
        """
        total = np.zeros(len(self), dtype=np.int64)
        for name in ("question", "response"):
            total += pc.fill_null(pc.binary_length(self._rows.data.column(name)), 0).to_numpy()
        return total


def _fingerprint(reader: RecordReader) -> str:
    facts = (
        _FORMAT,
        str(reader.path.resolve()),
        stamp(reader.path),
        reader.split,
        str(reader.image_root),
        reader.on_bad_record,
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _folders(path: Path, cache_dir: Path | str | None) -> list[Path]:
    if cache_dir is not None:
        return [Path(cache_dir)]
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return [path.resolve().parent / ".lit_vlaa_cache", Path(home) / "lit_vlaa"]


def _writable(folders: list[Path]) -> Path:
    errors = []
    for folder in folders:
        probe = folder / f".{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            errors.append(str(error))
        else:
            return folder
    raise OSError(f"cannot write the record table anywhere ({'; '.join(errors)}); set cache_dir to a writable folder")
