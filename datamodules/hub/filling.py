"""The image root filled source by source, each folder whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.hub.archives import Limits, OtherFiles, unpack
from datamodules.hub.places import Marker, image_files, placing
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

    def done(self, source: Source, archive: str, sha256: str) -> bool:
        """Whether an archive of the Hub needs no unpacking.

        Args:
            source: Whose images it holds.
            archive: Its name.
            sha256: Its checksum.
        """
        marker = Marker.read(self._marker(source, archive))
        whole = marker is not None and all((self.images / folder).is_dir() for folder in marker.folders)
        return whole and marker is not None and marker.sha256 == sha256

    def kept(self, source: Source) -> list[str]:
        """Folders of a source that are there and were not made here: they stay as they are."""
        ours: set[str] = set()
        for path in (self.root / _MARKERS).glob(f"{source.name}-*.json"):
            marker = Marker.read(path)
            ours.update(marker.folders if marker else ())
        return [name for name in source.folders if name not in ours and (self.images / name).is_dir()]

    def unpack(self, source: Source, archive: Path, name: str, sha256: str) -> None:
        """Unpacks one archive of the Hub, puts its folders in place, and notes that.

        Args:
            source: Whose images it holds.
            archive: The file.
            name: What the note calls it.
            sha256: Its checksum.

        Raises:
            ArchiveError: If the archive is refused; nothing of it is left.
            OSError: If something cannot be written; nothing of the archive is left.
        """
        kept = self.kept(source)
        place = placing(source)

        def where(parts: tuple[str, ...]) -> str | None:
            found = place(parts)
            return None if found.startswith(tuple(f"{folder}/" for folder in kept)) else found

        with self._staging(source, name) as staging:
            with self._bar(archive) as bar:
                done = unpack(archive, staging, place=where, limits=self.limits, other_files=self.other_files, bar=bar)
            folders = tuple(folder for folder in source.folders if (staging / folder).is_dir())
            self._put(staging, folders)
        Marker(archive=name, sha256=sha256, folders=folders, files=done.files, unpacked_bytes=done.total_bytes).write(
            self._marker(source, name)
        )
        left = f", {done.skipped:,} other files left out" if done.skipped else ""
        self.say(f"{name}: {done.files:,} images, {done.total_bytes / 1e9:.2f} GB{left}")

    def pick(self, source: Source, archive: Path, asked: Collection[str]) -> None:
        """Unpacks of an archive of the user's what rows ask for and is not there yet.

        Args:
            source: Whose images it holds.
            archive: The file.
            asked: Images below the image root.

        Raises:
            ArchiveError: If the archive is refused; nothing of it is left.
            OSError: If something cannot be written; an image that is there is whole.
        """
        new = self._lacking(asked)
        if not new:
            self.say(f"{archive}: not needed, all {len(asked):,} images of {source.name} are there")
            return
        place = placing(source)

        def where(parts: tuple[str, ...]) -> str | None:
            with suppress(ValueError):
                return found if (found := place(parts)) in new else None
            return None

        with self._staging(source, archive.name) as staging:
            with self._bar(archive) as bar:
                done = unpack(archive, staging, place=where, limits=self.limits, other_files="skip", bar=bar)
            os.sync()
            for path in sorted(staging.rglob("*")):
                if path.is_file():
                    target = self.images / path.relative_to(staging)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
        self.say(
            f"{archive}: {done.files:,} of the {len(new):,} images that were lacking, {done.total_bytes / 1e9:.2f} GB; "
            f"{done.skipped:,} other files left in it"
        )

    def adopt(self, source: Source, folder: Path, asked: Collection[str]) -> None:
        """Links or copies what rows ask for, and is not there yet, from the user's own folder.

        Args:
            source: Whose images it holds.
            folder: The folder.
            asked: Images below the image root.

        Raises:
            ValueError: If links cannot be made.
            OSError: If something cannot be written.
        """
        new, others = self._lacking(asked), 0
        if not new:
            self.say(f"{folder}: not needed, all {len(asked):,} images of {source.name} are there")
            return
        found: dict[str, Path] = {}
        for path, place in tqdm(image_files(folder, source), desc=f"looking through {folder}", unit="", disable=None):
            if place in new:
                found.setdefault(place, path)
            else:
                others += place not in asked
        verb = "linked" if self.folders == "link" else "copied"
        for place, path in tqdm(found.items(), desc=f"{source.name} from {folder}", unit=" images", disable=None):
            target = self.images / place
            target.parent.mkdir(parents=True, exist_ok=True)
            part = hidden(target)
            remove(part)
            if self.folders == "link":
                self._link(source, folder, path, part)
            else:
                shutil.copyfile(path, part)
            part.replace(target)
        self.say(
            f"{folder}: {len(found):,} of the {len(new):,} images that were lacking, {verb}; "
            f"{others:,} others left in it"
        )

    def _link(self, source: Source, folder: Path, path: Path, target: Path) -> None:
        try:
            os.link(path.resolve(), target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise ValueError(
                f"--{source.name} {folder}: hard links cannot be made ({error.strerror}); the folder must lie "
                "on the file system of --output-dir and be yours, or give --folders copy"
            ) from error

    def _lacking(self, asked: Collection[str]) -> set[str]:
        """Those of some images that are not there."""
        return {image for image in asked if not os.path.isfile(self.images / image)}  # noqa: PTH113  (never raises)

    def _put(self, staging: Path, folders: Sequence[str]) -> None:
        """Renames the unpacked folders into place, after their files are on the disk."""
        os.sync()
        for folder in folders:
            target = self.images / folder
            target.parent.mkdir(parents=True, exist_ok=True)
            put_in_place(staging / folder, target)

    @contextmanager
    def _staging(self, source: Source, name: str) -> Iterator[Path]:
        """An empty folder on the same file system; what an interrupted run left in it goes."""
        path = hidden(self.images / f"{source.name}-{_plain(name)}")
        remove(path)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            remove(path)

    def _marker(self, source: Source, name: str) -> Path:
        return self.root / _MARKERS / f"{source.name}-{_plain(name)}.json"

    def _bar(self, archive: Path) -> tqdm:
        size = archive.stat().st_size
        desc = f"unpacking {archive.name}"
        return tqdm(total=size, desc=desc, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


def _plain(name: str) -> str:
    """A name that a file can have."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in Path(name).name)[:100]
