"""`lit-vlaa eval compare`: two evaluations row by row, as a table, as JSON and as a picture."""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from callbacks.evaluation.statistics import (
    Interval,
    Pair,
    average,
    design_effect,
    interval,
    mcnemar,
    problems,
    tabulate,
)
from callbacks.evaluation.verdict_files import Key, Verdict, read_verdicts

ALL = "all rows"
WHOLE_PROBLEMS = "whole problems"
AVERAGE = "average"

_MAX_CELL = 60


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on one set of questions. Accuracies and differences are in percent."""

    benchmark: str
    part: str
    """`all rows`, `whole problems` (right where all rows of a problem are), or `tag: value`."""
    n: int
    """Questions; of `whole problems` the problems."""
    clusters: int
    """Problems among them; as many as questions where each stands alone."""
    a: float
    b: float
    difference: float
    """B less A."""
    low: float
    high: float
    """Ends of the 95% confidence interval."""
    design_effect: float | None
    """How many rows are worth one that stands alone, 1 where each does; None of an average, as the next five."""
    both: int | None
    """Questions that both got right."""
    only_a: int | None
    only_b: int | None
    neither: int | None
    p: float | None
    """Of McNemar's exact test, not corrected for the number of comparisons."""


@dataclass(frozen=True, slots=True)
class Report:
    """All comparisons of two evaluations, and what went into them."""

    common: int
    """Rows in both."""
    only_in_a: int
    only_in_b: int
    undecided_a: int
    """Common rows without a verdict, which count as wrong."""
    undecided_b: int
    comparisons: tuple[Comparison, ...]


def compare(a: Mapping[Key, Verdict], b: Mapping[Key, Verdict]) -> Report:
    """Compares two models on the rows that both answered.

    Args:
        a: Verdicts on the first one, by (benchmark, id).
        b: Verdicts on the second one.

    Returns:
        For each benchmark all rows, whole problems where rows belong together, and each value of each tag (of A's
        file); last the average over benchmarks, where there are several.

    Raises:
        ValueError: If no row is in both.
    """
    common = [key for key in a if key in b]
    if not common:
        raise ValueError("no row (benchmark and id) is in both files; compare evaluations of the same benchmarks")
    benchmarks: dict[str, list[str]] = defaultdict(list)
    for benchmark, name in common:
        benchmarks[benchmark].append(name)
    comparisons: list[Comparison] = []
    for benchmark in sorted(benchmarks):
        parts: dict[str, list[Pair]] = {ALL: []}
        for name in benchmarks[benchmark]:
            first, second = a[benchmark, name], b[benchmark, name]
            # A row that stands alone is a cluster of its own, told from a problem of the same name by the tuple.
            cluster = (name,) if first.group is None else first.group
            pair = Pair(first.hit is True, second.hit is True, cluster)
            parts[ALL].append(pair)
            for tag, value in first.tags:
                parts.setdefault(f"{tag}: {value}", []).append(pair)
        everything = parts.pop(ALL)
        comparisons.append(_comparison(benchmark, ALL, everything))
        if len(whole := problems(everything)) < len(everything):
            comparisons.append(_comparison(benchmark, WHOLE_PROBLEMS, whole))
        comparisons += [_comparison(benchmark, part, parts[part]) for part in sorted(parts)]
    if len(benchmarks) > 1:
        comparisons.append(_average(comparisons))
    return Report(
        common=len(common),
        only_in_a=len(a) - len(common),
        only_in_b=len(b) - len(common),
        undecided_a=sum(a[key].hit is None for key in common),
        undecided_b=sum(b[key].hit is None for key in common),
        comparisons=tuple(comparisons),
    )


def _comparison(benchmark: str, part: str, pairs: Sequence[Pair]) -> Comparison:
    table = tabulate(pairs)
    n, found = len(pairs), interval(pairs)
    return Comparison(
        benchmark=benchmark,
        part=part,
        n=n,
        clusters=len({pair.cluster for pair in pairs}),
        a=100 * (table.both + table.only_a) / n,
        b=100 * (table.both + table.only_b) / n,
        difference=100 * found.difference,
        low=100 * found.low,
        high=100 * found.high,
        design_effect=design_effect(pairs),
        both=int(table.both),
        only_a=int(table.only_a),
        only_b=int(table.only_b),
        neither=int(table.neither),
        p=mcnemar(int(table.only_a), int(table.only_b)),
    )


