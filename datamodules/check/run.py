"""A data file from its first row to a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.check.duplicates import Duplicates, Known
from datamodules.check.engine import Rows, holds_images, looking
from datamodules.check.parts import CountingProcessor, processor_of
from datamodules.check.picture import draw
from datamodules.check.problems import Finding
from datamodules.check.report import Report
from datamodules.check.settings import Settings
from datamodules.check.summary import Summary
from lit_vlaa.whole_files import replacing

Note = Callable[[Finding], None]

REPORTS = ("report.json", "report.md", "lengths.png")


def ignore(finding: Finding) -> None:
    """Keeps no finding; they are counted all the same."""


def check(
    path: Path,
    settings: Settings,
    *,
    workers: int,
    against: Sequence[Path] = (),
    rows: int | None = None,
    note: Note = ignore,
    progress: bool = True,
) -> Report:
    """Looks at the rows of a file.

    Args:
        path: A JSON array, JSON Lines or a folder of shards.
        settings: What rows are held against.
        workers: Processes.
        against: Other files, of which no row should be in this one.
        rows: Look at this many, spread over the file; None for all.
        note: Is given every finding.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the processor cannot be loaded.
        OSError: If a file cannot be read.
        BadRecord: If one of the other files breaks off.
        UsageError: If a process is killed.
    """
    started = time.perf_counter()
    processor = None if settings.backbone is None else processor_of(settings.backbone)
    everything = Rows(path)
    size = everything.count()
    chosen = None if rows is None or rows >= size else _spread(size, rows)
    known = {str(other): _known(other, settings, workers, progress) for other in against}
    with tqdm(total=size if chosen is None else len(chosen), desc="rows", unit="row", disable=_quiet(progress)) as bar:
        summary = _look(
            Rows(path, chosen), settings, processor, workers=workers, known=known, note=note, done=bar.update
        )
    return Report(
        file=str(path),
        summary=summary,
        sampled=None if chosen is None else (len(chosen), size),
        others=tuple(known),
        opened=settings.image_root is not None or holds_images(path),
        seconds=time.perf_counter() - started,
    )


def write(report: Report, folder: Path) -> None:
    """Writes the report and, where tokens were counted, the picture of lengths; that of an earlier check goes."""
    numbers, text, picture = (folder / name for name in REPORTS)
    with replacing(numbers) as part:
        part.write_text(json.dumps(report.numbers(), indent=1) + "\n", encoding="utf-8")
    with replacing(text) as part:
        part.write_text(report.markdown(), encoding="utf-8")
    figure = draw(report.summary)
    if figure is None:
        picture.unlink(missing_ok=True)
    else:
        with replacing(picture) as part:
            figure.savefig(part, dpi=130, format="png")


def line_of(finding: Finding, severity: str) -> str:
    """A finding as a line of `problems.jsonl`, in ASCII, as it may quote anything."""
    return json.dumps({"problem": finding.problem, "severity": severity, **finding._asdict()}) + "\n"


def _look(
    rows: Rows,
    settings: Settings,
    processor: CountingProcessor | None,
    *,
    workers: int,
    known: Mapping[str, Known],
    note: Note,
    done: Callable[[], object],
) -> Summary:
    summary, duplicates = Summary(settings), Duplicates(known)
    with looking(settings, processor, workers=workers, inside=holds_images(rows.path)) as look:
        for facts in look(iter(rows)):
            for finding in summary.add(facts, [] if facts.left_out else duplicates(facts)):
                note(finding)
            done()
    last = summary.of_the_whole(all_rows=rows.chosen is None)
    if rows.broken is not None:
        broken = Finding("file_broken", rows.broken.row, rows.broken.reason)
        summary.note(broken)
        last.append(broken)
    for finding in last:
        note(finding)
    return summary


def _known(path: Path, settings: Settings, workers: int, progress: bool) -> Known:
    """What tells the rows of another file."""
    known = Known(path.name)
    rows = Rows(path)
    with (
        looking(settings, None, workers=workers, inside=holds_images(path)) as look,
        tqdm(total=rows.count(), desc=path.name, unit="row", disable=_quiet(progress)) as bar,
    ):
        for facts in look(iter(rows), fingerprint=True):
            known.add(facts)
            bar.update()
    if rows.broken is not None:
        raise rows.broken
    return known


def _spread(size: int, rows: int) -> Collection[int]:
    """Numbers from 1 to `size`, evenly spread, the first and the last among them."""
    if rows == 1:
        return {1}
    return {1 + round(place * (size - 1) / (rows - 1)) for place in range(rows)}


def _quiet(progress: bool) -> bool | None:
    """Of a bar: None shows it on terminals alone."""
    return None if progress else True
