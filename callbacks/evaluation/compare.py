"""`lit-vlaa eval compare`: an evaluation against a baseline row by row, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from callbacks.evaluation.comparison_text import as_json, markdown, short_names
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
    base: float
    new: float
    difference: float
    """The new model less the baseline: above 0 it is better."""
    low: float
    high: float
    """Ends of the 95% confidence interval."""
    design_effect: float | None
    """How many rows are worth one that stands alone, 1 where each does; None of an average, as the next five."""
    both: int | None
    """Questions that both got right."""
    only_base: int | None
    only_new: int | None
    neither: int | None
    p: float | None
    """Of McNemar's exact test, not corrected for the number of comparisons."""


@dataclass(frozen=True, slots=True)
class Report:
    """All comparisons of two evaluations, and what went into them."""

    common: int
    """Rows in both."""
    only_in_base: int
    only_in_new: int
    undecided_base: int
    """Common rows without a verdict, which count as wrong."""
    undecided_new: int
    comparisons: tuple[Comparison, ...]


def compare(base: Mapping[Key, Verdict], new: Mapping[Key, Verdict]) -> Report:
    """Compares two models on the rows that both answered.

    Args:
        base: Verdicts on the baseline, by (benchmark, id).
        new: Verdicts on the model that it is held against.

    Returns:
        For each benchmark all rows, whole problems where rows belong together, and each value of each tag (of the
        baseline's file); last the average over benchmarks, where there are several.

    Raises:
        ValueError: If no row is in both.
    """
    common = [key for key in base if key in new]
    if not common:
        raise ValueError("no row (benchmark and id) is in both files; compare evaluations of the same benchmarks")
    benchmarks: dict[str, list[str]] = defaultdict(list)
    for benchmark, name in common:
        benchmarks[benchmark].append(name)
    comparisons: list[Comparison] = []
    for benchmark in sorted(benchmarks):
        parts: dict[str, list[Pair]] = {ALL: []}
        for name in benchmarks[benchmark]:
            first, second = base[benchmark, name], new[benchmark, name]
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
        only_in_base=len(base) - len(common),
        only_in_new=len(new) - len(common),
        undecided_base=sum(base[key].hit is None for key in common),
        undecided_new=sum(new[key].hit is None for key in common),
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
        base=100 * (table.both + table.only_a) / n,
        new=100 * (table.both + table.only_b) / n,
        difference=100 * found.difference,
        low=100 * found.low,
        high=100 * found.high,
        design_effect=design_effect(pairs),
        both=int(table.both),
        only_base=int(table.only_a),
        only_new=int(table.only_b),
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
        base=sum(row.base for row in rows) / len(rows),
        new=sum(row.new for row in rows) / len(rows),
        difference=found.difference,
        low=found.low,
        high=found.high,
        design_effect=None,
        both=None,
        only_base=None,
        only_new=None,
        neither=None,
        p=None,
    )


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
    from lit_vlaa.flags import Flags  # noqa: PLC0415

    parser = Flags(
        prog="lit-vlaa eval compare",
        description="Compares an evaluation with a baseline row by row: differences of accuracy (NEW less BASE; above "
        "0 NEW is better) for each benchmark and category with 95% confidence intervals, and McNemar's test.",
    )
    parser.add_argument(
        "base", metavar="BASE", type=Path, help="the baseline: a file of verdicts (.jsonl), or a folder with some"
    )
    parser.add_argument("new", metavar="NEW", type=Path, help="the same of the model that is held against it")
    parser.add_argument("--output-dir", type=Path, help="write comparison.json, comparison.md and comparison.png here")
    parser.add_argument(
        "--name",
        help="which evaluation, where folders hold several: test, final, validate, step_100; default: the only one",
    )
    given = parser.read(words)
    try:
        report = compare(read_verdicts(given.base, given.name), read_verdicts(given.new, given.name))
        text = markdown(report, given.base, given.new)
        sys.stdout.write(text + "\n")
        if given.output_dir is not None:
            _write(given.output_dir, report, text, (given.base, given.new))
    except (ValueError, OSError) as error:
        raise UsageError([str(error)]) from error
    return 0


def _write(folder: Path, report: Report, text: str, origins: tuple[Path, Path]) -> None:
    from callbacks.evaluation.comparison_chart import chart  # noqa: PLC0415 - matplotlib is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps(as_json(report, *origins), indent=2, ensure_ascii=False)
    (folder / "comparison.json").write_text(content + "\n", encoding="utf-8")
    chart(report.comparisons, *short_names(*origins)).savefig(folder / "comparison.png", dpi=150)
    sys.stdout.write(f"\nwritten to {folder}\n")
