"""A bound on the work that a small JPEG file can ask for."""

from __future__ import annotations

import re
from typing import BinaryIO, cast

from PIL import Image

MAX_SCANS = 200
"""Of one image; progressive ones have about ten. A scan of a few bytes takes as long as one of a whole image."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""None of those that are part of the data around them."""
_END, _SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, 0xD8})


def check_scans(image: Image.Image) -> None:
    """Refuses a JPEG of very many scans before it is decoded; other images pass.

    Args:
        image: Opened from a file, of which no more than the header was read.

    Raises:
        ValueError: If it has more than `MAX_SCANS`.
    """
    if image.format not in {"JPEG", "MPO"}:
        return
    stream = cast("BinaryIO", image.fp)  # type: ignore[attr-defined,unused-ignore]
    stream.seek(0)
    scans = count_scans(stream.read())
    if scans > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, more than {MAX_SCANS}")


def count_scans(content: bytes) -> int:
    """Counts the scans of a JPEG file's first image.

    Source: ISO/IEC 10918-1, B.1.1 (markers) and B.2.3 (scans).

    Args:
        content: The file.
    """
    at, scans = 0, 0
    while found := _MARKER.search(content, at):
        at, code = found.end(), content[found.end() - 1]
        if code == _END:
            break
        scans += code == _SCAN
        if code not in _WITHOUT_LENGTH:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return scans
