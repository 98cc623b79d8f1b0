"""Small image files that ask for much work, or break decoders."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    """An image's file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def many_scans(image: Image.Image, more: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    content = saved(image, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * (more + 1) + content[-2:]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A black PNG of one pixel with chunks between its header and its data."""
    data = zlib.compress(b"\0\0\0\0")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


BOMB = zlib.compress(bytes(64 << 20), 9)
"""64 MiB in 64 KiB."""

LARGER_FRAME = (
    b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    + b"," + struct.pack("<HHHHB", 0, 0, 5000, 5000, 0) + b"\x02\x02\x44\x01\0;"
)  # fmt: skip
"""A GIF of one pixel with a frame of 25 million."""
