"""Tables, single values and the picture of where a GRPO step's time goes."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.candidates import Settings, spelled
from benchmarks.cases import SIDES, Case
from benchmarks.gates import Gate
from benchmarks.lockstep import Values
from benchmarks.machine import processor_name
from benchmarks.models import Setup

PHASES = ("prepare", "rollout", "reward", "old log-probabilities", "update")
"""Of a GRPO step, in the order in which they come."""
_COMPARED = ("whole step", "processor time", "rollout", "update", "peak memory")
_LEAST_SHOWN = 0.005
_PACKAGES = ("torch", "transformers", "trl", "lightning", "torchvision")
_COLOURS = ("#8c96a0", "#3b75af", "#c44e52", "#937860", "#ef8636")


@dataclass
class Row:
    """One line of the table: the same quantity of both sides."""

    case: str
    way: str
    quantity: str
    unit: str
    values: dict[str, list[float]]
    """By side, one value a repeat."""

    @property
    def ratio(self) -> float:
        """How many times better ours is, from the medians: more for rates, less for seconds and bytes."""
        ours, other = (statistics.median(self.values[side]) for side in SIDES)
        return ours / other if self.unit.endswith("/s") else other / ours


@dataclass
class Report:
    """Everything that one run found."""

    command: str
    machine: str
    repeats: int
    gates: list[Gate] = field(default_factory=list)
    best: dict[tuple[str, str], Settings] = field(default_factory=dict)
    """By task and side."""
    trials: dict[str, dict[str, float | str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, case: Case, way: str, settings: dict[str, Settings], seen: dict[str, list[Values]]) -> None:
        """Takes up the steps of both sides."""
        steps = {side: [float(values["step"]) for values in seen[side]] for side in SIDES}
        parts = {"step": "whole step"}
        if case.task == "grpo":
            parts |= {"rollout": "rollout", "update": "update"}
        for phase, label in parts.items():
            values = {side: [case.tokens / float(v[phase]) for v in seen[side]] for side in SIDES}
            self.rows.append(Row(case.name, way, label, "tokens/s", values))
        self.rows.append(Row(case.name, way, "whole step", "s", steps))
        if case.setup.device == "cpu":
            busy = {side: [float(values["cpu"]) for values in seen[side]] for side in SIDES}
            self.rows.append(Row(case.name, way, "processor time", "s", busy))
        if case.task == "grpo":
            for phase in PHASES:
                shares = {side: [float(values.get(phase, 0.0)) for values in seen[side]] for side in SIDES}
                self.rows.append(Row(case.name, way, phase, "s", shares))
        chosen = "; ".join(f"{side}: {spelled(settings[side])}" for side in SIDES)
        self.notes.append(f"{case.name}, {way} settings: {chosen}. {case.tokens:,} valid tokens a step.")

    def add_memory(self, case: Case, way: str, peaks: dict[str, int]) -> None:
        """Takes up peak memory in bytes."""
        values = {side: [peak / 2**20] for side, peak in peaks.items()}
        self.rows.append(Row(case.name, way, "peak memory", "MiB", values))

    def summary(self, case: Case, way: str) -> str:
        """The ratio of whole steps in a few words."""
        found = next(r for r in self.rows if (r.case, r.way, r.quantity, r.unit) == (case.name, way, "whole step", "s"))
        ours, other = (statistics.median(found.values[side]) for side in SIDES)
        return f"ours {ours:.2f} s, TRL {other:.2f} s a step, {found.ratio:.2f}x"


def table(report: Report) -> str:
    """The report in Markdown."""
    lines = [
        f"Command: `{report.command}`. Machine: {report.machine}.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
        "",
        *(f"- Gate passed, {gate.name}: {gate.found}." for gate in report.gates),
        *(f"- {note}" for note in report.notes),
        "",
        f"| median (lowest to highest) of {report.repeats} | settings | | unit | ours | TRL | ours against TRL |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in report.rows:
        ours, other = (row.values[side] for side in SIDES)
        if max(statistics.median(ours), statistics.median(other)) < _LEAST_SHOWN:
            continue
        ratio = f"**{row.ratio:.2f}x**" if row.quantity in _COMPARED else ""
        cells = [row.case, row.way, row.quantity, row.unit, _cell(ours), _cell(other), ratio]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(report: Report, stem: Path) -> None:
    """Writes `.md`, `.json` and `.png`, and prints the table."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = table(report)
    print(text)
    Path(f"{stem}.md").write_text(f"{text}\n![Where a GRPO step's time goes]({stem.name}.png)\n", encoding="utf-8")
    content = {
        "command": report.command,
        "machine": report.machine,
        "versions": versions(),
        "gates": [vars(gate) for gate in report.gates],
        "trials": report.trials,
        "notes": report.notes,
        "rows": [vars(row) for row in report.rows],
    }
    Path(f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    picture(report, Path(f"{stem}.png"))


def picture(report: Report, path: Path) -> None:
    """Bars of the seconds of a GRPO step by phase, ours beside TRL's."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only this needs it

    cases = dict.fromkeys((row.case, row.way) for row in report.rows if row.quantity == "update" and row.unit == "s")
    medians = {
        (row.case, row.way, row.quantity, side): statistics.median(row.values[side])
        for row in report.rows
        if row.unit == "s"
        for side in SIDES
    }
    figure = Figure(figsize=(9, 1.2 + 1.1 * len(cases)), layout="constrained")
    axes = figure.subplots()
    bars = [(case, way, side) for case, way in cases for side in SIDES]
    for phase, colour in zip(PHASES, _COLOURS, strict=True):
        widths = [medians[case, way, phase, side] for case, way, side in bars]
        before = PHASES[: PHASES.index(phase)]
        starts = [sum(medians[case, way, name, side] for name in before) for case, way, side in bars]
        if max(widths, default=0.0) >= _LEAST_SHOWN:
            axes.barh(range(len(bars)), widths, left=starts, color=colour, label=phase)
    labels = [f"{'ours' if side == 'ours' else 'TRL'}, {way}\n{case}" for case, way, side in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a GRPO step, medians")
    figure.legend(loc="outside upper center", ncols=len(PHASES), fontsize=7)
    figure.savefig(path, dpi=130)


def versions() -> dict[str, str]:
    """Of Python and those of the packages that are there."""
    there = [name for name in _PACKAGES if find_spec(name) is not None]
    return {"python": platform.python_version(), **{name: version(name) for name in there}}


def machine(setup: Setup) -> str:
    """Processor, threads and how busy it is now."""
    parts = [processor_name(), f"{setup.threads} threads", f"{platform.system()} {platform.machine()}"]
    if setup.device == "cuda":
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts) + f", load {os.getloadavg()[0]:.1f} of {os.cpu_count()} at the start"


def _cell(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"
