"""Sums up what was found, by source and by problem, in memory that does not grow with what is found."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datamodules.boxes import Box, SeenBox, Size, contradictions
from datamodules.check.problems import PROBLEMS, Finding, severity_of
from datamodules.check.rows import RowFacts
from datamodules.check.settings import Settings

FIRST_ROWS = 10
"""Rows of a problem that are named."""
PARTS = ("text", "image", "response")
"""Of a row's tokens: the prompt beside its images, its images, its response."""

_MOST_BOXES = 20_000
"""Boxes of a source that are kept."""


@dataclass(slots=True)
class Source:
    """Counts of one source."""

    rows: int = 0
    bad: int = 0
    """Rows with an error."""
    missing: int = 0
    """Rows with an image that is not there."""
    duplicates: int = 0
    """Rows with the question and image of an earlier one."""
    truths: int = 0
    """Rows whose truth was scored."""
    unparsable: int = 0
    reduced: int = 0
    """Rows with an image that is made smaller for the model."""
    traces: int = 0
    cues: int = 0
    direct: int = 0
    """Rows whose response is an answer alone."""
    lengths: dict[str, array[int]] = field(default_factory=lambda: {part: array("q") for part in PARTS})


@dataclass(slots=True)
class Group:
    """Findings of one problem."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    """Row and detail of the first ones."""


class Summary:
    """Takes in facts and findings row by row.

    Args:
        settings: What rows were held against.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rows = 0
        self.left_out = 0
        """Rows of sources and kinds that the run does not use."""
        self.unusable = 0
        """Rows that a run stops at, or leaves out where it skips bad rows."""
        self.sources: defaultdict[str, Source] = defaultdict(Source)
        self.groups: defaultdict[str, Group] = defaultdict(Group)
        self._truths: Counter[str] = Counter()
        self._unparsable: Counter[str] = Counter()
        self._boxes: defaultdict[str, list[tuple[int, Box, Size]]] = defaultdict(list)

    def add(self, facts: RowFacts, repeats: list[tuple[str, str]]) -> list[Finding]:
        """Takes in a row; gives its findings, those of comparing it with others included."""
        self.rows += 1
        if facts.left_out:
            self.left_out += 1
            return []
        findings = [
            Finding(problem, facts.number, detail, facts.source, facts.kind, facts.id)
            for problem, detail in (*facts.findings, *repeats)
        ]
        names = {finding.problem for finding in findings}
        own = self.sources[facts.source or "?"]
        own.rows += 1
        self.unusable += any(PROBLEMS[name].skippable for name in names)
        own.bad += any(self._severity(name) == "error" or PROBLEMS[name].skippable for name in names)
        own.missing += "image_missing" in names
        own.duplicates += bool(names & {"duplicate_row", "contradicting_row"})
        own.truths += facts.scored
        own.unparsable += "truth_unparsable" in names
        own.reduced += facts.reduced
        own.traces += facts.trace
        own.cues += facts.cue
        own.direct += self.settings.split == "sft" and bool(facts.key) and not facts.trace
        if facts.lengths is not None:
            for part, tokens in zip(PARTS, facts.lengths, strict=True):
                own.lengths[part].append(tokens)
        self._truths[facts.kind] += facts.scored
        self._unparsable[facts.kind] += "truth_unparsable" in names
        if facts.box is not None and len(self._boxes[facts.source]) < _MOST_BOXES:
            self._boxes[facts.source].append((facts.number, *facts.box))
        for finding in findings:
            self.note(finding)
        return findings

    def note(self, finding: Finding) -> None:
        """Counts a finding."""
        group = self.groups[finding.problem]
        group.count += 1
        if len(group.first) < FIRST_ROWS:
            group.first.append((finding.row, finding.detail))

    def of_the_whole(self, *, all_rows: bool) -> list[Finding]:
        """Findings that take all rows to see; to be called once, at the end.

        Args:
            all_rows: Whether every row was looked at.
        """
        found = []
        if all_rows and self.unusable + self.left_out == self.rows:
            found.append(Finding("no_rows", 0, self._none_usable()))
        most, window = self.settings.max_failed, self.settings.failed_window
        for kind, rows in sorted(self._truths.items()):
            failed = self._unparsable[kind]
            if rows >= window and failed > most * rows:
                detail = f"{failed} of {rows} truths of kind {kind} have no verdict; {most} of them may"
                found.append(Finding("truths_fail", 0, detail, kind=kind))
        for source, boxes in sorted(self._boxes.items()):
            frame = self.settings.truth_boxes.get(source, "plain")
            # A box that holds no fractions is a finding of its own, as no verifier reads it.
            seen = [SeenBox(f"row {row}", box, size) for row, box, size in boxes if _is_box(box)]
            found += [Finding("box_frame", 0, line, source, "iou") for line in contradictions(source, frame, seen)]
        for finding in found:
            self.note(finding)
        return found

    def _none_usable(self) -> str:
        if not self.rows:
            return "it is empty"
        left = f", {self.left_out} of them left out by --data.sources and --data.kinds" if self.left_out else ""
        return f"{self.rows} rows{left}"

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by severity."""
        found = dict.fromkeys(("error", "warning", "note"), 0)
        for name, group in self.groups.items():
            found[self._severity(name)] += group.count
        return found

    def severity(self, problem: str) -> str:
        """How bad a problem is for this run."""
        return self._severity(problem)

    def _severity(self, problem: str) -> str:
        return severity_of(problem, skips=self.settings.skips)

    def unparsable(self) -> dict[str, tuple[int, int]]:
        """Truths that cannot be read and truths that were scored, by kind."""
        return {kind: (self._unparsable[kind], rows) for kind, rows in sorted(self._truths.items()) if rows}


def total(lengths: Mapping[str, array[int]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of whole rows."""
    return sum((np.asarray(lengths[part], dtype=np.int64) for part in PARTS), np.zeros(len(lengths["text"]), np.int64))


def quantiles(tokens: Any) -> dict[str, int] | None:
    """Median, 95th percentile and maximum (the smallest number with as many at or below it); None without rows."""
    if not len(tokens):
        return None
    p50, p95 = np.quantile(np.asarray(tokens), [0.5, 0.95], method="inverted_cdf").tolist()
    return {"p50": int(p50), "p95": int(p95), "max": int(max(tokens))}


def _is_box(box: Box) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
