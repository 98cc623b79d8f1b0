"""Images of benchmark rows: kept as text or by their place in a file, and decoded when they are opened."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, UnidentifiedImageError

from callbacks.benchmarks.interface import EvalImage
from datamodules.jpeg import check_scans

MAX_PIXELS = 1 << 26
"""Width times height above which an image is refused before it is decoded."""

MAX_BYTES = 1 << 26
"""Size above which an encoded image is refused."""

MAX_IMAGES = 64
"""Images of one row."""

POINTER_CHARS = 64
"""A cell of at most so many characters holds no image: it names the row whose image it shares."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_ITEM = re.compile(r"\s*(?:'([^'\"\\\[\],]*)'|\"([^'\"\\\[\],]*)\")\s*(,|\Z)")


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as the base64 text of its file."""

    data: str = field(repr=False)
    origin: str = ""
    """`file:row`, for messages."""

    @property
    def fingerprint(self) -> str:
        """Digest of the text."""
        return digest(self.data.encode("utf-8", "surrogatepass"))

    def open(self) -> Image.Image:
        """Decodes the image.

        Raises:
            ValueError: If it is too large, in an unknown format, or broken; the message names the row.
        """
        where = self.origin or "image"
        if len(self.data) <= POINTER_CHARS:
            raise ValueError(f"{where}: the image cell holds {self.data!r}, too short for an image")
        if len(self.data) > MAX_BYTES // 3 * 4 + 4:
            raise ValueError(f"{where}: the image's {len(self.data)} characters of base64 exceed {MAX_BYTES} bytes")
        try:
            content = base64.b64decode("".join(self.data.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where}: the image is not base64: {error}") from error
        return decode(content, where)


def digest(content: bytes) -> str:
    """16 hexadecimal digits that stand for `content`."""
    return hashlib.sha256(content).hexdigest()[:16]


def decode(content: bytes, where: str) -> Image.Image:
    """Decodes an image file as RGB.

    As in the reference, palettes and transparency are converted plainly, without laying the image over a background.

    Args:
        content: The file.
        where: Names the row in messages.

    Raises:
        ValueError: If it is too large, in an unknown format, or broken.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"{where}: the image's {len(content)} bytes exceed {MAX_BYTES}")
    try:
        with warnings.catch_warnings():
            # PIL warns of images that the next check refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        with image:
            if image.width * image.height <= MAX_PIXELS:
                check_scans(image)
                return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: the image is in none of the formats {', '.join(_FORMATS)}") from error
    except MemoryError:
        raise
    except Exception as error:  # broken files make decoders raise IndexError, struct.error and others
        raise ValueError(f"{where}: the image cannot be read: {error or type(error).__name__}") from error
    raise ValueError(f"{where}: the image's {image.width} x {image.height} pixels exceed {MAX_PIXELS}")


def split_cell(cell: str, where: str) -> list[str]:
    """The images of a cell: one, or those of a list's repr (`['...', '...']`).

    Args:
        cell: Content of the column `image`.
        where: Names the row in messages.

    Raises:
        ValueError: If the cell opens a list that is none of quoted base64 texts, or one of more than `MAX_IMAGES`.
    """
    text = cell.strip()
    if not text.startswith("["):
        return [text]
    inside = text.removeprefix("[").removesuffix("]")
    items: list[str] = []
    position = 0
    while text.endswith("]") and len(items) < MAX_IMAGES and (match := _ITEM.match(inside, position)):
        items.append(match[1] if match[1] is not None else match[2])
        position = match.end()
        if not match[3]:
            return items
    raise ValueError(f"{where}: column 'image' is not a list of at most {MAX_IMAGES} base64 texts: {text[:40]!r}...")


def row_images(row: Mapping[str, Any], origin: str = "") -> tuple[EvalImage, ...]:
    """The images of a row as `Benchmark.record_from_row` receives it.

    Args:
        row: Cells by column. `image` holds base64, a list's repr of several, or images that `load_records` has made
            ready; without it the row has none.
        origin: `file:row`, for messages.

    Raises:
        ValueError: If the cell is malformed. That it holds an image is checked when it is opened.
    """
    cell = row.get("image")
    if cell is None or cell == "":
        return ()
    if isinstance(cell, str):
        return tuple(EncodedImage(text, origin) for text in split_cell(cell, origin or "row"))
    return tuple(cell) if isinstance(cell, (list, tuple)) else (cell,)
