"""Finding and opening images: nothing outside the image root, nothing huge, always RGB."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from datamodules.jpeg import check_scans

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

MAX_FILE_BYTES = 256 << 20
"""Of one image's file; some decoders read all of it into memory."""


class ImageError(ValueError):
    """An image that may not or cannot be opened; the message says which and why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Takes the message in two parts.

        Args:
            reason: What is wrong, in words that are the same for every image.
            detail: Which image, and more about it.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def relative_path(path: str) -> str:
    """Normalises an image path of a data file to one below the image root.

    Some released rows start with a slash that does not mean the file system's root; it is dropped. The result therefore
    never is absolute.

    Raises:
        ImageError: If the path is empty, or leads upwards.
    """
    pure = PurePosixPath(path.strip().lstrip("/"))
    if not pure.parts or "\0" in path:
        raise ImageError("no path", repr(path))
    if ".." in pure.parts or "\\" in path:
        raise ImageError("a path with '..' or a backslash", repr(path))
    return str(pure)


def locate(root: Path, path: str) -> Path:
    """Returns the file of `path`, a path below the image root.

    Args:
        root: Image root, resolved (`Path.resolve`).
        path: As `relative_path` returns it.

    Raises:
        ImageError: If there is no such file, or a symbolic link takes it out of the image root; also if no file can
            have such a name, or links lead in a circle.
    """
    try:
        found = (root / relative_path(path)).resolve()
        there = found.is_file()
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise
        found, there = root, False
    if not found.is_relative_to(root):
        raise ImageError("a link out of the image root; copy or bind-mount the images below it", f"{path!r} in {root}")
    if not there:
        raise ImageError("no such file below the image root", f"{path!r} in {root}")
    return found


def read_size(root: Path, path: str, *, max_pixels: int, content: bytes | None = None) -> tuple[int, int]:
    """Reads (width, height) of an image from its header, under the rules of `open_rgb`.

    Raises:
        ImageError: If the image may not be opened, is too large, or is broken.
    """
    with _opened(root, path, max_pixels, content) as image:
        return image.size


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's file says of itself."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    format: str
    """`PNG`, `JPEG`, `WEBP`, `GIF` or `BMP`."""
    mode: str
    """Pillow's name of the kind of pixels, such as `RGB`."""
    animated: bool
    """Whether other images follow the first."""
    turned: bool
    """Whether an orientation tag asks viewers to turn or mirror it."""


def read_header(root: Path, path: str, *, max_pixels: int, content: bytes | None = None) -> Header:
    """Reads what is known before an image is decoded, under the rules of `open_rgb`.

    Raises:
        ImageError: If the image may not be opened, is too large, or is broken.
    """
    with _opened(root, path, max_pixels, content) as image:
        form = "JPEG" if image.format == "MPO" else str(image.format)
        return Header(image.size, form, image.mode, bool(getattr(image, "is_animated", False)), _turned(image, form))


def _turned(image: Image.Image, form: str) -> bool:
    """Looks for an orientation tag where photographs have it; of a PNG that would decode the image."""
    if form not in {"JPEG", "WEBP"}:
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) not in {0, 1}
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return False  # a tag that cannot be read turns nothing


def open_rgb(root: Path, path: str, *, max_pixels: int, content: bytes | None = None) -> Image.Image:
    """Opens an image as RGB.

    Transparency is laid over white, 16-bit grey is scaled to 8 bits, an animation gives its first frame. The
    orientation tag of photographs is ignored, as common VLM pipelines do. Nothing beside the pixels is kept.

    Args:
        root: Image root, resolved.
        path: Path below it.
        max_pixels: Width times height above which the image is refused before it is decoded.
        content: The file's bytes, where they are known; then nothing is looked for below the root.

    Raises:
        ImageError: If the image may not be opened, is too large, or is broken.
    """
    with _opened(root, path, max_pixels, content) as image:
        check_scans(image)
        opened = _to_rgb(image)
        opened.info = {}  # Pillow copies texts, profiles and the like, up to 64 MiB: not to be carried through a batch
        return opened


@contextmanager
def _opened(root: Path, path: str, max_pixels: int, content: bytes | None) -> Iterator[Image.Image]:
    """An image of which only the header was read; what goes wrong then and later becomes an `ImageError`."""
    file = locate(root, path) if content is None else BytesIO(content)
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if size > MAX_FILE_BYTES:
        raise ImageError("its file is too large", f"{path!r}: {size} > {MAX_FILE_BYTES} bytes")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                detail = f"{path!r}: {image.width}x{image.height} > {max_pixels}"
                raise ImageError("more pixels than max_image_pixels", detail)  # noqa: TRY301  # the file is to be closed
            yield image
    except UnidentifiedImageError as error:  # whose own words hold an address in memory
        raise ImageError("cannot be read", f"{path!r}: no {', '.join(_FORMATS)}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # broken files make decoders raise IndexError, struct.error and others
        raise ImageError("cannot be read", f"{path!r}: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max(initial=0) > 255:
            values >>= 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")
