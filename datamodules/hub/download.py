"""`lit-vlaa data download`: the released data set, whole and checked, in the folder that the recipes name.

Below the output folder lie the split files under their names on the Hub, `images/<source>/`, `download.json` (what came
from which commit) and `.lit_vlaa_download` (parts of downloads, and a note for each archive that was unpacked).
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datamodules.disk import explain
from datamodules.hub.archives import Limits
from datamodules.hub.counting import look, read, remarks, table
from datamodules.hub.filling import Filler, Folders
from datamodules.hub.options import check_own, parser, sources_of
from datamodules.hub.places import OWN_SITES, SPLIT_FILES, Split, archive_of, used_by
from datamodules.hub.remote import AGAIN, RemoteFile, Repository
from datamodules.sources import SOURCES
from lit_vlaa.checks import UsageError
from lit_vlaa.whole_files import replacing

_STATE = ".lit_vlaa_download"
_UNPACKED = 1.1
"""Bytes on the disk for each byte of an archive of images, which hardly shrink."""
_SPARE = 1 << 30
_OWN_IMAGE = 200_000
"""Bytes of a picture of COCO or VisualGenome, which have 160,000 and 140,000 on average."""
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command has to do."""

    files: list[RemoteFile]
    """Split files that are not here yet."""
    archives: dict[str, RemoteFile]
    """Archives on the Hub by source, those that are not unpacked yet."""
    own: list[tuple[str, Path]]
    """Archives and folders of the user's, with their source; which of their images are lacking is known later."""
    needed: int
    """Free bytes that this takes."""


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: What follows `lit-vlaa data download`.

    Returns:
        0 when all images that the rows ask for are there, 1 when some are missing, 130 when interrupted.

    Raises:
        UsageError: If it cannot work, with the remedy.
    """
    options = parser().read(words)
    splits: list[Split] = [*SPLIT_FILES] if "all" in options.split else list(dict.fromkeys(options.split))
    sources = sources_of(options.sources, splits)
    own = [(name, Path(path)) for name in OWN_SITES for path in (getattr(options, name) or ())]
    check_own(own, sources)
    root: Path = options.output_dir
    filler = Filler(
        root=root,
        limits=Limits(total_bytes=int(options.max_unpacked_gb * 1e9)),
        other_files=options.other_files,
        folders=options.folders,
        say=_say,
    )
    try:
        repository = Repository.find(options.repo, options.revision)
        plan = _plan(repository, filler, splits, sources, own, keep_archives=options.keep_archives)
        _show(repository, plan, root)
        _check_disk(plan, root)
        if options.dry_run:
            return 0
        with _alone(root):
            for file in plan.files:
                repository.fetch(file, root / file.path, state=root)
            _note(repository, root, splits)
            counts = read({split: root / SPLIT_FILES[split] for split in splits}, sources)
            asked = dict.fromkeys(image for found in counts.values() for image in found.asked)
            _fill(repository, plan, filler, asked, keep_archives=options.keep_archives)
        look(counts, filler.images)
        sys.stdout.writelines(f"{line}\n" for line in (*table(counts, splits), *remarks(counts, splits)))
        return int(any(found.missing for found in counts.values()))
    except KeyboardInterrupt:
        _say(f"lit-vlaa: interrupted; {AGAIN}")
        return _INTERRUPTED
    except ValueError as error:
        raise UsageError([" ".join(str(error).split())]) from error
    except OSError as error:
        raise UsageError([explain(error, root, remedy=_FREE)]) from error


_FREE = "choose fewer --sources, and run the same command again: it goes on where it stopped"


def _plan(
    repository: Repository,
    filler: Filler,
    splits: Sequence[Split],
    sources: Sequence[str],
    own: Sequence[tuple[str, Path]],
    *,
    keep_archives: bool,
) -> Plan:
    """Compares what is wanted with what is here.

    Raises:
        UsageError: If the Hub lacks a file.
    """
    names = {name: archive_of(name) for name in sources if name not in OWN_SITES}
    files = [SPLIT_FILES[split] for split in splits]
    if missing := [name for name in (*files, *names.values()) if name not in repository.files]:
        raise UsageError(
            [f"--repo {repository.name} has no file {name} at {repository.commit[:12]}" for name in missing]
        )
    wanted = [repository.files[name] for name in files]
    wanted = [file for file in wanted if not _here(file, filler.root / file.path)]
    archives = {}
    for name, remote in names.items():
        if filler.done(SOURCES[name], remote, repository.files[remote].checksum):
            continue
        if filler.kept(SOURCES[name]):
            _say(f"images/{name} was not unpacked here and stays as it is")
            continue
        archives[name] = repository.files[remote]
    to_come = []
    for file in archives.values():
        path = _packed(filler.root, file, keep_archives=keep_archives)
        whole = path.is_file() and path.stat().st_size == file.size
        to_come.append(0 if whole else repository.to_come(file, state=filler.root))
    at_once = sum(to_come) if keep_archives else max(to_come, default=0)
    unpacked = int(_UNPACKED * sum(file.size for file in archives.values()))
    files_to_come = sum(repository.to_come(file, state=filler.root) for file in wanted)
    return Plan(wanted, archives, [*own], files_to_come + at_once + unpacked + _own_size(own, splits, filler.folders))


def _packed(root: Path, file: RemoteFile, *, keep_archives: bool) -> Path:
    """Where an archive of the Hub lies until it is unpacked, or for good."""
    return (root / "archives" if keep_archives else root / _STATE) / Path(file.path).name


def _here(file: RemoteFile, path: Path) -> bool:
    return path.is_file() and file.matches(path)


def _own_size(own: Sequence[tuple[str, Path]], splits: Sequence[Split], folders: Folders) -> int:
    """About how much the images of the user's take: of what is given no more than the rows can ask for."""
    most = {name: _OWN_IMAGE * sum(used_by(split, SOURCES[name]) for split in splits) for name, _ in own}
    given = dict.fromkeys(most, 0)
    for name, path in own:
        if path.is_file():
            given[name] += int(_UNPACKED * path.stat().st_size)
        elif folders == "copy":
            given[name] += most[name]
    return sum(min(given[name], most[name]) for name in most)


