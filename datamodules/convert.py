"""`lit-vlaa data convert`: a data file as Parquet shards, with the images' files inside or their paths beside.

The original bytes of each image are kept, never encoded anew, and of each row the whole object. The same input and
options give the same bytes whatever the number of processes (with one version of pyarrow). Where to cut is decided in
one pass over the rows; processes write the shards meanwhile. A command that was stopped keeps the finished ones.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.cutting import WORK, Cutter, Job
from datamodules.disk import explain
from datamodules.images import locate
from datamodules.records import OnBadRecord, Split
from datamodules.shards import FORMAT, GROUP_BYTES, GROUP_ROWS, MANIFEST, SCHEMA, Images, open_writer
from datamodules.worker_pool import worker_pool
from lit_vlaa.digests import sha256_of
from lit_vlaa.hints import missing
from lit_vlaa.whole_files import hidden, replacing


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
        fault = "is a folder; name the file with the rows" if data_file.is_dir() else missing(data_file)
        raise FileNotFoundError(f"--data-file {data_file} {fault}")
    if not 0 < shard_mb < float("inf") or workers < 1:
        raise ValueError(f"--shard-mb must be positive and --workers at least 1, got {shard_mb} and {workers}")
    if images == "embed" and (image_root is None or not image_root.is_dir()):
        given = "is needed" if image_root is None else f"{image_root} is no folder"
        raise FileNotFoundError(f"--image-root {given}; images are embedded from it (or --images link)")
    cutter = Cutter(
        folder=output_dir,
        file=data_file,
        root=image_root.resolve() if image_root is not None and images == "embed" else None,
        split=split,
        most_bytes=int(shard_mb * 10**6),
        on_bad_record=on_bad_record,
    )
    try:
        with _begun(output_dir) as let_go:
            entries = _write_all(cutter, workers, let_go)
            if not entries:
                left = dict(cutter.skipped) or "none, it is empty"
                raise ValueError(f"{data_file}: no row to convert; left out: {left}")
            _finish(output_dir, data_file, images, split, entries)
    except OSError as error:
        raise OSError(explain(error, output_dir, remedy="give another folder, and run the command again")) from error
    kept = sum(entry.kept for entry in entries)
    left = "".join(f"; left out {count} x {reason}" for reason, count in sorted(cutter.skipped.items()))
    rows, size = sum(entry.rows for entry in entries), sum(entry.bytes for entry in entries)
    sys.stdout.write(
        f"{output_dir}: {rows:,} rows in {len(entries)} shards ({kept} were there), {size / 1e6:,.1f} MB{left}\n"
    )
    return 0


@contextmanager
def _begun(folder: Path) -> Iterator[Callable[[], None]]:
    """Makes the folder, unless it is somebody else's, marks it as not whole, and lets one command at a time work on it.

    Yields:
        What a forked process calls, or it would keep others out once this one has been killed.

    Raises:
        ValueError: If it holds other things than shards, or another command writes to it.
    """
    known = (folder / MANIFEST).exists() or (folder / WORK).exists()
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise ValueError(f"--output-dir {folder} is not empty and holds no shards; give another folder")
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with (folder / WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another `lit-vlaa data convert` is writing to {folder}; wait for it") from error
        # Without it nobody takes a folder for whole while its shards change.
        (folder / MANIFEST).unlink(missing_ok=True)
        yield lock.close


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


def _write_all(cutter: Cutter, workers: int, start: Callable[[], None]) -> list[_Entry]:
    """Cuts the rows and has the shards written meanwhile; returns them in order."""
    entries: list[_Entry] = []
    running: set[Future[_Entry]] = set()
    try:
        with worker_pool(workers, start) as pool, tqdm(desc="shards", unit="shard", disable=None) as bar:

            def collect(*, block: bool) -> None:
                found = pool.finished(running, block=block)
                entries.extend(found)
                bar.update(len(found))

            try:
                for job in cutter.jobs():
                    running.add(pool.submit(_write, job))
                    collect(block=False)  # what went wrong shows at once, not after the last row
                bar.total = len(entries) + len(running)
                while running:
                    collect(block=True)
            except KeyboardInterrupt:
                sys.stderr.write(
                    "lit-vlaa: shards in progress are finished (unless Ctrl-C is pressed again); "
                    "the same command goes on from there\n"
                )
                raise
    except BrokenProcessPool as error:
        raise OSError("a process that wrote shards was killed (too little memory?); run the command again") from error
    return sorted(entries, key=lambda entry: entry.first)


def _write(job: Job) -> _Entry:
    """Writes a shard, unless it is there with the same content."""
    found = _finished(job)
    if found is None:
        part = hidden(job.target)
        rows = first = 0
        try:
            with open_writer(part) as writer:
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


def _finished(job: Job) -> _Entry | None:
    """The shard as an earlier command left it, if it has the same content and is whole."""
    try:
        note = json.loads(job.stamp.read_text(encoding="utf-8"))
        entry = _Entry(**note["entry"], kept=True)
        same = note["key"] == job.key and sha256_of(job.target) == entry.sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if same else None


def _groups(job: Job) -> Iterator[list[dict[str, Any]]]:
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
            if len(group) == GROUP_ROWS or size > GROUP_BYTES:
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
    # A process that was killed leaves drafts.
    for path in (*folder.glob(".rows-*.part"), *(folder / WORK).glob("*.rows")):
        path.unlink()
    for path in (folder / WORK).glob("*.json"):
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
