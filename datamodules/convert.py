"""`lit-vlaa data convert`: a data file as Parquet shards, with the images' files inside or their paths beside.

The original bytes of each image are kept, never encoded anew, and of each row the whole object. The same input and
options give the same bytes whatever the number of processes (with one version of pyarrow). Where to cut is decided in
one pass over the rows; processes write the shards meanwhile. A command that was stopped keeps the finished ones.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.hub.remote import sha256_of
from datamodules.images import ImageError, locate
from datamodules.records import OnBadRecord, Split, image_paths, normalise
from datamodules.rows import BadRecord, iter_rows
from datamodules.shards import FORMAT, MANIFEST, MAX_IMAGE_BYTES, SCHEMA, Images
from datamodules.sources import source_of
from lit_vlaa.whole_files import hidden, replacing

_WORK = ".convert"
_GROUP_ROWS = 16
_GROUP_BYTES = 8 << 20
"""Rows are read a group at a time, so groups stay small; several rows make one where images are small."""


def run(
    *,
    output_dir: Path,
    data_file: Path,
    image_root: Path | None = None,
    split: Split | None = None,
    images: Images = "embed",
    shard_mb: float = 500,
    workers: int = 2,
    on_bad_record: OnBadRecord = "error",
) -> int:
    """Writes a data file as Parquet shards that `--data.data_file OUTPUT_DIR` reads.

    Each row is kept as it stands, beside its images: the bytes of their files, or their paths. A command that was
    stopped goes on with the shards that it lacks.

    Args:
        output_dir: Folder to write to: new, empty, or of an earlier conversion.
        data_file: Rows: a JSON array or JSON Lines in any form of VLAA-Thinking.
        image_root: Folder that the rows' image paths start from; needed to embed images.
        split: Look whether every row has what this split needs, as the data module does; null keeps rows as they are.
        images: `embed` for the bytes of the images' files in the shards, `link` for their paths alone.
        shard_mb: Megabytes of rows and images in a shard, about.
        workers: Processes that write shards.
        on_bad_record: What to do about a row that cannot be read, whose images are not there, or that lacks what
            `split` needs: stop with `error`, leave it out and count it with `skip`.

    Raises:
        ValueError: If an argument is out of range, or no row is left.
        BadRecord: At the first bad row with `on_bad_record="error"`.
        OSError: If something cannot be read or written.
    """
    if not data_file.is_file():
        raise FileNotFoundError(f"--data-file {data_file} does not exist; seen from {Path.cwd()}")
    if not 0 < shard_mb < float("inf") or workers < 1:
        raise ValueError(f"--shard-mb must be positive and --workers at least 1, got {shard_mb} and {workers}")
    if images == "embed" and (image_root is None or not image_root.is_dir()):
        raise FileNotFoundError(
            f"--image-root {image_root} is no folder; images are embedded from it (or --images link)"
        )
    known = (output_dir / MANIFEST).exists() or (output_dir / _WORK).exists()
    if output_dir.exists() and any(output_dir.iterdir()) and not known:
        raise ValueError(f"--output-dir {output_dir} is not empty and holds no shards; give another folder")
    (output_dir / _WORK).mkdir(parents=True, exist_ok=True)
    # Without it nobody takes a folder for whole while its shards change.
    (output_dir / MANIFEST).unlink(missing_ok=True)
    cutter = _Cutter(
        folder=output_dir,
        file=data_file,
        root=image_root.resolve() if image_root is not None and images == "embed" else None,
        split=split,
        most_bytes=int(shard_mb * 10**6),
        on_bad_record=on_bad_record,
    )
    entries = _write_all(cutter, workers)
    if not entries:
        raise ValueError(f"{data_file}: no row to convert; left out: {dict(cutter.skipped) or 'none, it is empty'}")
    _finish(output_dir, data_file, images, split, entries)
    kept = sum(entry.kept for entry in entries)
    left = "".join(f"; left out {count} x {reason}" for reason, count in sorted(cutter.skipped.items()))
    rows, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
    sys.stdout.write(
        f"{output_dir}: {rows:,} rows in {len(entries)} shards ({kept} were there), {size / 1e6:,.1f} MB{left}\n"
    )
    return 0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A finished shard."""

    file: str
    rows: int
    first: int
    """Number of its first row in the original file."""
    bytes: int
    sha256: str
    kept: bool
    """Whether an earlier command had written it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard to write."""

    folder: Path
    index: int
    key: str
    """Tells its content: its rows, and size and time of change of its images."""
    root: Path | None
    """Folder of the images to embed."""

    @property
    def target(self) -> Path:
        return self.folder / f"rows-{self.index:05d}.parquet"

    @property
    def rows(self) -> Path:
        return self.folder / _WORK / f"{self.index:05d}.rows"

    @property
    def stamp(self) -> Path:
        return self.folder / _WORK / f"{self.index:05d}.json"