def _show(repository: Repository, plan: Plan, root: Path) -> None:
    _say(f"{repository.name} at {repository.commit[:12]} -> {root}")
    for file in (*plan.files, *plan.archives.values()):
        _say(f"  {file.path}: {file.size / 1e6:,.1f} MB to download")
    for name, path in plan.own:
        _say(f"  {name}: the images that rows ask for, from {path}")
    if not (plan.files or plan.archives or plan.own):
        _say("  nothing to do")


def _check_disk(plan: Plan, root: Path) -> None:
    """Compares the need with what is free, before the first byte comes.

    Raises:
        UsageError: If there is too little.
    """
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    spare = _SPARE if plan.needed else 0
    _say(f"  disk: about {plan.needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")
    if plan.needed + spare > free:
        numbers = (
            f"about {(plan.needed + spare) / 1e9:.1f} GB are needed ({spare / 1e9:.1f} of them to spare) "
            f"and {free / 1e9:.1f} GB are free"
        )
        raise UsageError([f"--output-dir {root}: {numbers}; free some, choose another folder or fewer --sources"])


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lets one command at a time work on a folder."""
    (root / _STATE).mkdir(parents=True, exist_ok=True)
    with (root / _STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError([f"another `lit-vlaa data download` is writing to {root}; wait for it"]) from error
        yield


def _fill(
    repository: Repository, plan: Plan, filler: Filler, asked: Mapping[str, None], *, keep_archives: bool
) -> None:
    """Brings the images; first those of the user's, of which it shows soon whether they are the right ones."""
    for name, path in plan.own:
        of_source = {image: None for image in asked if image.startswith(SOURCES[name].folders)}
        if path.is_dir():
            filler.adopt(SOURCES[name], path, of_source)
        else:
            filler.pick(SOURCES[name], path, of_source)
    for name, file in plan.archives.items():
        packed = _packed(filler.root, file, keep_archives=keep_archives)
        if not _here(file, packed):
            repository.fetch(file, packed, state=filler.root)
        filler.unpack(SOURCES[name], packed, file.path, file.checksum)
        if not keep_archives:
            packed.unlink()


def _note(repository: Repository, root: Path, splits: Sequence[Split]) -> None:
    files = {SPLIT_FILES[split]: repository.files[SPLIT_FILES[split]].checksum for split in splits}
    facts = {"repo": repository.name, "commit": repository.commit, "checksums": files}
    with replacing(root / "download.json") as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
