"""What was kept, by source and by perplexity: as JSON, Markdown and a picture."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_vlaa.selection.choice import Floats, Integers
from lit_vlaa.selection.rows import Pool
from lit_vlaa.selection.scores import Scores
from lit_vlaa.study.trace_report import escaped
from lit_vlaa.whole_files import replacing

REPORT_JSON, REPORT_MD, SCORES, PICTURE = "report.json", "report.md", "scores.jsonl", "perplexity.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A finished choice."""

    facts: Mapping[str, Any]
    """What it was made of and how, for JSON."""
    pool: Pool
    order: Integers
    """Places in the pool, the first to keep first; those that cannot be kept are left out."""
    files: Mapping[int, Path]
    """By number of rows."""
    logs: Floats | None = None
    """`[R]` logarithm of each row's perplexity over all models, NaN for rows without; None where nothing was scored."""
    scores: Sequence[Scores] = ()
    """Of each model."""
    unscored: Mapping[str, int] = field(default_factory=dict)
    """Rows that could not be scored, by reason."""

    def report(self) -> dict[str, Any]:
        """Counts and perplexities, by source."""
        sources = np.asarray(self.pool.sources)
        groups = {name: sources == name for name in sorted(set(self.pool.sources))}
        kept = {}
        for count, path in self.files.items():
            chosen = self.order[:count]
            kept[str(count)] = {
                "file": path.name,
                "sources": dict(sorted(Counter(sources[chosen].tolist()).items())),
                **({} if self.logs is None else {"perplexity": _spread(self.logs[chosen])}),
            }
        return {
            "format": 1,
            **self.facts,
            "rows": len(self.pool.table),
            "eligible": len(self.pool.rows),
            "left_out": dict(self.pool.table.skipped),
            "unscored": dict(self.unscored),
            "sources": {
                name: {
                    "rows": int(mask.sum()),
                    **({} if self.logs is None else {"perplexity": _spread(self.logs[mask])}),
                }
                for name, mask in groups.items()
            },
            "kept": kept,
        }


def write(selection: Selection, folder: Path) -> dict[str, Any]:
    """Writes report and, where rows were scored, scores and picture; those of an earlier choice go.

    Returns:
        The report.
    """
    report = selection.report()
    with replacing(folder / REPORT_JSON) as part:
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(folder / REPORT_MD) as part:
        part.write_text(markdown(report), encoding="utf-8")
    if selection.logs is None:
        (folder / SCORES).unlink(missing_ok=True)
        (folder / PICTURE).unlink(missing_ok=True)
        return report
    _write_scores(selection, selection.logs, folder / SCORES)
    with replacing(folder / PICTURE) as part:
        _draw(selection, selection.logs).savefig(part, format="png", dpi=150)
    return report


def _write_scores(selection: Selection, logs: Floats, path: Path) -> None:
    """One line a row of the pool, in the order of the data file."""
    ranks = np.full(len(logs), -1)
    ranks[selection.order] = np.arange(len(selection.order))
    ids = selection.pool.table.texts("id")
    wanted = iter(selection.pool.places.tolist())
    ahead = next(wanted)
    at = 0
    with replacing(path) as part, part.open("w", encoding="ascii", newline="\n") as stream:
        for place, name in enumerate(ids):
            if place != ahead:
                continue
            scored = [(float(own.nll[at]), int(own.tokens[at])) for own in selection.scores]
            line = {
                "row": int(selection.pool.rows[at]),
                "id": name,
                "source": selection.pool.sources[at],
                "place": int(ranks[at]) + 1 or None,
                "perplexity": _perplexity(logs[at]),
                "models": [{"nll": nll, "tokens": tokens} if tokens else None for nll, tokens in scored],
            }
            stream.write(json.dumps(line, allow_nan=False) + "\n")
            at, ahead = at + 1, next(wanted, -1)


def _perplexity(log: float) -> float | None:
    """None where there is none, or none that a float holds."""
    return math.exp(log) if log < 709 else None


def _spread(logs: Floats) -> dict[str, float | None] | None:
    found = logs[np.isfinite(logs)]
    if not len(found):
        return None
    return {
        name: _perplexity(float(of(found))) for name, of in (("min", np.min), ("median", np.median), ("max", np.max))
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    scored = any("perplexity" in own for own in report["sources"].values())
    lines = [f"# Rows selected from {escaped(report['data_file'])}", ""]
    lines += [f"- {text}" for text in sentences(report, _cell)]
    counts = list(report["kept"])
    head = ["source", "rows", *(["median perplexity"] if scored else []), *(f"kept of {count}" for count in counts)]
    lines += ["", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for name, own in report["sources"].items():
        cells = [escaped(name), str(own["rows"])]
        if scored:
            cells.append(_number((own["perplexity"] or {}).get("median")))
        for count in counts:
            kept = report["kept"][count]["sources"].get(name, 0)
            cells.append(f"{kept} ({100 * kept / own['rows']:.0f}%)")
        lines.append(f"| {' | '.join(cells)} |")
    if scored:
        lines += ["", f"![Perplexities, and what was kept]({PICTURE})"]
    return "\n".join([*lines, ""])


def sentences(report: Mapping[str, Any], shown: Callable[[str], str]) -> list[str]:
    """What was done, in lines of words; `shown` makes what came from files harmless."""
    lines = [f"{report['rows']} usable rows, {report['eligible']} of them to choose from"]
    lines += [f"{count} rows left out: {shown(reason)}" for reason, count in report["left_out"].items()]
    lines += [f"{count} rows without a score: {shown(reason)}" for reason, count in report["unscored"].items()]
    for count, kept in report["kept"].items():
        spread = kept.get("perplexity")
        between = "" if spread is None else f", perplexity {_number(spread['min'])} to {_number(spread['max'])}"
        lines.append(f"{count} rows in {shown(kept['file'])}{between}")
    return lines


def _cell(text: str) -> str:
    return escaped(text, 200)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _draw(selection: Selection, logs: Floats) -> Any:
    """Histogram of all rows, with the kept ones over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    values = logs / math.log(10)
    found = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(found, bins=80)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.hist(found, edges.tolist(), color="#cccccc", label=f"all {len(found)}")
    for number, count in enumerate(sorted(selection.files, reverse=True)):
        shade = 0.35 + 0.5 * number / max(1, len(selection.files) - 1)
        axis.hist(
            values[selection.order[:count]], edges.tolist(), color=(0.1, 0.35, 0.65, shade), label=f"kept {count}"
        )
    axis.set_xlabel("perplexity of the response (logarithmic)")
    axis.set_ylabel("rows")
    axis.xaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}" if value < 300 else f"1e{value:.0f}")
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure
