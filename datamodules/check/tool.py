"""`lit-vlaa data check`: every row and image of a data file, before a run finds out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from datamodules.check.parts import backbone_of, read_config
from datamodules.check.problems import Finding, severity_of
from datamodules.check.run import REPORTS, Note, check, ignore, line_of, write
from datamodules.check.settings import MAX_IMAGE_PIXELS, Settings, of_config, with_context
from datamodules.records import Split
from datamodules.rows import BadRecord
from datamodules.shards import rows_of, trouble_with
from lit_vlaa.checks import UsageError
from lit_vlaa.flags import Flags, make_folder
from lit_vlaa.whole_files import replacing

INTERRUPTED = 130
PROBLEMS = "problems.jsonl"


def run(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
        words: Its flags.

    Returns:
        0 if no run stops at what was found, 1 if one does, 130 when interrupted.

    Raises:
        UsageError: If a flag or a file cannot be used.
    """
    given = _flags().read(words)
    if given.workers < 1:
        raise UsageError([f"--workers must be at least 1, got {given.workers}"])
    if given.max_image_pixels is not None and given.max_image_pixels < 1:
        raise UsageError([f"--max-image-pixels must be at least 1, got {given.max_image_pixels}"])
    try:
        file, settings = _settings(given)
        folder = _folder(given.output_dir, [file, *given.against])
        with _problems_file(folder, settings) as note:
            report = check(file, settings, workers=given.workers, against=given.against, note=note)
        if folder is not None:
            write(report, folder)
    except (ValueError, OSError) as error:
        raise UsageError([" ".join(str(error).split())]) from error
    except KeyboardInterrupt:
        sys.stderr.write("lit-vlaa: interrupted: the report was not written\n")
        return INTERRUPTED
    lines = report.lines()
    if folder is not None:
        lines.append(f"all findings, the report and a picture of the lengths are in {folder}")
    elif sum(report.summary.counts.values()):
        lines.append("--output-dir FOLDER keeps all findings")
    sys.stdout.write("\n".join([*lines, ""]))
    return int(report.stops)


def _flags() -> Flags:
    parser = Flags(
        prog="lit-vlaa data check",
        description="Looks at every row and every image of a data file: whether they can be read, how many tokens they "
        "take, what is there twice, which ground truths earn no reward. With the configuration of a stage, lengths are "
        "held against its limits. Exits with 1 when a run would stop at something.",
    )
    add = parser.add_argument
    add("--data-file", type=Path, help="JSON array, JSON Lines or shards; default: data_file of --config")
    add("--image-root", type=Path, help="folder that image paths start from; default: image_root of --config")
    add("--split", choices=get_args(Split), help="sft or grpo; default: of --config, or what the first row looks like")
    add(
        "--against",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="other data files with the same image root, whose questions and images should not be in this one",
    )
    add(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="configuration of the stage that the rows are for, as for `lit-vlaa fit`: its processor counts tokens",
    )
    add("--workers", type=int, default=2, metavar="N", help="processes that look at rows (default: 2)")
    add("--output-dir", type=Path, help=f"folder for {PROBLEMS}, report.json, report.md and lengths.png")
    add(
        "--max-image-pixels",
        type=int,
        metavar="N",
        help=f"images with more pixels are refused; default: of --config, or {MAX_IMAGE_PIXELS}",
    )
    add("--fast", action="store_true", help="do not decode images, only read their headers")
    return parser


def _settings(given: Any) -> tuple[Path, Settings]:
    """The file to check and what it is held against: flags win over the configuration."""
    config = None
    file = given.data_file
    if given.config:
        config = read_config([word for path in given.config for word in ("--config", path)])
        file = file or _optional(config["data"]["init_args"].get("data_file"))
    if file is None:
        raise UsageError(["--data-file is missing: name the file to check, or a --config that does"])
    for flag, path in (("--data-file", file), *(("--against", other) for other in given.against)):
        if trouble := trouble_with(path):
            raise UsageError([f"{flag} {path} {trouble}"])
    if config is None:
        split = given.split or _split_of(file)
        settings = Settings(split=split, image_root=None, backbone=backbone_of(None))
    else:
        settings = with_context(of_config(config))
        settings = replace(settings, split=given.split or settings.split)
    root = given.image_root.expanduser().resolve() if given.image_root else settings.image_root
    if root is not None and not root.is_dir():
        origin = "" if given.image_root else ", as --config has it; give another"
        raise UsageError([f"--image-root {root} is no folder{origin}"])
    pixels = given.max_image_pixels or settings.max_image_pixels
    return file, replace(settings, image_root=root, max_image_pixels=pixels, fast=given.fast)


def _optional(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _split_of(file: Path) -> Split:
    """What split the first row that can be read is for."""
    for at in rows_of(file):
        if not isinstance(at.value, BadRecord):
            return "sft" if at.value.get("answer") is not None else "grpo"
    return "sft"


def _folder(folder: Path | None, files: Sequence[Path]) -> Path | None:
    """Makes the folder to write to, ahead of the work."""
    if folder is None:
        return None
    make_folder(folder)
    if taken := {folder.resolve() / name for name in (PROBLEMS, *REPORTS)} & {file.resolve() for file in files}:
        raise UsageError([f"--output-dir {folder} would overwrite {taken.pop()}; give another folder"])
    return folder


@contextmanager
def _problems_file(folder: Path | None, settings: Settings) -> Iterator[Note]:
    """Writes findings as they come; the file appears whole, at the end."""
    if folder is None:
        yield ignore
        return
    with replacing(folder / PROBLEMS) as part, part.open("w", encoding="ascii", newline="\n") as stream:

        def note(finding: Finding) -> None:
            stream.write(line_of(finding, severity_of(finding.problem, skips=settings.skips)))

        yield note
