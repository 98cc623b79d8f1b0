"""A look at some rows of every file of a run, for `lit-vlaa doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.check.parts import processor_of
from datamodules.check.report import Report
from datamodules.check.run import check
from datamodules.check.settings import Settings, of_config, with_context
from datamodules.check.summary import quantiles, total

_FILES = ("data_file", "val_file", "test_file")


def run(config: Mapping[str, Any], *, rows: int, workers: int = 1) -> tuple[list[str], bool]:
    """Looks at rows spread over each file that is there.

    Args:
        config: A parsed configuration of `lit-vlaa fit` with this project's data module.
        rows: Rows of each file.
        workers: Processes.

    Returns:
        What to tell, and whether a run would stop at something that was found.

    Raises:
        ValueError: If the settings cannot work together.
        OSError: If a file cannot be read.
    """
    data = config["data"]["init_args"]
    lines: list[str] = []
    files = {name: Path(data[name]) for name in _FILES if data.get(name)}
    lines += [
        f"--data.{name} {path} does not exist yet, so its rows were not looked at; `lit-vlaa data download` gets the "
        "released ones"
        for name, path in files.items()
        if not path.exists()
    ]
    files = {name: path for name, path in files.items() if path.exists()}
    if not files:
        return lines, False
    settings, why = _counting(of_config(config))
    if why:
        lines.append(f"tokens were not counted: {why}")
    if settings.image_root is not None and not settings.image_root.is_dir():
        lines.append(f"--data.image_root {settings.image_root} is no folder, so images were not looked at")
        settings = replace(settings, image_root=None)
    stops = False
    for name, path in files.items():
        report = check(path, settings, workers=workers, rows=rows)
        lines += [f"--data.{name} {path}: {_extent(report)}", *(f"  {line}" for line in _told(report))]
        stops |= report.stops
        size = report.summary.rows if report.sampled is None else report.sampled[1]
        held_out = data.get("val_count") or 0
        left = size - held_out
        if name == "data_file" and left <= 0 < held_out:
            lines.append(f"  error: --data.val_count {held_out} leaves none of {size} row(s) for training -> lower it")
            stops = True
        elif name == "data_file" and left < data["batch_size"]:
            lines.append(
                f"  error: {left} row(s) for training make no batch -> --data.batch_size {max(1, left)} or less"
            )
            stops = True
    return lines, stops


def _counting(settings: Settings) -> tuple[Settings, str]:
    """The settings with the context's length, or without what counts tokens where that cannot be loaded, and why."""
    try:
        settings = with_context(settings)
        processor_of(settings.backbone)
    except (ValueError, OSError) as error:
        return replace(settings, backbone=None), " ".join(str(error).split())[:300]
    return settings, ""


def _extent(report: Report) -> str:
    looked = report.summary.rows
    return f"{looked} rows looked at" if report.sampled is None else f"{looked} of {report.sampled[1]} rows looked at"


def _told(report: Report) -> list[str]:
    """Lengths, truths and problems, a line each."""
    lines = []
    summary = report.summary
    rows = [tokens for source in summary.sources.values() for tokens in total(source.lengths).tolist()]
    found, limits = quantiles(rows), summary.settings.limits
    if found is not None:
        room = "" if summary.settings.split == "sft" else f" without completions of up to {limits.response}"
        lines.append(
            f"tokens of a row{room}: median {found['p50']}, 95% within {found['p95']}, at most {found['max']}, of "
            f"{limits.row} in a micro-batch"
        )
    truths = summary.unparsable()
    if truths:
        lines.append(
            "truths scored against themselves, unparsable of all: "
            + ", ".join(f"{kind} {bad} of {scored}" for kind, (bad, scored) in truths.items())
        )
    return [*lines, *report.brief()]
