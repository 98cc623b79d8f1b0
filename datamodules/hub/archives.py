"""Unpacking archives that nobody vouches for: images only, nothing outside the folder, nothing without end.

A tar (plain or gzip) is read once from front to end, a zip by its directory. What breaks a rule refuses the archive
with the member's name; the caller unpacks into a folder of its own and throws that away.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from datamodules.hub.members import ArchiveError, Member, members

OtherFiles = Literal["refuse", "skip"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

_LONGEST_PATH = 1024
_LONGEST_NAME = 255
_JUNK_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may hold at most."""

    file_bytes: int = 256 << 20
    """Of one image."""
    total_bytes: int = 100 * 10**9
    """Of all its files unpacked."""
    files: int = 1_000_000
    ratio: float = 100.0
    """Unpacked bytes to each packed one; images hardly shrink."""
    ratio_from: int = 64 << 20
    """Unpacked bytes from which on `ratio` is looked at, as small archives may be one picture many times."""


@dataclass(slots=True)
class Unpacked:
    """What came out of an archive."""

    files: int = 0
    total_bytes: int = 0
    skipped: int = 0
    """Files that were left in it: those of desktops, those that are no images, those that `place` leaves out."""


class Bar(Protocol):
    """What is used of a tqdm progress bar."""

    n: float

    def update(self, n: float) -> Any:
        """Adds bytes of the archive that were read."""


def unpack(
    archive: Path,
    into: Path,
    *,
    place: Callable[[tuple[str, ...]], str | None],
    limits: Limits,
    other_files: OtherFiles,
    bar: Bar,
) -> Unpacked:
    """Writes the images of an archive below a folder.

    Args:
        archive: A zip, a tar or a tar in gzip; the content decides, not the name.
        into: A folder that is empty and belongs to the caller alone.
        place: Tells by the parts of a member's name where below `into` it goes; None leaves it out. It raises
            ValueError for what has no place.
        limits: What the archive may hold.
        other_files: Whether a file that is no image by its name refuses the archive, or is left in it.
        bar: Told how many bytes of the archive were read.

    Raises:
        ArchiveError: If the archive cannot be read, or breaks a rule. What was written is still there.
        OSError: If a file cannot be written.
    """
    done = Unpacked()
    seen: dict[str, str] = {}
    entries = announced = 0
    with archive.open("rb") as raw:
        for member in members(raw, archive):
            entries += 1
            if entries > limits.files:
                raise ArchiveError(archive, member.name, f"it holds more than {limits.files} entries")
            announced = max(announced, member.start)
            _check_ratio(archive, member, announced, limits)
            _check_total(archive, member, announced, limits)
            announced += member.size
            bar.update(max(member.packed() - bar.n, 0))
            parts = _parts(archive, member.name)
            if member.problem:
                raise ArchiveError(archive, member.name, member.problem)
            if member.folder:
                continue
            where = _where(archive, member.name, parts, place, other_files)
            if where is None:
                done.skipped += 1
                continue
            if member.size > limits.file_bytes:
                reason = f"{member.size} bytes are more than {limits.file_bytes} for one file"
                raise ArchiveError(archive, member.name, reason)
            _check_name(archive, member.name, where, seen)
            target = into.joinpath(*where.split("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            done.total_bytes += _write(archive, member, target, announced - member.size, limits)
            done.files += 1
    return done


def _where(
    archive: Path,
    name: str,
    parts: tuple[str, ...],
    place: Callable[[tuple[str, ...]], str | None],
    other_files: OtherFiles,
) -> str | None:
    """The place of a member below the folder; None for one that is left out."""
    last = parts[-1].lower()
    if "__MACOSX" in parts or last.startswith("._") or last in _JUNK_NAMES:
        return None
    if Path(last).suffix not in IMAGE_SUFFIXES:
        if other_files == "skip":
            return None
        raise ArchiveError(archive, name, "no image by its name (--other-files skip leaves such files out)")
    try:
        return place(parts)
    except ValueError as error:
        raise ArchiveError(archive, name, str(error)) from error


def _write(archive: Path, member: Member, target: Path, before: int, limits: Limits) -> int:
    """Writes one file, which must not be there yet; returns its bytes."""
    size = 0
    with target.open("xb") as out:
        for piece in member.read():
            size += len(piece)
            if size > member.size:
                raise ArchiveError(archive, member.name, "longer than the archive says")
            _check_ratio(archive, member, before + size, limits)
            out.write(piece)
    if size < member.size:
        raise ArchiveError(archive, member.name, "shorter than the archive says; is the file whole?")
    return size


def _check_total(archive: Path, member: Member, before: int, limits: Limits) -> None:
    if member.size < 0:
        raise ArchiveError(archive, member.name, f"a size of {member.size} bytes")
    if before + member.size > limits.total_bytes:
        raise ArchiveError(
            archive, member.name, f"more than {limits.total_bytes / 1e9:g} GB in all (--max-unpacked-gb)"
        )


def _check_ratio(archive: Path, member: Member, unpacked: int, limits: Limits) -> None:
    packed = max(member.packed(), 1)
    if unpacked > limits.ratio_from and unpacked > limits.ratio * packed:
        raise ArchiveError(archive, member.name, f"unpacks to {unpacked} bytes out of {packed}, which no images do")


def _parts(archive: Path, name: str) -> tuple[str, ...]:
    """The parts of a member's name, once it is known to be harmless."""
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        raise ArchiveError(archive, name, "an absolute path")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in parts:
        raise ArchiveError(archive, name, "a path that leads upwards")
    if "\\" in name or any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in name):
        raise ArchiveError(archive, name, "a name with a backslash, a control character or bytes that are no UTF-8")
    if len(name) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise ArchiveError(archive, name, "a name that is too long")
    return parts or (".",)


def _check_name(archive: Path, name: str, where: str, seen: dict[str, str]) -> None:
    """Refuses names that a file system may take for one, and a file that is a folder elsewhere."""
    key = spelling(where)
    if key in seen:
        other = seen[key]
        what = f"differs from {other!a} by case or Unicode form only"
        if other in {where, ""}:
            what = "is there twice" if other else "is a folder already"
        raise ArchiveError(archive, name, what)
    seen[key] = where
    while key := key.rpartition("/")[0]:
        if seen.setdefault(key, ""):
            raise ArchiveError(archive, name, f"{seen[key]!a} is a file already")


def spelling(path: str) -> str:
    """What paths have in common that differ by case or Unicode form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
