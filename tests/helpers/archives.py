"""Archives made and unpacked."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datamodules.hub.archives import Limits, Unpacked, unpack
from datamodules.hub.places import placing
from datamodules.sources import SOURCES

Entry = tuple[str, bytes] | tarfile.TarInfo
SMALL = Limits(file_bytes=5000, total_bytes=20_000, files=20, ratio=10, ratio_from=10_000)


def info(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def tar(path: Path, *entries: Entry, mode: str = "w:gz", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as out:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                out.addfile(entry)
            else:
                made = tarfile.TarInfo(entry[0])
                made.size = len(entry[1])
                out.addfile(made, io.BytesIO(entry[1]))
    return path


def opened(archive: Path, into: Path, **options: Any) -> Unpacked:
    into.mkdir()
    bar = SimpleNamespace(n=0, update=lambda _: None)
    given = {"place": placing(SOURCES["docvqa"]), "limits": SMALL, "other_files": "refuse", "bar": bar}
    return unpack(archive, into, **(given | options))  # type: ignore[arg-type]
