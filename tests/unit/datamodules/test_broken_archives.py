"""Archives that are damaged, or made to fill the memory."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.hub.members import ArchiveError
from helpers.archives import opened, tar


def linked_zip(path: Path) -> None:
    entry = zipfile.ZipInfo("docvqa/evil.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(entry, "/etc/passwd")


def lying_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("docvqa/a.png", bytes(4000))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (100).to_bytes(4, "little")
    path.write_bytes(content)


def cut_gzip(path: Path) -> None:
    tar(path, ("docvqa/a.png", bytes(range(256)) * 10))
    path.write_bytes(path.read_bytes()[:-9])


def cut_tar(path: Path) -> None:
    tar(path, ("docvqa/a.png", bytes(3000)), mode="w")
    path.write_bytes(path.read_bytes()[:2000])


def huge_header(path: Path) -> None:
    """A pax header that says to be 8 GB long; to believe it would fill the memory."""
    entry = tarfile.TarInfo("h")
    entry.type, entry.size = tarfile.XHDTYPE, 8 << 30
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)))


def backwards(path: Path) -> None:
    """A size below zero makes naive readers go round in circles."""
    entry = tarfile.TarInfo("docvqa/a.png")
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 11 + b"\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(2048))


def endless_map(path: Path) -> None:
    """A sparse file whose map is its content: 50 MB of it are read as a list, unless headers have a limit."""
    entry = tarfile.TarInfo("docvqa/a.png")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    content = b"900000000\n" + b"0\n" * 200_000
    entry.size = len(content)
    with tarfile.open(path, "w:gz") as out:
        out.addfile(entry, io.BytesIO(content))


def chain_of_headers(path: Path) -> None:
    """Headers of headers, each within its limit."""
    entry = tarfile.TarInfo("h")
    entry.type, entry.size = tarfile.XGLTYPE, 10_240
    record = b"10240 k=" + b"v" * (10_240 - 9) + b"\n"
    path.write_bytes(gzip.compress((entry.tobuf(tarfile.USTAR_FORMAT) + record) * 30 + bytes(1024)))


def cut_between_members(path: Path) -> None:
    tar(path, ("docvqa/a.png", bytes(512)), ("docvqa/b.png", bytes(512)), mode="w")
    path.write_bytes(path.read_bytes()[:1024])


def damaged_header(path: Path) -> None:
    tar(path, ("docvqa/a.png", bytes(512)), ("docvqa/b.png", bytes(512)), mode="w")
    content = bytearray(path.read_bytes())
    content[1024 + 150] ^= 1
    path.write_bytes(content)


def large_directory(path: Path) -> None:
    """A directory of 65 MiB, which a reader of zips takes whole."""
    content = bytearray(zipped("docvqa/a.png", b"x"))
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[start:end] * (68_000_000 // (end - start))
    last = content[end:]
    last[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(bytes(content[:start]) + bytes(directory) + bytes(last))


def shared_content(path: Path) -> None:
    """Entries that unpack the same bytes: the sum of their packed sizes is more than the archive."""
    content = zipped("docvqa/._a.png", b"xyz" * 1000, level=0)
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory, last = content[start:end] * 2, bytearray(content[end:])
    last[8:12] = (2).to_bytes(2, "little") * 2
    last[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(content[:start] + directory + bytes(last))


def encrypted(path: Path) -> None:
    content = bytearray(zipped("docvqa/a.png", b"x"))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def other_method(path: Path) -> None:
    path.write_bytes(zipped("docvqa/a.png", b"x", method=zipfile.ZIP_LZMA))


def two_names(path: Path) -> None:
    content = zipped("docvqa/a.png", b"x")
    path.write_bytes(content.replace(b"docvqa/a.png", b"docvqa/b.png", 1))


def zipped(name: str, content: bytes, *, method: int = zipfile.ZIP_DEFLATED, level: int | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=level) as out:
        out.writestr(name, content)
    return buffer.getvalue()


def goes_on(path: Path) -> None:
    tar(path, ("docvqa/a.png", b"x"))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(2 << 20)))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zip-link": (linked_zip, "a symbolic link"),
    "zip-lies": (lying_zip, "cannot be read|than the archive says"),
    "cut-gzip": (cut_gzip, "is it whole"),
    "cut-tar": (cut_tar, "shorter than the archive says"),
    "cut-between": (cut_between_members, "no end where there should be one"),
    "damaged-header": (damaged_header, "no end where there should be one"),
    "huge-header": (huge_header, "headers of more than 262144 bytes"),
    "endless-map": (endless_map, "headers of more than 262144 bytes"),
    "chain": (chain_of_headers, "headers of more than 262144 bytes"),
    "backwards": (backwards, "a size of -256 bytes"),
    "goes-on": (goes_on, "it goes on after its end"),
    "directory": (large_directory, "a directory of more than 64 MiB"),
    "shared": (shared_content, "a part of the archive that others use too"),
    "encrypted": (encrypted, "encrypted"),
    "method": (other_method, "compressed by another method than deflate"),
    "two-names": (two_names, "differ"),
    "text": (lambda path: path.write_bytes(b"text"), "neither zip nor tar"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives(name: str, tmp_path: Path) -> None:
    make, reason = BROKEN[name]
    make(tmp_path / "a")
    with pytest.raises(ArchiveError, match=rf"({reason}).*the archive is refused"):
        opened(tmp_path / "a", tmp_path / "out")


def test_headers_count_for_what_unpacks_without_end(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("docvqa/a.png")
    entry.pax_headers = {"comment": "v" * 100_000}
    with pytest.raises(ArchiveError, match="which no images do"):
        opened(tar(tmp_path / "a", entry), tmp_path / "out")
