"""The entries of an archive, read so that what its headers claim costs nothing."""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

_CHUNK = 1 << 20
_UNREADABLE = (
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,  # an encrypted zip
    ValueError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class ArchiveError(ValueError):
    """An archive that is not unpacked; the message names it, the member and the rule."""

    def __init__(self, archive: Path, member: str, reason: str) -> None:
        """Takes the message in parts.

        Args:
            archive: The file.
            member: Name in it, shown shortened and escaped; empty where the archive as a whole is at fault.
            reason: What is wrong.
        """
        shown = f" {member[:200]!a}:" if member else ""
        super().__init__(f"{archive}:{shown} {reason}; the archive is refused, and nothing of it is kept")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive."""

    name: str
    size: int
    """Unpacked bytes, as the archive states them."""
    problem: str
    """Why it is no regular file; empty for one."""
    folder: bool
    read: Callable[[], Iterator[bytes]]
    """Gives the content piece by piece."""
    packed: Callable[[], int]
    """Bytes of the archive that were read so far."""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, a tar or a tar in gzip, by its content."""
    with path.open("rb") as stream:
        return _form(stream) is not None


def _form(stream: BinaryIO) -> Literal["zip", "gzip", "tar"] | None:
    head = stream.read(512)
    stream.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    return "tar" if head[257:262] == b"ustar" else None


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Whatever a broken archive makes its reader raise becomes an `ArchiveError`."""
    try:
        yield
    except ArchiveError:
        raise
    except _UNREADABLE as error:
        raise ArchiveError(archive, "", f"cannot be read ({error or type(error).__name__}); is it whole?") from error


def members(raw: BinaryIO, archive: Path) -> Iterator[Member]:
    """Yields the entries of an archive in its order; each can be read until the next one is asked for.

    Args:
        raw: The archive, from its start.
        archive: Its path, for messages.

    Raises:
        ArchiveError: If it is in no known form, or broken.
    """
    form = _form(raw)
    if form is None:
        raise ArchiveError(archive, "", "neither zip nor tar nor tar in gzip")
    yield from _zip_members(raw, archive) if form == "zip" else _tar_members(raw, archive, packed=form == "gzip")


class _Forward:
    """A stream that only goes on, and never gives much at once.

    tarfile reads the headers of long names as a whole, however long they claim to be.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise ValueError(f"a header of {size} bytes")
        return self._stream.read(size)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if position < self._stream.tell():
            raise ValueError("a header that leads backwards")
        return self._stream.seek(position)


def _tar_members(raw: BinaryIO, archive: Path, *, packed: bool) -> Iterator[Member]:
    stream = _Forward(cast("BinaryIO", gzip.GzipFile(fileobj=raw, mode="rb")) if packed else raw)
    with _reading(archive):
        tar = tarfile.open(fileobj=cast("BinaryIO", stream), mode="r:")  # noqa: SIM115  (the file is the caller's)
    while True:
        with _reading(archive):
            info = tar.next()
        tar.members.clear()  # type: ignore[attr-defined]  # else all of a million members stay in memory
        if info is None:
            break
        yield Member(
            name=info.name,
            size=info.size,
            problem=_tar_problem(info),
            folder=info.isdir(),
            read=lambda info=info: _tar_content(stream, archive, info),  # type: ignore[misc]
            packed=raw.tell,
        )
    with _reading(archive):
        # Only at its end does gzip tell whether all of it came.
        rest = stream.read(_CHUNK)
        if len(rest) == _CHUNK:
            raise ValueError("it goes on after its end")
        stream.read(1)


def _tar_problem(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "a sparse file"
    if info.type in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE}:
        return ""
    kinds = {
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.LNKTYPE: "a hard link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a pipe",
    }
    return kinds.get(info.type, "no regular file")


def _tar_content(stream: _Forward, archive: Path, info: tarfile.TarInfo) -> Iterator[bytes]:
    with _reading(archive):
        stream.seek(info.offset_data)
    left = info.size
    while left:
        with _reading(archive):
            piece = stream.read(min(left, _CHUNK))
        if not piece:
            return
        left -= len(piece)
        yield piece


def _zip_members(raw: BinaryIO, archive: Path) -> Iterator[Member]:
    with _reading(archive):
        whole = zipfile.ZipFile(raw)
    read = 0
    for info in whole.infolist():
        read += info.compress_size
        mode = info.external_attr >> 16
        name = info.orig_filename
        linked = stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}
        yield Member(
            name=name,
            size=info.file_size,
            problem=("a symbolic link" if stat.S_ISLNK(mode) else "no regular file") if linked else "",
            folder=info.is_dir(),
            read=lambda info=info: _zip_content(whole, archive, info),  # type: ignore[misc]
            packed=lambda read=read: read,  # type: ignore[misc]
        )


def _zip_content(whole: zipfile.ZipFile, archive: Path, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with _reading(archive):
        stream = whole.open(info)
    with stream:
        while True:
            with _reading(archive):
                piece = stream.read(_CHUNK)
            if not piece:
                return
            yield piece
