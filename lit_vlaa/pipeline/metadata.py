"""Step 1: rows of any source as rows of one form, with usable images, each question about an image once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from datamodules.images import ImageError, locate, read_size
from datamodules.records import normalise
from datamodules.rows import BadRecord
from lit_vlaa.pipeline.adapters import rows_of
from lit_vlaa.pipeline.config import BuildConfig, SourceConfig
from lit_vlaa.pipeline.hub import hub_rows
from lit_vlaa.pipeline.rows import Reject, Row, StepWriter, file_digest, fingerprint
from lit_vlaa.types import Record

Found = tuple[int, Record | BadRecord, dict[str, str]]


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Whether a row belongs to shard i of n (i from 1): the same on every machine and in every run."""
    index, count = shard
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count == index - 1


def source_path(source: SourceConfig, base: Path) -> Path:
    """The file of a source; of a hub set the folder, which need not exist."""
    return base / source.path


def source_state(source: SourceConfig, base: Path) -> str:
    """What tells whether a source changed: the digest of its file.

    Of a hub set in a local folder: names, sizes and times of the files. One on the Hub is known by its settings.

    Raises:
        ValueError: If the file cannot be read.
    """
    path = source_path(source, base)
    if source.adapter != "hub":
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return fingerprint(stats) if stats else ""


def read_metadata(
    config: BuildConfig,
    writer: StepWriter,
    *,
    base: Path,
    shard: tuple[int, int],
    limit: int | None,
    tick: Callable[[], object],
) -> None:
    """Writes the rows of all sources.

    Args:
        config: The build.
        writer: Takes rows and rejects.
        base: Folder of the configuration.
        shard: Which rows to take (i, n), by a hash of their ids.
        limit: Most rows to take over all shards, counted before images are looked at; None for all.
        tick: Called after each row.

    Raises:
        ValueError: If a source or the image root cannot be read.
    """
    image_root = (base / config.image_root).resolve()

    def shown(text: str) -> str:
        """Without where this machine keeps the files: rejects are published with the set."""
        return text.replace(str(image_root), "image_root").replace(f"{base}/", "")

    if not image_root.is_dir() and not any(source.adapter == "hub" for source in config.sources):
        raise ValueError(f"image_root {image_root} is no folder; --config gives it, below the folder of its file")
    ids: set[str] = set()
    asked: set[bytes] = set()
    taken = 0
    for number, (row, found, context) in enumerate(_all(config, base, image_root)):
        if limit is not None and taken == limit:
            break
        tick()
        if isinstance(found, BadRecord):
            # A row that cannot be read has no id to shard by; the first shard tells of it.
            if shard[0] == 1:
                reject = Reject(f"{found.field}: {found.reason}", shown(str(found)))
                writer.reject(reject, number=number, name="", origin=shown(f"{found.file}:{row}"))
            continue
        record = replace(found, id=f"{found.id}#{number}") if found.id in ids else found
        ids.add(record.id)
        pair = hashlib.sha256("\0".join((*record.images, "", " ".join(record.question.split()))).encode()).digest()
        repeated = pair in asked
        asked.add(pair)
        taken += not repeated
        if not in_shard(record.id, shard):
            continue
        outcome = Reject("the same question about the same image again") if repeated else None
        digests: tuple[str, ...] = ()
        if outcome is None:
            try:
                digests = tuple(_looked_at(image_root, image, config.max_image_pixels) for image in record.images)
            except ImageError as error:
                outcome = Reject(f"image: {error.reason}", shown(error.detail))
        origin = shown(record.origin)
        if outcome is not None:
            writer.reject(outcome, number=number, name=record.id, origin=origin)
            continue
        writer.keep(
            Row(
                number=number,
                id=record.id,
                source=record.source,
                kind=record.kind,
                images=record.images,
                digests=digests,
                question=record.question,
                truth=record.truth,
                context=context,
                origin=origin,
            )
        )


def _all(config: BuildConfig, base: Path, image_root: Path) -> Iterator[Found]:
    for source in config.sources:
        path = source_path(source, base)
        local = str(path) if path.is_dir() else source.path
        try:
            yield from _records(source, path, local, image_root)
        except (BadRecord, OSError) as error:
            raise ValueError(f"sources: {error}") from error


def _records(source: SourceConfig, path: Path, local: str, image_root: Path) -> Iterator[Found]:
    for row, raw in rows_of(source, path, lambda source: hub_rows(source, local, image_root)):
        if isinstance(raw, BadRecord):
            yield row, raw, {}
            continue
        context = raw.pop("context")
        try:
            record = normalise(raw, file=str(path), number=row, split="grpo")
        except BadRecord as error:
            yield row, error, {}
            continue
        yield row, record if source.name is None else replace(record, source=source.name), context


def _looked_at(image_root: Path, image: str, max_pixels: int) -> str:
    """The digest of an image whose header can be read."""
    size = read_size(image_root, image, max_pixels=max_pixels)
    if min(size) < 1:
        raise ImageError("cannot be read", f"{image!r}: {size}")
    return file_digest(locate(image_root, image))
