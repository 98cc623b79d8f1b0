"""What was found, for a terminal, as Markdown and as numbers. Everything that comes from the data is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.check.problems import PROBLEMS
from datamodules.check.settings import Settings
from datamodules.check.summary import FIRST_ROWS, PARTS, Source, Summary, quantiles, total

_MAX_DETAIL = 160
_ESCAPES = {char: f"&#{ord(char)};" for char in "<>&|`*_[]()#!~\\$"}
_HEAD = ("source", "rows", "bad", "missing images", "duplicates", "tokens p50", "p95", "max", "truths unparsable")
_MORE = ("source", "text p50", "max", "image p50", "max", "reduced", "response p50", "max", "traces", "aha", "direct")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is told of a file."""

    file: str
    summary: Summary
    sampled: tuple[int, int] | None
    """Rows looked at and rows in the file, where not all were."""
    others: tuple[str, ...]
    """Files that it was compared with."""
    opened: bool
    """Whether images were looked at."""
    seconds: float

    @property
    def stops(self) -> bool:
        """Whether there is a finding that a run stops at."""
        return self.summary.counts["error"] > 0

    def lines(self) -> list[str]:
        """The report for a terminal."""
        head, body = self._table()
        lines = [*self.remarks(), "", *_columns([head, *body])]
        more, parts = self._parts()
        lines += ["", *_columns([more, *parts])] if parts else []
        for name, count, where, first in self._problems():
            problem = PROBLEMS[name]
            lines += ["", f"{self.summary.severity(name)}: {problem.headline}: {count} ({where})"]
            lines += [f"  {detail}" for detail in first]
            lines.append(f"  -> {problem.remedy}")
        return [*lines, "", self.verdict()]

    def brief(self) -> list[str]:
        """One line a problem."""
        return [
            f"{self.summary.severity(name)}: {PROBLEMS[name].headline}: {count} ({where}) -> {PROBLEMS[name].remedy}"
            for name, count, where, _ in self._problems()
        ]

    def markdown(self) -> str:
        """The report as Markdown."""
        lines = [f"# Check of {_escaped(self.file)}", "", *(f"- {_escaped(line)}" for line in self.remarks()), ""]
        for head, body in (self._table(), self._parts()):
            if body:
                lines += [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
                lines += [*(_row([_escaped(cell) for cell in cells]) for cells in body), ""]
        for name, count, where, first in self._problems():
            problem = PROBLEMS[name]
            lines += [f"## {name}: {count}", "", f"{self.summary.severity(name)}: {problem.headline} ({where}).", ""]
            lines += [f"- {_escaped(detail)}" for detail in first]
            lines += ["", f"What to do: {_escaped(problem.remedy)}.", ""]
        return "\n".join([*lines, self.verdict(), ""])

    def numbers(self) -> dict[str, Any]:
        """The report for other programs."""
        summary, settings = self.summary, self.summary.settings
        limits = settings.limits
        return {
            "format": 1,
            "file": self.file,
            "split": settings.split,
            "rows": summary.rows,
            "rows_left_out": summary.left_out,
            "sampled_of": None if self.sampled is None else self.sampled[1],
            "compared_with": list(self.others),
            "decoded": self.opened and not settings.fast,
            "limits": {"row": limits.row, "response": limits.response, "context": limits.context},
            "findings": summary.counts,
            "problems": {
                name: {
                    "severity": summary.severity(name),
                    "count": group.count,
                    "first_rows": [row for row, _ in group.first],
                    "remedy": PROBLEMS[name].remedy,
                }
                for name, group in self._groups()
            },
            "truths": {kind: {"unparsable": bad, "scored": all_} for kind, (bad, all_) in summary.unparsable().items()},
            "sources": {name: _numbers(source) for name, source in sorted(summary.sources.items())},
            "seconds": round(self.seconds, 1),
        }

    def remarks(self) -> list[str]:
        """What was looked at and what was not."""
        summary, settings = self.summary, self.summary.settings
        rows = f"{summary.rows} rows" if self.sampled is None else f"{self.sampled[0]} of {self.sampled[1]} rows"
        lines = [f"{_plain(self.file)}: {rows} for split {settings.split}, {self.seconds:.0f} seconds"]
        if summary.left_out:
            lines.append(f"{summary.left_out} rows not looked at: --data.sources and --data.kinds leave them out")
        lines += _unseen(settings, opened=self.opened)
        if self.others:
            lines.append(f"compared with {', '.join(map(_plain, self.others))}")
        for kind, (bad, rows_of_kind) in summary.unparsable().items():
            lines.append(f"truths of kind {_plain(kind)}: {rows_of_kind} scored against themselves, {bad} unparsable")
        return lines

    def verdict(self) -> str:
        """The last line."""
        counts = self.summary.counts
        if not sum(counts.values()):
            return "nothing found"
        text = ", ".join(f"{number} {name}(s)" for name, number in counts.items())
        return f"{text}: " + ("a run would stop" if self.stops else "no run stops at these")

    def _groups(self) -> list[tuple[str, Any]]:
        order = {"error": 0, "warning": 1, "note": 2}
        found = [(name, self.summary.groups[name]) for name in PROBLEMS if name in self.summary.groups]
        return sorted(found, key=lambda item: order[self.summary.severity(item[0])])

    def _problems(self) -> list[tuple[str, int, str, list[str]]]:
        """Name, count, rows, and the first details of each problem."""
        result = []
        for name, group in self._groups():
            rows = [str(row) for row, _ in group.first if row]
            more = f" and {group.count - FIRST_ROWS} more" if group.count > FIRST_ROWS else ""
            where = f"row{'s' if len(rows) > 1 else ''} {', '.join(rows)}{more}" if rows else "the file"
            first = [_plain(f"row {row}: {text}" if row else text) for row, text in group.first[:3] if text]
            result.append((name, group.count, where, first))
        return result

    def _table(self) -> tuple[Sequence[str], list[list[str]]]:
        body = []
        for name, source in sorted(self.summary.sources.items()):
            tokens = quantiles(total(source.lengths))
            cells = [source.rows, source.bad, source.missing, source.duplicates]
            body.append([_plain(name), *map(str, cells), *_shown(tokens, "p50", "p95", "max")])
            body[-1].append(f"{source.unparsable} of {source.truths}" if source.truths else "-")
        return _HEAD, body

    def _parts(self) -> tuple[Sequence[str], list[list[str]]]:
        body = []
        for name, source in sorted(self.summary.sources.items()):
            text, image, response = (quantiles(source.lengths[part]) for part in PARTS)
            cells = [*_shown(text, "p50", "max"), *_shown(image, "p50", "max"), str(source.reduced)]
            cells += _shown(response, "p50", "max")
            body.append([_plain(name), *cells, str(source.traces), str(source.cues), str(source.direct)])
        shown = len(_MORE) if self.summary.settings.split == "sft" else _MORE.index("response p50")
        return _MORE[:shown], [cells[:shown] for cells in body]


def _unseen(settings: Settings, *, opened: bool) -> list[str]:
    """What the settings keep from being looked at."""
    lines = []
    if not opened:
        lines.append("images were not looked at: give --image-root")
    elif settings.fast:
        lines.append(
            "--fast: images were not decoded, only their headers were read, and the same image is known by its path"
        )
    limits = settings.limits
    if settings.backbone is None:
        lines.append("tokens were not counted")
    elif limits.row is None:
        lines.append(f"tokens are those of {_plain(settings.backbone.path)}: give --config to hold them against limits")
    else:
        lines.append(
            f"tokens are those of {_plain(settings.backbone.path)}, images of {settings.backbone.max_pixels} pixels at "
            f"most; limits: {limits.row} a micro-batch, {limits.response} a completion, "
            f"{limits.context or 'unknown'} of context. Nothing is ever truncated: longer rows are findings"
        )
    return lines


def _numbers(source: Source) -> dict[str, Any]:
    return {
        **{name: getattr(source, name) for name in source.__slots__ if name != "lengths"},
        "tokens": quantiles(total(source.lengths)),
        "tokens_by_part": {part: quantiles(source.lengths[part]) for part in PARTS},
    }


def _shown(found: dict[str, int] | None, *names: str) -> list[str]:
    return ["-" if found is None else str(found[name]) for name in names]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """One line that shows as it stands on a terminal."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= _MAX_DETAIL else f"{shown[: _MAX_DETAIL - 3]}..."


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)
