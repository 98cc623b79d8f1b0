"""What the rows ask for, what is there, and how that compares with the paper's table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.hub.archives import spelling
from datamodules.hub.places import OWN_SITES, Split, used_by
from datamodules.images import ImageError, relative_path
from datamodules.rows import BadRecord, iter_rows
from datamodules.sources import SOURCES, source_of

_NAMED = 5


@dataclass(slots=True)
class Count:
    """What the rows of one source ask for, and what is there."""

    rows: dict[Split, int] = field(default_factory=dict)
    asked: dict[str, None] = field(default_factory=dict)
    """Paths of images below the image root in the rows' order, each once however many rows show it."""
    missing: int = 0
    named: list[str] = field(default_factory=list)
    """The first few that are missing, with the spelling that is there instead where there is one."""


def read(files: Mapping[Split, Path], sources: Sequence[str]) -> dict[str, Count]:
    """Counts rows by source and notes their images.

    Args:
        files: Split files.
        sources: Sources to look at.

    Raises:
        BadRecord: If a file breaks off.
    """
    counts = {source: Count() for source in sources}
    for split, file in files.items():
        for _, row in tqdm(iter_rows(file), desc=f"reading {file.name}", unit=" rows", disable=None):
            images = [] if isinstance(row, BadRecord) else _images(row.get("image"))
            name = "" if isinstance(row, BadRecord) else str(row.get("id", ""))
            source = source_of(images[0] if images else "", name)
            if source in counts:
                counts[source].rows[split] = counts[source].rows.get(split, 0) + 1
                counts[source].asked.update(dict.fromkeys(images))
    return counts


def look(counts: Mapping[str, Count], image_root: Path) -> None:
    """Looks which of the images that rows ask for are there."""
    for found in counts.values():
        for image in found.asked:
            if not os.path.isfile(image_root / image):  # noqa: PTH113  (a name too long for a file is none)
                found.missing += 1
                if len(found.named) < _NAMED:
                    found.named.append(_missing(image_root / image, image))


def _images(value: object) -> list[str]:
    """The paths of a row that can be read as such."""
    paths = []
    for path in value if isinstance(value, list) else [value]:
        try:
            paths.append(relative_path(path) if isinstance(path, str) else "")
        except ImageError:
            continue
    return [path for path in paths if path]


def _missing(path: Path, asked: str) -> str:
    """Names a missing image, and the file that is there under another spelling."""
    if not path.parent.is_dir():
        return ascii(asked)[1:-1]
    same = [other.name for other in path.parent.iterdir() if spelling(other.name) == spelling(path.name)]
    # A row may hold anything, what a terminal obeys too.
    return ascii(asked)[1:-1] + (f" (there is {same[0]!a})" if same else "")


def table(counts: Mapping[str, Count], splits: Sequence[Split]) -> list[str]:
    """The counts by source, as lines."""
    head = ["source", *(cell for split in splits for cell in (f"{split} rows", "paper")), "images", "found", "missing"]
    rows = [head]
    for name, found in counts.items():
        cells = [f"{n:,}" for split in splits for n in (found.rows.get(split, 0), used_by(split, SOURCES[name]))]
        asked = len(found.asked)
        numbers = (asked, asked - found.missing, found.missing)
        rows.append([name, *cells, *(f"{n:,}" for n in numbers)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def remarks(counts: Mapping[str, Count], splits: Sequence[Split]) -> Iterator[str]:
    """What is not as it should be, one line each, with the remedy."""
    for name, found in counts.items():
        for split in splits:
            if found.rows.get(split, 0) != used_by(split, SOURCES[name]):
                yield f"{name}: {found.rows.get(split, 0)} {split} rows, {used_by(split, SOURCES[name])} in the paper"
        if found.missing:
            remedy = (
                f"give --{name} PATH with them"
                if name in OWN_SITES
                else f"remove images/{name} and run the command again"
            )
            more = ", ..." if found.missing > len(found.named) else ""
            yield f"{name}: {found.missing} images missing: {', '.join(found.named)}{more}; {remedy}"
