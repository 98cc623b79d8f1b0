"""What an evaluation found, for people: numbers by name, a table, a bar chart, and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from callbacks.benchmarks.interface import Benchmark
from callbacks.evaluation.responses import write_whole

AVERAGE = "average"
_LEAST_TOP = 5.0
"""Percent that the chart's axis reaches at least."""
Scope = Literal["subset", "full"]


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's numbers."""

    benchmark: Benchmark
    numbers: Mapping[str, float]
    """What `Benchmark.aggregate` gave, and `failed`, `truncated_rate`, `tokens`."""
    judged: bool
    """Whether a judge was given."""
    unanswered: int = 0
    """Calls of the judge without a reply."""
    asked: int = 0
    """Calls of the judge."""

    @property
    def caveat(self) -> str | None:
        """Why the number cannot be held against the leaderboard's; None where it can."""
        if self.unanswered:
            return f"the judge did not answer {self.unanswered} of {self.asked} calls"
        if not (self.judged or self.benchmark.rules_suffice):
            return "scored by rules alone: give a judge"
        return None

    @property
    def comparable(self) -> bool:
        """False where rules alone scored what takes a judge on the leaderboard, and where calls went unanswered."""
        return self.caveat is None

    @property
    def headline(self) -> float:
        """The number that the paper reports."""
        return self.numbers[self.benchmark.headline]


def scalars(results: Sequence[Result]) -> dict[str, float]:
    """`eval/<benchmark>` for the headlines, `eval/<benchmark>_stderr`, the rest below, and `eval/average`."""
    values: dict[str, float] = {}
    for result in results:
        name = f"eval/{result.benchmark.name}"
        values[name] = result.headline
        values[f"{name}_stderr"] = result.numbers["stderr"]
        values |= {f"{name}/{key}": value for key, value in result.numbers.items() if key != "stderr"}
    if results:
        values[f"eval/{AVERAGE}"] = average(results)
    return values


def average(results: Sequence[Result]) -> float:
    """Mean of the headlines."""
    return sum(result.headline for result in results) / len(results)


def table(results: Sequence[Result], others: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown with a row a benchmark.

    Args:
        results: What was found.
        others: Headlines to show beside it: name of the column, then benchmark.
    """
    head = ["benchmark", "score", "±", *others, "rows", "undecided %", "truncated %", "failed rows"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for result in results:
        numbers, name = result.numbers, result.benchmark.name
        cells = [
            result.benchmark.title + ("" if result.comparable else " *"),
            f"{result.headline:.1f}",
            f"{numbers['stderr']:.1f}",
            *(_cell(row.get(name)) for row in others.values()),
            f"{numbers['n']:.0f}",
            f"{numbers['undecided_rate']:.1f}",
            f"{numbers['truncated_rate']:.1f}",
            f"{numbers['failed']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{average(results):.1f}", "", *(_cell(_mean(row, results)) for row in others.values())]
    lines.append("| average | " + " | ".join([*means, "", "", "", ""]) + " |")
    if caveats := [f"{result.benchmark.title}: {result.caveat}" for result in results if not result.comparable]:
        lines += ["", f"\\* not comparable with the leaderboard: {'; '.join(caveats)}"]
    return "\n".join(lines)


def chart(results: Sequence[Result], others: Mapping[str, Mapping[str, float]], heading: str) -> Any:
    """A matplotlib figure: a group of bars a benchmark, with standard errors; hatched where not comparable."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    names = [result.benchmark.name for result in results]
    series: dict[str, Mapping[str, float]] = {"this model": {r.benchmark.name: r.headline for r in results}}
    series |= {title: row for title, row in others.items() if row.keys() & set(names)}
    figure = Figure(figsize=(max(5.0, 1.5 * len(results) + 1.5), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for number, row in enumerate(series.values()):
        for place, result in enumerate(results):
            height = row.get(result.benchmark.name)
            if height is None:
                continue
            error = result.numbers["stderr"] if number == 0 else 0.0
            hatch = "//" if number == 0 and not result.comparable else None
            middle = place + (number - (len(series) - 1) / 2) * width
            axes.bar(middle, height, width, yerr=error or None, capsize=3, color=f"C{number}", hatch=hatch)
            axes.text(middle, height + error, f"{height:.0f}", ha="center", va="bottom")
    axes.set_xticks(range(len(results)), [_label(result) for result in results])
    axes.set_ylabel("score in %")
    axes.set_title(heading)
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0, top=max(_LEAST_TOP, axes.get_ylim()[1]))
    handles = [Patch(color=f"C{number}", label=title) for number, title in enumerate(series)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(series), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_summary(path: Path, label: str, row: Mapping[str, Any]) -> None:
    """Adds a row to `summary.json`, in place of an earlier one of that label."""
    write_whole(path, json.dumps({**read_summary(path), label: row}, indent=2) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """The rows of `summary.json` by label, none if it is not there or no summary."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def headlines(
    summary: Mapping[str, Any], scope: Scope, results: Sequence[Result]
) -> tuple[dict[str, float], list[str]]:
    """What a summary's first row of that scope holds against results.

    Returns:
        By benchmark the headlines that were found as in `results`: the same scoring, the same number, as many rows; and
        a text for each that was not. Nothing without such a row, or if it has another form.
    """
    found: dict[str, float] = {}
    unlike: list[str] = []
    try:
        row = next(row for row in summary.values() if row is not None and row["scope"] == scope)
        for result in results:
            name = result.benchmark.name
            if (entry := row["benchmarks"].get(name)) is None:
                continue
            pairs = {
                "profile": (entry["profile"], result.benchmark.profile),
                "metric": (entry["metric"], result.benchmark.headline),
                "n": (entry["numbers"]["n"], result.numbers["n"]),
            }
            differ = [f"{key} is {their}, here {own}" for key, (their, own) in pairs.items() if their != own]
            if differ:
                unlike.append(f"{name}: {', '.join(differ)}")
            else:
                found[name] = float(entry["headline"])
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError):
        return {}, []
    return found, unlike


def _label(result: Result) -> str:
    return result.benchmark.title + ("" if result.comparable else "\n(not comparable)")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _mean(row: Mapping[str, float], results: Sequence[Result]) -> float | None:
    """The mean over the same benchmarks; None where one of them is unknown."""
    values = [row[result.benchmark.name] for result in results if result.benchmark.name in row]
    return sum(values) / len(values) if len(values) == len(results) else None
