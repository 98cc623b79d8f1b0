"""Images on their way into a request."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import partial
from io import BytesIO
from pathlib import Path

from datamodules.images import locate, open_rgb, read_size
from lit_vlaa.endpoints.replies import Picture
from lit_vlaa.pipeline.rows import file_digest

_FORMAT = 1
_JPEG_QUALITY = 92


def picture(root: Path, path: str, *, max_pixels: int, max_image_pixels: int) -> Picture:
    """An image below the image root, scaled down to a budget when it is sent.

    Args:
        root: Image root, resolved.
        path: Path below it.
        max_pixels: Width times height that is sent at most.
        max_image_pixels: Width times height above which the image is refused.

    Raises:
        ImageError: If it may not or cannot be opened.
        ValueError: If it cannot be read.
    """
    size = scaled(read_size(root, path, max_pixels=max_image_pixels), max_pixels)
    content = file_digest(locate(root, path))
    digest = hashlib.sha256(f"{_FORMAT} {content} {size[0]}x{size[1]}".encode()).hexdigest()
    return Picture(digest, size, partial(_data_uri, root, path, size, max_image_pixels))


def scaled(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels that keep the shape within a budget; never larger than `size`.

    Example:
        >>> scaled((200, 100), 5000)
        (100, 50)
    """
    width, height = size
    if width * height <= max_pixels:
        return size
    factor = math.sqrt(max_pixels / (width * height))
    wide, high = max(math.floor(width * factor), 1), max(math.floor(height * factor), 1)
    return min(wide, max_pixels // high), min(high, max_pixels)


def _data_uri(root: Path, path: str, size: tuple[int, int], max_image_pixels: int) -> str:
    image = open_rgb(root, path, max_pixels=max_image_pixels)
    if image.size != size:
        image = image.resize(size)
    photograph = Path(path).suffix.lower() in {".jpg", ".jpeg", ".webp"}
    buffer = BytesIO()
    if photograph:
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    else:
        image.save(buffer, format="PNG")
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
