"""The flags of `lit-vlaa data download`, and whether they can work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datamodules.hub.members import is_archive
from datamodules.hub.places import REPOSITORY, SPLIT_FILES, UNUSED, Split, used_by
from datamodules.sources import SOURCES
from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags
from lit_vlaa.hints import missing


def parser() -> Flags:
    """Makes the parser."""
    made = Flags(
        prog="lit-vlaa data download",
        description="Downloads VLAA-Thinking from the Hub, checks and unpacks it, and counts what is there. A command "
        "that was stopped goes on where it was. HF_ENDPOINT names a mirror, HF_TOKEN a token.",
    )
    made.add_argument("--output-dir", type=Path, required=True, help="The folder to write to.")
    made.add_argument(
        "--split", nargs="+", choices=[*SPLIT_FILES, "all"], default=["all"], help="Split files to get (default: all)."
    )
    made.add_argument(
        "--sources",
        nargs="+",
        metavar="SOURCE",
        help=f"Sources whose images to get, of {', '.join(SOURCES)} (default: all that the splits use).",
    )
    made.add_argument("--repo", default=REPOSITORY, help="Data set on the Hub (default: %(default)s).")
    made.add_argument("--revision", help="Branch, tag or commit of it (default: the main branch).")
    made.add_argument(
        "--coco",
        nargs="+",
        metavar="PATH",
        help="COCO's train2017 pictures, which the Hub does not have: zip or tar files, or folders. Those that rows "
        "ask for come here.",
    )
    made.add_argument(
        "--vg",
        nargs="+",
        metavar="PATH",
        help="VisualGenome's pictures (VG_100K and VG_100K_2), likewise.",
    )
    made.add_argument(
        "--folders",
        choices=["link", "copy"],
        default="link",
        help="How pictures of folders given by --coco and --vg come here: as hard links, or copied (default: link).",
    )
    made.add_argument("--keep-archives", action="store_true", help="Keep the Hub's archives after unpacking them.")
    made.add_argument(
        "--max-unpacked-gb",
        type=_gigabytes,
        default=100.0,
        metavar="GB",
        help="Refuse an archive that unpacks to more than this (default: %(default)s).",
    )
    made.add_argument(
        "--other-files",
        choices=["refuse", "skip"],
        default="refuse",
        help="Whether a file that is no picture makes an archive of the Hub refused, or is left in it "
        "(default: refuse).",
    )
    made.add_argument("--dry-run", action="store_true", help="Say what would be done, and stop.")
    return made


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def sources_of(given: Sequence[str] | None, splits: Sequence[Split]) -> list[str]:
    """The sources to get, in the order of the paper's table.

    Raises:
        UsageError: If one is not known or of no use.
    """
    if given is None:
        return [name for name, source in SOURCES.items() if any(used_by(split, source) for split in splits)]
    if UNUSED in given:
        raise UsageError([f"--sources {UNUSED}: no row of VLAA-Thinking uses these images; leave it out"])
    if unknown := sorted(set(given) - set(SOURCES)):
        raise UsageError([f"--sources names {unknown}; known are {list(SOURCES)}"])
    return [name for name in SOURCES if name in given]


def check_own(own: Sequence[tuple[str, Path]], sources: Sequence[str]) -> None:
    """Looks at what `--coco` and `--vg` name.

    Raises:
        UsageError: If something is not there, is no archive, or is of no use.
    """
    for name, path in own:
        if name not in sources:
            raise UsageError([f"--{name} {path} is of no use while --sources leaves {name} out"])
        if not path.exists():
            raise UsageError([f"--{name} {path} {missing(path)}"])
        try:
            usable = path.is_dir() or (path.is_file() and is_archive(path))
        except OSError as error:
            raise UsageError([f"--{name} {path}: {error.strerror}"]) from error
        if not usable:
            raise UsageError([f"--{name} {path} is neither a folder nor a zip, a tar or a tar in gzip"])