def _average(comparisons: Sequence[Comparison]) -> Comparison:
    rows = [row for row in comparisons if row.part == ALL]
    found = average([Interval(row.difference, row.low, row.high) for row in rows])
    return Comparison(
        benchmark=AVERAGE,
        part=f"{len(rows)} benchmarks",
        n=sum(row.n for row in rows),
        clusters=sum(row.clusters for row in rows),
        a=sum(row.a for row in rows) / len(rows),
        b=sum(row.b for row in rows) / len(rows),
        difference=found.difference,
        low=found.low,
        high=found.high,
        design_effect=None,
        both=None,
        only_a=None,
        only_b=None,
        neither=None,
        p=None,
    )


def markdown(report: Report, name_a: str, name_b: str) -> str:
    """The report as text with one table."""
    head = ("benchmark", "rows", "n (problems)", "A %", "B %", "B - A", "95% interval", "only A", "only B", "p")
    body = [
        (
            _cell(row.benchmark),
            _cell(row.part),
            str(row.n) if row.clusters == row.n else f"{row.n} ({row.clusters})",
            f"{row.a:.1f}",
            f"{row.b:.1f}",
            f"{row.difference:+.1f}",
            f"{row.low:+.1f} to {row.high:+.1f}",
            "" if row.only_a is None else str(row.only_a),
            "" if row.only_b is None else str(row.only_b),
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
        *([f"{report.only_in_a} only in A"] if report.only_in_a else []),
        *([f"{report.only_in_b} only in B"] if report.only_in_b else []),
    ]
    notes = ["Intervals: Newcombe's for paired proportions. p: McNemar's exact test, for each line alone."]
    if any(row.clusters < row.n for row in report.comparisons):
        notes.append(
            "Rows of one problem are less evidence than as many problems: the intervals take it into account (by the "
            "design effect), p does not. Trust p of whole problems there."
        )
    if report.undecided_a or report.undecided_b:
        notes.append(f"Undecided, counted as wrong: {report.undecided_a} of A, {report.undecided_b} of B.")
    return "\n".join(
        [f"A: {_plain(name_a)}", f"B: {_plain(name_b)}", ", ".join(facts), "", lines[0], rule, *lines[1:], "", *notes]
    )


def as_json(report: Report, name_a: str, name_b: str) -> dict[str, Any]:
    """The report as numbers for other programs."""
    return {
        "a": name_a,
        "b": name_b,
        **asdict(report),
        "method": {
            "unit": "percent; the difference is B less A",
            "level": 0.95,
            "interval": "paired proportions, method 10 of Newcombe 1998, of n / design_effect questions",
            "p": "McNemar's exact two-sided test, of rows taken for independent, for each comparison alone",
        },
    }


def run(words: Sequence[str]) -> int:
    """Compares two evaluations.

    Args:
        words: The arguments of the command.

    Returns:
        0.

    Raises:
        UsageError: If an argument cannot work.
    """
    from lit_vlaa.checks import UsageError  # noqa: PLC0415 - the comparison itself knows nothing of the project

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError([message])

    parser = Parser(
        prog="lit-vlaa eval compare",
        allow_abbrev=False,
        description="Compares two evaluations row by row: differences of accuracy for each benchmark and category with "
        "95% confidence intervals, and McNemar's test.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="a file of verdicts (.jsonl), or a folder with some")
    parser.add_argument("b", metavar="B", type=Path, help="the same of the model that A is compared with")
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, help="write comparison.json, comparison.md and comparison.png here"
    )
    parser.add_argument(
        "--name",
        help="which evaluation, where folders hold several: test, final, validate, step_100; default: the only one",
    )
    given = parser.parse_args(words)
    try:
        report = compare(read_verdicts(given.a, given.name), read_verdicts(given.b, given.name))
        text = markdown(report, str(given.a), str(given.b))
        sys.stdout.write(text + "\n")
        if given.output_dir is not None:
            _write(given.output_dir, report, text, (str(given.a), str(given.b)))
    except (ValueError, OSError) as error:
        raise UsageError([str(error)]) from error
    return 0


def _write(folder: Path, report: Report, text: str, names: tuple[str, str]) -> None:
    from callbacks.evaluation.comparison_chart import chart  # noqa: PLC0415 - matplotlib is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps(as_json(report, *names), indent=2, ensure_ascii=False)
    (folder / "comparison.json").write_text(content + "\n", encoding="utf-8")
    chart(report.comparisons, *names).savefig(folder / "comparison.png", dpi=150)
    sys.stdout.write(f"\nwritten to {folder}\n")


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
