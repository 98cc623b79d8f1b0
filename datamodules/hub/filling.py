"""The image root filled source by source, each folder whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.hub.archives import Limits, OtherFiles, unpack
from datamodules.hub.places import Marker, image_files, placing
from datamodules.hub.remote import sha256_of
from datamodules.sources import Source
from lit_vlaa.whole_files import hidden, put_in_place, remove

Folders = Literal["link", "copy"]

_MARKERS = ".lit_vlaa_download/unpacked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filler:
    """Puts images below `root/images`."""

    root: Path
    """The output folder."""
    limits: Limits
    other_files: OtherFiles
    folders: Folders
    """How the images of a folder that the user points to come here: as hard links, or copied."""
    say: Callable[[str], None]
    """Told what is done, one line each."""

    @property
    def images(self) -> Path:
        """The image root."""
        return self.root / "images"

    def done(self, source: Source, archive: str, *, sha256: str | None = None, path: Path | None = None) -> bool:
        """Whether an archive needs no unpacking.

        Args:
            source: Whose images it holds.
            archive: Its name.
            sha256: Its checksum, where the Hub states it.
            path: The file, where it is the user's: size and time of change tell then.
        """
        marker = Marker.read(self._marker(source, archive))
        if marker is None or not all((self.images / folder).is_dir() for folder in marker.folders):
            return False
        if path is not None:
            stat = path.stat()
            return (marker.bytes, marker.modified) == (stat.st_size, stat.st_mtime_ns)
        return marker.sha256 == sha256

    def kept(self, source: Source) -> list[str]:
        """Folders of a source that are there and were not made here: they stay as they are."""
        ours: set[str] = set()
        for path in (self.root / _MARKERS).glob(f"{source.name}-*.json"):
            marker = Marker.read(path)
            ours.update(marker.folders if marker else ())
        return [name for name in source.folders if name not in ours and (self.images / name).is_dir()]

    def unpack(self, source: Source, archive: Path, name: str, *, sha256: str | None = None) -> None:
        """Unpacks one archive, puts its folders in place, and notes that.

        Args:
            source: Whose images it holds.
            archive: The file.
            name: What the note calls it.
            sha256: Its checksum if it is known.

        Raises:
            ArchiveError: If the archive is refused; nothing of it is left.
            OSError: If something cannot be written; nothing of the archive is left.
        """
        stat = archive.stat()
        if sha256 is None:
            with self._bar(f"reading {archive.name}", stat.st_size) as bar:
                sha256 = sha256_of(archive, told=bar.update)
        kept = self.kept(source)
        place = placing(source)

        def where(parts: tuple[str, ...]) -> str | None:
            found = place(parts)
            return None if found.startswith(tuple(f"{folder}/" for folder in kept)) else found

        staging = self._staging(source, name)
        try:
            with self._bar(f"unpacking {archive.name}", stat.st_size) as bar:
                done = unpack(archive, staging, place=where, limits=self.limits, other_files=self.other_files, bar=bar)
            folders = tuple(folder for folder in source.folders if (staging / folder).is_dir())
            self._put(staging, folders)
        finally:
            remove(staging)
        Marker(
            archive=name,
            sha256=sha256,
            bytes=stat.st_size,
            modified=stat.st_mtime_ns,
            folders=folders,
            files=done.files,
            unpacked_bytes=done.total_bytes,
        ).write(self._marker(source, name))
        left = f", {done.skipped} other files left out" if done.skipped else ""
        self.say(f"{name}: {done.files} images, {done.total_bytes / 1e9:.2f} GB{left}")

    def adopt(self, source: Source, folder: Path) -> None:
        """Links or copies the images of the user's own folder.

        Raises:
            ValueError: If an image has no place, or links cannot be made.
            OSError: If something cannot be written.
        """
        found = image_files(folder, source)
        if not found:
            raise ValueError(f"--{source.name} {folder} holds no image (or its archive has to be named instead)")
        new = [(path, place) for path, place in found if not (self.images / place).exists()]
        for path, place in tqdm(new, desc=f"{source.name} from {folder}", unit="image", disable=None):
            target = self.images / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.folders == "link":
                try:
                    os.link(path.resolve(), target)
                except OSError as error:
                    raise ValueError(
                        f"--{source.name} {folder}: hard links cannot be made ({error.strerror}); the folder must lie "
                        "on the file system of --output-dir, or give --folders copy"
                    ) from error
            else:
                part = hidden(target)
                shutil.copyfile(path, part)
                part.replace(target)
        verb = "linked" if self.folders == "link" else "copied"
        self.say(f"{folder}: {len(new)} images {verb}, {len(found) - len(new)} were there")

    def _put(self, staging: Path, folders: Sequence[str]) -> None:
        """Renames the unpacked folders into place, after their files are on the disk."""
        os.sync()
        for folder in folders:
            target = self.images / folder
            target.parent.mkdir(parents=True, exist_ok=True)
            put_in_place(staging / folder, target)

    def _staging(self, source: Source, name: str) -> Path:
        """An empty folder on the same file system; what an interrupted run left in it goes."""
        path = hidden(self.images / f"{source.name}-{_plain(name)}")
        remove(path)
        path.mkdir(parents=True)
        return path

    def _marker(self, source: Source, name: str) -> Path:
        return self.root / _MARKERS / f"{source.name}-{_plain(name)}.json"

    def _bar(self, what: str, total: int) -> tqdm:
        return tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def _plain(name: str) -> str:
    """A name that a file can have."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in Path(name).name)[:100]