@dataclass(slots=True)
class _Cutter:
    """Cuts a data file into jobs, in one pass."""

    folder: Path
    file: Path
    root: Path | None
    split: Split | None
    most_bytes: int
    on_bad_record: OnBadRecord
    skipped: Counter[str] = field(default_factory=Counter)

    def jobs(self) -> Iterator[_Job]:
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
                yield _Job(self.folder, index, digest.hexdigest(), self.root)
                index, size, stream = index + 1, 0, None
            if stream is None:
                stream = _Job(self.folder, index, "", None).rows.open("wb")
                digest = hashlib.sha256(repr((FORMAT, pa.__version__, self.root is None)).encode())
            stream.write(line)
            digest.update(line + facts)
            size += cost
        if stream is not None:
            stream.close()
            yield _Job(self.folder, index, digest.hexdigest(), self.root)

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
            if stat.st_size > MAX_IMAGE_BYTES:
                raise BadRecord.at(str(self.file), number, "image", f"more than {MAX_IMAGE_BYTES} bytes", path)
            facts += f"{stat.st_size}:{stat.st_mtime_ns};"
            cost += stat.st_size
        line = json.dumps([number, source, text, paths]).encode()
        return line + b"\n", facts.encode(), cost

    def _image(self, root: Path, number: int, path: str) -> Path:
        try:
            return locate(root, path)
        except ImageError as error:
            raise BadRecord.at(str(self.file), number, "image", error.reason, error.detail) from error


def _write_all(cutter: _Cutter, workers: int) -> list[_Entry]:
    """Cuts the rows and has the shards written meanwhile; returns them in order."""
    pending: list[Future[_Entry]] = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            with tqdm(desc="shards", unit="shard", disable=None) as bar:
                for job in cutter.jobs():
                    pending.append(pool.submit(_write, job))
                    pending[-1].add_done_callback(lambda _: bar.update())
                bar.total = len(pending)
                return [future.result() for future in pending]
        except BrokenProcessPool as error:
            raise OSError(
                "a process that wrote shards was killed (too little memory?); run the command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write(job: _Job) -> _Entry:
    """Writes a shard, unless it is there with the same content."""
    found = _finished(job)
    if found is None:
        part = hidden(job.target)
        rows = first = 0
        try:
            with pq.ParquetWriter(
                part,
                SCHEMA,
                # The bytes of images do not shrink, and uncompressed ones are read where they are mapped.
                compression={"number": "zstd", "source": "zstd", "row": "zstd", "images.list.element.path": "zstd"}
                | {"images.list.element.bytes": "NONE"},
                use_dictionary=["source"],
                write_statistics=["number"],
            ) as writer:
                for group in _groups(job):
                    first = first or group[0]["number"]
                    rows += len(group)
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=len(group))
            entry = _Entry(job.target.name, rows, first, part.stat().st_size, sha256_of(part), kept=False)
            part.replace(job.target)
        finally:
            part.unlink(missing_ok=True)
        with replacing(job.stamp) as stamp:
            stamp.write_text(json.dumps({"key": job.key, "entry": _facts(entry)}), encoding="utf-8")
        found = entry
    job.rows.unlink()
    return found


def _finished(job: _Job) -> _Entry | None:
    """The shard as an earlier command left it, if it has the same content and is whole."""
    try:
        note = json.loads(job.stamp.read_text(encoding="utf-8"))
        entry = _Entry(**note["entry"], kept=True)
        same = note["key"] == job.key and sha256_of(job.target) == entry.sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if same else None


def _groups(job: _Job) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    with job.rows.open("rb") as stream:
        for line in stream:
            number, source, text, paths = json.loads(line)
            images = [
                {"path": path, "bytes": None if job.root is None else locate(job.root, path).read_bytes()}
                for path in paths
            ]
            group.append({"number": number, "source": source, "row": text, "images": images})
            size += len(text) + sum(len(image["bytes"] or b"") for image in images)
            if len(group) == _GROUP_ROWS or size > _GROUP_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _facts(entry: _Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__slots__ if name != "kept"}


def _finish(folder: Path, file: Path, images: Images, split: Split | None, entries: list[_Entry]) -> None:
    """Removes what belongs to no shard of these and writes the manifest, last."""
    names = {entry.file for entry in entries}
    for path in folder.glob("rows-*.parquet"):
        if path.name not in names:
            path.unlink()
    for path in (folder / _WORK).glob("*.json"):
        if f"rows-{path.stem}.parquet" not in names:
            path.unlink()
    facts = {
        "format": FORMAT,
        "images": images,
        "split": split,
        "rows": sum(entry.rows for entry in entries),
        "source": {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)},
        "shards": [_facts(entry) for entry in entries],
    }
    with replacing(folder / MANIFEST) as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
