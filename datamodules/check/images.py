"""Looking at one image the way a run opens it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from datamodules.images import ImageError, locate, open_rgb, read_header

_DIGEST_BYTES = 16
_MOST_BYTES = 32 << 20
"""Of a file that is held in memory."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}
_USUAL_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


@dataclass(frozen=True, slots=True)
class SeenImage:
    """What is known of an image."""

    digest: bytes
    """Of the file's content; of its path where that was not read."""
    size: tuple[int, int] | None
    """(width, height) in pixels; None where it cannot be used."""
    findings: tuple[tuple[str, str], ...]
    """Problems with their details."""


def look_at(root: Path | None, path: str, *, max_pixels: int, fast: bool, content: bytes | None = None) -> SeenImage:
    """Opens an image, decodes it and compares what it is with what its name says.

    Args:
        root: Image root, resolved; needed without `content`.
        path: Path below it.
        max_pixels: Width times height above which a run refuses it.
        fast: Read the header alone; the file is then told by its path.
        content: The file's bytes, where they are known.
    """
    by_path = SeenImage(by_name(path), None, ())
    if root is None and content is None:
        return by_path
    base = root or Path()
    try:
        if content is None and not fast:
            content = _content(locate(base, path))  # read once for all that follows
        header = read_header(base, path, max_pixels=max_pixels, content=content)
        if not fast:
            open_rgb(base, path, max_pixels=max_pixels, content=content)
        digest = by_path.digest if fast else digest_of(base, path, content)
    except ImageError as error:
        return SeenImage(by_path.digest, None, ((_problem(error), f"{error.reason}: {error.detail}"),))
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        return SeenImage(by_path.digest, None, (("image_missing", f"{path!r}: {error}"),))
    findings = []
    expected = _FORMATS.get(Path(path).suffix.lower())
    if expected not in {None, header.format}:
        findings.append(("image_suffix", f"{path!r}: {header.format}"))
    if header.mode not in _USUAL_MODES or header.animated:
        findings.append(("image_mode", f"{path!r}: {'animated ' if header.animated else ''}{header.mode}"))
    if header.turned:
        findings.append(("image_turned", f"{path!r}"))
    return SeenImage(digest, header.size, tuple(findings))


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.stat().st_size <= _MOST_BYTES else None


def digest_of(root: Path, path: str, content: bytes | None) -> bytes:
    """Digest of an image's file; of its path where that cannot be read."""
    if content is not None:
        return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    try:
        with locate(root, path).open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).digest()
    except (ImageError, OSError, RuntimeError):
        return by_name(path)


def by_name(path: str) -> bytes:
    """What tells an image of which only the path is known."""
    return hashlib.blake2b(b"path:" + path.encode(), digest_size=_DIGEST_BYTES).digest()


def _problem(error: ImageError) -> str:
    for start, problem in (
        ("no such file", "image_missing"),
        ("a link out", "image_outside"),
        ("more pixels", "image_too_large"),
    ):
        if error.reason.startswith(start):
            return problem
    return "image_broken"
