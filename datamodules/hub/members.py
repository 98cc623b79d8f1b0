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
from typing import Any, BinaryIO, Literal, cast

_CHUNK = 1 << 20
_HEADERS = 256 << 10
"""Bytes of headers that one member of a tar may have; names and times take less than a thousand."""
_DIRECTORY = 64 << 20
"""Bytes of a zip's directory, which is read as a whole; each entry takes 46 and its name."""
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Others are not used for images, and their readers take as much memory as an archive tells them to."""
_ENCRYPTED = 1
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
    start: int = 0
    """Bytes that had to be unpacked to get here, headers and what was left out among them."""


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
    """A stream that only goes on, and gives headers up to a limit.

    tarfile reads the headers of long names and of sparse files as a whole, however long they claim to be, and one after
    another until a member comes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = 0
        self.last = b""
        """What was read last of headers."""

    def allow(self, size: int) -> None:
        """Sets how many bytes of headers may be read from here on."""
        self._left = size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError(f"headers of more than {_HEADERS} bytes")
        self._left -= size
        self.last = self._stream.read(size)
        return self.last

    def content(self, size: int) -> bytes:
        return self._stream.read(min(size, _CHUNK))

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if position < self._stream.tell():
            raise ValueError("a header that leads backwards")
        return self._stream.seek(position)


def _tar_members(raw: BinaryIO, archive: Path, *, packed: bool) -> Iterator[Member]:
    stream = _Forward(cast("BinaryIO", gzip.GzipFile(fileobj=raw, mode="rb")) if packed else raw)
    stream.allow(_HEADERS)
    with _reading(archive):
        tar = tarfile.open(fileobj=cast("BinaryIO", stream), mode="r:")  # noqa: SIM115  (the file is the caller's)
    while True:
        with _reading(archive):
            info = tar.next()
        # Else all of a million members stay in memory, and headers that are for every member heap up.
        tar.members.clear()  # type: ignore[attr-defined]
        tar.pax_headers = {}
        if info is None:
            break
        yield Member(
            name=info.name,
            size=info.size,
            problem=_tar_problem(info),
            folder=info.isdir(),
            read=lambda info=info: _tar_content(stream, archive, info),  # type: ignore[misc]
            packed=raw.tell,
            start=stream.tell(),
        )
        stream.allow(_HEADERS)
    with _reading(archive):
        # To tarfile a header that is cut or damaged is an end too.
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise ValueError("no end where there should be one")
        # Only at its end does gzip tell whether all of it came.
        rest = stream.content(_CHUNK)
        if len(rest) == _CHUNK:
            raise ValueError("it goes on after its end")
        stream.content(1)


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
            piece = stream.content(left)
        if not piece:
            return
        left -= len(piece)
        yield piece


class _Bounded:
    """A file that gives its content, but no directory that fills the memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY:
            raise ValueError(f"a directory of more than {_DIRECTORY >> 20} MiB")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _zip_members(raw: BinaryIO, archive: Path) -> Iterator[Member]:
    with _reading(archive):
        whole = zipfile.ZipFile(cast("BinaryIO", _Bounded(raw)))
    read, size = 0, archive.stat().st_size
    for info in whole.infolist():
        read += info.compress_size
        yield Member(
            name=info.orig_filename,
            size=info.file_size,
            problem="a part of the archive that others use too" if read > size else _zip_problem(info),
            folder=info.is_dir(),
            read=lambda info=info: _zip_content(whole, archive, info),  # type: ignore[misc]
            packed=lambda read=read: read,  # type: ignore[misc]
        )


def _zip_problem(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "no regular file"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return "compressed by another method than deflate"
    return ""


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
