"""The rows to choose from, and copies of those that were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.records import OnBadRecord
from datamodules.rows import is_array, iter_texts
from datamodules.shards import ShardSet, is_shards, stamped, trouble_with
from datamodules.subsets import copy_rows, numbers_of
from datamodules.table import RecordTable
from lit_vlaa.digests import sha256_of
from lit_vlaa.selection.choice import Aha, Integers
from lit_vlaa.traces import Matching, count_cues
from lit_vlaa.whole_files import replacing


@dataclass(frozen=True, slots=True)
class Pool:
    """The rows of a data file that may be kept."""

    table: RecordTable
    """All usable rows."""
    places: Integers
    """`[R]` which of them may be kept, ascending."""
    rows: Integers
    """`[R]` their numbers in the data file, from 1."""
    sources: tuple[str, ...]
    """`[R]` source of each."""


def read_pool(
    file: Path,
    image_root: Path | None,
    *,
    on_bad_record: OnBadRecord,
    cache_dir: str | None,
    aha: Aha | None = None,
    matching: Matching = "substring",
) -> Pool:
    """Reads a data file.

    Args:
        file: JSON array, JSON Lines or shards; each row to be kept needs a response.
        image_root: Folder of the images, which must exist; None where they lie in the shards.
        on_bad_record: Whether a row that cannot be used stops, or is left out.
        cache_dir: See `RecordTable.prepare`.
        aha: Keep rows whose response has an aha cue, or those without; None for all.
        matching: Where a cue counts.

    Raises:
        ValueError: If a row or the file cannot be used, or no row remains.
        OSError: If a file cannot be read.
    """
    table = RecordTable.prepare(
        file, split="sft", image_root=image_root or file, on_bad_record=on_bad_record, cache_dir=cache_dir
    )
    origins = map(str, table.texts("origin"))
    if is_shards(file):
        numbers = numbers_of(file, origins)
    else:
        numbers = np.fromiter((int(origin.rpartition(":")[2]) for origin in origins), np.int64)
    keep = np.ones(len(table), bool)
    if aha is not None:
        cues = (any(count_cues(text or "", matching=matching).values()) for text in table.texts("response"))
        keep = np.fromiter(cues, bool, len(table)) == (aha == "with")
    if not keep.any():
        raise ValueError(f"--aha {aha} leaves none of the {len(table)} rows of {file}")
    places = np.flatnonzero(keep).astype(np.int64)
    known = dict.fromkeys(str(source) for source in table.texts("source"))
    names = {name: name for name in known}  # one object a name, not one a row
    sources = [names[str(source)] for source in table.texts("source")]
    return Pool(table, places, numbers[places], tuple(sources[place] for place in places.tolist()))


def find_root(file: Path, image_root: Path | None) -> Path | None:
    """Looks for data file and images; gives the images' folder, None where they lie in shards.

    Raises:
        ValueError: If one of them is not there; the message names the flag.
    """
    if trouble := trouble_with(file):
        raise ValueError(f"--data-file {file} {trouble}")
    if is_shards(file) and ShardSet.read(file).images == "embed":
        return None
    if image_root is None:
        raise ValueError("--image-root is missing: the folder that image paths start from")
    if not image_root.is_dir():
        raise ValueError(f"--image-root {image_root} is no folder")
    return image_root


def digest_of(file: Path) -> str:
    """Digest of a file's bytes; of shards that of their manifest, which holds theirs."""
    return sha256_of(stamped(file))


def write_subsets(file: Path, ranks: Mapping[int, int], targets: Mapping[int, Path]) -> None:
    """Copies rows as they stand in their file, in its order and form; each copy appears whole.

    Args:
        file: JSON array, JSON Lines or shards; copies of shards are folders of shards.
        ranks: Of each row to keep, by its number, from 0: a copy of N rows takes those below N.
        targets: Copies by their number of rows.

    Raises:
        ValueError: If the file is not what it was when the rows were chosen, or a copy cannot take its place.
    """
    if is_shards(file):
        copy_rows(file, ranks, targets)
        return
    array = is_array(file)
    with ExitStack() as stack:
        streams = {
            count: stack.enter_context(stack.enter_context(replacing(target)).open("wb"))
            for count, target in targets.items()
        }
        written = dict.fromkeys(targets, 0)
        for stream in streams.values():
            stream.write(b"[\n" if array else b"")
        most = max(targets)
        for row, text in iter_texts(file):
            rank = ranks.get(row, most)
            if rank >= most:
                continue
            content = text.encode()
            for count, stream in streams.items():
                if rank < count:
                    stream.write((b",\n" if array and written[count] else b"") + content + (b"" if array else b"\n"))
                    written[count] += 1
        for stream in streams.values():
            stream.write(b"\n]\n" if array else b"")
        if lacking := [count for count in targets if written[count] != count]:
            raise ValueError(
                f"{file} changed: {lacking[0]} rows were chosen and {written[lacking[0]]} found; run again"
            )
