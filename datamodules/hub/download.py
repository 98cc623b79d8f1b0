"""`lit-vlaa data download`: the released data set, whole and checked, in the folder that the recipes name.

Below the output folder lie the split files under their names on the Hub, `images/<source>/`, `download.json` (what came
from which commit) and `.lit_vlaa_download` (parts of downloads, and a note for each archive that was unpacked).
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datamodules.hub.archives import Limits
from datamodules.hub.counting import count, remarks, table
from datamodules.hub.filling import Filler
from datamodules.hub.members import is_archive
from datamodules.hub.places import (
    OWN_SITES,
    REPOSITORY,
    SPLIT_FILES,
    UNUSED,
    Split,
    archive_of,
    used_by,
)
from datamodules.hub.remote import RemoteFile, Repository
from datamodules.sources import SOURCES
from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags
from lit_vlaa.whole_files import replacing

_STATE = ".lit_vlaa_download"
_UNPACKED = 1.1
"""Bytes on the disk for each byte of an archive of images, which hardly shrink."""
_SPARE = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command has to do."""

    files: list[RemoteFile]
    """Split files that are not here yet."""
    archives: dict[str, RemoteFile]
    """Archives on the Hub by source, those that are not unpacked yet."""
    own: list[tuple[str, Path]]
    """Archives and folders of the user's, with their source."""
    needed: int
    """Free bytes that this takes."""


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: What follows `lit-vlaa data download`.

    Returns:
        0 when all images that the rows ask for are there, 1 when some are missing.

    Raises:
        UsageError: If it cannot work, with the remedy.
    """
    options = _parser().read(words)
    splits: list[Split] = [*SPLIT_FILES] if "all" in options.split else list(dict.fromkeys(options.split))
    sources = _sources(options.sources, splits)
    own = [(name, Path(path)) for name in OWN_SITES for path in (getattr(options, name) or ())]
    _check_own(own, sources)
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
            _carry_out(repository, plan, filler, keep_archives=options.keep_archives)
            _note(repository, root, splits)
        counts = count({split: root / SPLIT_FILES[split] for split in splits}, filler.images, sources)
        sys.stdout.writelines(f"{line}\n" for line in (*table(counts, splits), *remarks(counts, splits)))
        return int(any(found.missing for found in counts.values()))
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UsageError([f"no space left on the disk of --output-dir {root}; {_FREE}"]) from error
        raise UsageError([str(error)]) from error


_FREE = "free some, or choose fewer --sources, and run the same command again: it goes on where it stopped"


def _parser() -> Flags:
    parser = Flags(
        prog="lit-vlaa data download",
        description="Downloads VLAA-Thinking from the Hub, checks and unpacks it, and counts what is there. A command "
        "that was stopped goes on where it was. HF_ENDPOINT names a mirror, HF_TOKEN a token.",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="The folder to write to.")
    parser.add_argument(
        "--split", nargs="+", choices=[*SPLIT_FILES, "all"], default=["all"], help="Split files to get (default: all)."
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        metavar="SOURCE",
        help=f"Sources whose images to get, of {', '.join(SOURCES)} (default: all that the splits use).",
    )
    parser.add_argument("--repo", default=REPOSITORY, help="Data set on the Hub (default: %(default)s).")
    parser.add_argument("--revision", help="Branch, tag or commit of it (default: the main branch).")
    parser.add_argument(
        "--coco",
        nargs="+",
        metavar="PATH",
        help="COCO's train2017 pictures, which the Hub does not have: zip or tar files, or folders.",
    )
    parser.add_argument(
        "--vg",
        nargs="+",
        metavar="PATH",
        help="VisualGenome's pictures (VG_100K and VG_100K_2): zip or tar files, or folders.",
    )
    parser.add_argument(
        "--folders",
        choices=["link", "copy"],
        default="link",
        help="How pictures of folders given by --coco and --vg come here: as hard links, or copied (default: link).",
    )
    parser.add_argument("--keep-archives", action="store_true", help="Keep the Hub's archives after unpacking them.")
    parser.add_argument(
        "--max-unpacked-gb",
        type=float,
        default=100.0,
        metavar="GB",
        help="Refuse an archive that unpacks to more than this (default: %(default)s).",
    )
    parser.add_argument(
        "--other-files",
        choices=["refuse", "skip"],
        default="refuse",
        help="Whether a file that is no picture makes its archive refused, or is left in it (default: refuse).",
    )
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done, and stop.")
    return parser


def _sources(given: Sequence[str] | None, splits: Sequence[Split]) -> list[str]:
    if given is None:
        return [name for name, source in SOURCES.items() if any(used_by(split, source) for split in splits)]
    if UNUSED in given:
        raise UsageError([f"--sources {UNUSED}: no row of VLAA-Thinking uses these images; leave it out"])
    if unknown := sorted(set(given) - set(SOURCES)):
        raise UsageError([f"--sources names {unknown}; known are {list(SOURCES)}"])
    return [name for name in SOURCES if name in given]


def _check_own(own: Sequence[tuple[str, Path]], sources: Sequence[str]) -> None:
    for name, path in own:
        if name not in sources:
            raise UsageError([f"--{name} {path} is of no use while --sources leaves {name} out"])
        if not path.exists():
            raise UsageError([f"--{name} {path} does not exist; seen from {Path.cwd()}"])
        if path.is_file() and not is_archive(path):
            raise UsageError([f"--{name} {path} is neither a folder nor a zip, a tar or a tar in gzip"])


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
    for name, path in names.items():
        if filler.done(SOURCES[name], path, sha256=repository.files[path].checksum):
            continue
        if filler.kept(SOURCES[name]):
            _say(f"images/{name} was not unpacked here and stays as it is")
            continue
        archives[name] = repository.files[path]
    todo = [(name, path) for name, path in own if path.is_dir() or not filler.done(SOURCES[name], path.name, path=path)]
    to_come = [repository.to_come(file, state=filler.root) for file in archives.values()]
    packed = sum(to_come) if keep_archives else max(to_come, default=0)
    unpacked = sum(file.size for file in archives.values()) + sum(_size(path, filler.folders) for _, path in todo)
    files_to_come = sum(repository.to_come(file, state=filler.root) for file in wanted)
    return Plan(wanted, archives, todo, files_to_come + packed + int(_UNPACKED * unpacked))


def _here(file: RemoteFile, path: Path) -> bool:
    return path.is_file() and file.matches(path)


def _size(path: Path, folders: str) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if folders == "copy" else 0


def _show(repository: Repository, plan: Plan, root: Path) -> None:
    _say(f"{repository.name} at {repository.commit[:12]} -> {root}")
    for file in (*plan.files, *plan.archives.values()):
        _say(f"  {file.path}: {file.size / 1e6:,.1f} MB to download")
    for name, path in plan.own:
        _say(f"  {name}: {'pictures' if path.is_dir() else 'archive'} {path}")
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
        numbers = f"about {(plan.needed + spare) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
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


def _carry_out(repository: Repository, plan: Plan, filler: Filler, *, keep_archives: bool) -> None:
    state = filler.root / _STATE
    for file in plan.files:
        repository.fetch(file, filler.root / file.path, state=filler.root)
    for name, file in plan.archives.items():
        packed = filler.root / "archives" / Path(file.path).name if keep_archives else state / Path(file.path).name
        if not _here(file, packed):
            repository.fetch(file, packed, state=filler.root)
        filler.unpack(SOURCES[name], packed, file.path, sha256=file.checksum)
        if not keep_archives:
            packed.unlink()
    for name, path in plan.own:
        if path.is_dir():
            filler.adopt(SOURCES[name], path)
        else:
            filler.unpack(SOURCES[name], path, path.name)


def _note(repository: Repository, root: Path, splits: Sequence[Split]) -> None:
    files = {SPLIT_FILES[split]: repository.files[SPLIT_FILES[split]].checksum for split in splits}
    facts = {"repo": repository.name, "commit": repository.commit, "checksums": files}
    with replacing(root / "download.json") as part:
        part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
