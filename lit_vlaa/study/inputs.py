"""What jobs read, and what identifies its content: files of rows, pictures, local models, benchmarks' files."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_vlaa.study.arms import Variants
from lit_vlaa.study.config import StudyFile

_FEW = 200
"""Files up to which the ends of each are read; of a folder with more (pictures) names and sizes must do."""
_END = 1 << 16


def hash_data(variants: Variants, study: StudyFile) -> dict[str, dict[str, Any]]:
    """Identifies what the study's jobs read.

    Returns:
        By path: `sha256`, `bytes` and `rows` (None where they cannot be counted) of files of rows, all None of one that
        is absent; and the same of other files and folders that a configuration names and that are there, where a
        folder's `sha256` is that of `hash_folder`, and `files` their number.
    """
    used = variants.used(study)
    found = {path: hash_file(Path(path)) for path in dict.fromkeys(p for v in used for p in v.data_files())}
    for name in dict.fromkeys(p for variant in used for p in variant.other_inputs()):
        path = Path(name).expanduser()
        if path.is_dir():
            found[name] = hash_folder(path)
        elif path.is_file():
            found.setdefault(name, {**hash_folder(path), "rows": None})
    return found


def absent(data: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Files that are not there."""
    return [path for path, entry in data.items() if entry["sha256"] is None]


def hash_folder(path: Path) -> dict[str, Any]:
    """Identifies a folder, or a single file, by the names and sizes of all files in it.

    Of up to 200 files their first and last 64 KiB count too, which tells weights of one shape apart.
    """
    files = sorted(_files(path, set()))
    total, size = hashlib.sha256(), 0
    for name, file in files:
        count = file.stat().st_size
        size += count
        total.update(f"{name}\0{count}\0".encode("utf-8", "surrogateescape"))
        if len(files) <= _FEW:
            with file.open("rb") as content:
                total.update(content.read(_END))
                content.seek(max(_END, count - _END))
                total.update(content.read(_END))
    return {"sha256": total.hexdigest(), "bytes": size, "rows": None, "files": len(files)}


def _files(path: Path, seen: set[str]) -> Iterator[tuple[str, Path]]:
    """Files at any depth by their place in the folder, through links but never around in circles."""
    if path.is_file():
        yield path.name, path
        return
    for folder, below, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(path).as_posix(), file


def hash_file(path: Path) -> dict[str, Any]:
    """SHA-256, bytes and rows of a file of rows; None where it is absent, or where rows cannot be counted."""
    if not path.is_file():
        return {"sha256": None, "bytes": None, "rows": None}
    total, lines, first = hashlib.sha256(), 0, b""
    with path.open("rb") as file:
        for line in file:
            total.update(line)
            lines += bool(line.strip())
            first = first or line.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return {"sha256": total.hexdigest(), "bytes": path.stat().st_size, "rows": lines if first == b"{" else _count(path)}


def _count(path: Path) -> int | None:
    """Rows of a JSON array."""
    # By name, since the library does not depend on the data modules.
    rows = importlib.import_module("datamodules.rows")
    try:
        return sum(1 for _ in rows.iter_rows(path))
    except rows.BadRecord:
        return None
