"""A comparison as text with a table, and as numbers for other programs."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.evaluation.compare import Report

_MAX_CELL = 60
_MAX_NAME = 24


def markdown(report: Report, base: Path, new: Path) -> str:
    """The report as text with one table.

    Args:
        report: What to tell.
        base: Where the baseline's verdicts are from.
        new: Where those of the other model are from.
    """
    old_name, new_name = map(_cell, short_names(base, new))
    shares = (f"{old_name} %", f"{new_name} %", "difference", "95% interval")
    head = ("benchmark", "rows", "n (problems)", *shares, f"only {old_name}", f"only {new_name}", "p")
    body = [
        (
            _cell(row.benchmark),
            _cell(row.part),
            str(row.n) if row.clusters == row.n else f"{row.n} ({row.clusters})",
            f"{row.base:.1f}",
            f"{row.new:.1f}",
            f"{row.difference:+.1f}",
            f"{row.low:+.1f} to {row.high:+.1f}",
            "" if row.only_base is None else str(row.only_base),
            "" if row.only_new is None else str(row.only_new),
            "" if row.p is None else _p(row.p),
        )
        for row in report.comparisons
    ]
    cells = [head, *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(_padded(line, widths)) + " |" for line in cells]
    rule = "| " + " | ".join("-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)) + " |"
    facts = [
        f"{report.common} rows in both",
        *([f"{report.only_in_base} only in {old_name}"] if report.only_in_base else []),
        *([f"{report.only_in_new} only in {new_name}"] if report.only_in_new else []),
    ]
    notes = [
        f"Differences: {new_name} less {old_name}, in percentage points; above 0 {new_name} is better.",
        "Intervals: Newcombe's for paired proportions. p: McNemar's exact test, for each line alone.",
    ]
    if any(row.clusters < row.n for row in report.comparisons):
        notes.append(
            "Rows of one problem are less evidence than as many problems: the intervals take it into account (by the "
            "design effect), p does not. Trust p of whole problems there."
        )
    if report.undecided_base or report.undecided_new:
        counts = f"{report.undecided_base} of {old_name}, {report.undecided_new} of {new_name}"
        notes.append(f"Undecided, counted as wrong: {counts}.")
    origins = [f"{old_name} (baseline): {_plain(str(base))}", f"{new_name}: {_plain(str(new))}", ", ".join(facts)]
    return "\n".join([*origins, "", lines[0], rule, *lines[1:], "", *notes])


def as_json(report: Report, base: Path, new: Path) -> dict[str, Any]:
    """The report as numbers for other programs."""
    return {
        "base": str(base),
        "new": str(new),
        **asdict(report),
        "method": {
            "unit": "percent; the difference is new less base",
            "level": 0.95,
            "interval": "paired proportions, method 10 of Newcombe 1998, of n / design_effect questions",
            "p": "McNemar's exact two-sided test, of rows taken for independent, for each comparison alone",
        },
    }


def short_names(base: Path, new: Path) -> tuple[str, str]:
    """What tells two paths apart: the last part of each in which they differ, else `base` and `new`."""
    parts = [[part.removesuffix(".jsonl") for part in path.resolve().parts] for path in (base, new)]
    while all(parts) and parts[0][-1] == parts[1][-1]:
        for found in parts:
            found.pop()
    first, second = (found[-1][-_MAX_NAME:] if len(found) > 1 else "" for found in parts)
    return (first, second) if first and second and first != second else ("base", "new")


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _cell(text: str) -> str:
    """Text of a data file that cannot leave its cell."""
    short = text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 3]}..."
    return html.escape(_plain(short), quote=False).replace("|", "&#124;").replace("`", "&#96;")
