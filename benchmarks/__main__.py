"""Measures SFT and GRPO steps beside TRL's, in one environment and in turns; `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import theirs
from benchmarks.candidates import OURS_DEFAULTS, THEIRS_DEFAULTS, Settings, fastest
from benchmarks.cases import SIDES, Case, quiet
from benchmarks.gates import all_gates, tolerance
from benchmarks.lockstep import take_turns
from benchmarks.memory import measured_apart
from benchmarks.models import Setup
from benchmarks.report import Report, machine, write

LEAST_REPEATS = 5
_DEFAULTS: dict[str, Settings] = {"ours": OURS_DEFAULTS, "trl": THEIRS_DEFAULTS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", choices=("tiny", "random-3b"), default="tiny", help="default tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help="timed steps of each side (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    options = parser.parse_args(arguments)
    if options.repeats < LEAST_REPEATS:
        parser.error(f"--repeats must be at least {LEAST_REPEATS}, got {options.repeats}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if (reason := theirs.missing()) is not None:
        parser.error(reason)
    quiet()
    torch.set_num_threads(options.threads)
    setup = Setup(options.model, options.device, options.threads)
    report = Report(
        command=shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        machine=machine(setup),
        repeats=options.repeats,
    )
    for gate in all_gates(setup):
        say(f"{'passed' if gate.passed else 'FAILED'}: {gate.name}: {gate.found}")
        report.gates.append(gate)
    if not all(gate.passed for gate in report.gates):
        say("No time is worth taking before that is understood.")
        return 1
    for case in (Case(setup, "sft"), Case(setup, "grpo", "heavy"), Case(setup, "grpo", "fixed")):
        measure(case, report, options.repeats)
    write(report, options.output / f"{options.model}-{options.device}")
    return 0


def measure(case: Case, report: Report, repeats: int) -> None:
    """Times `case` with the best settings of each side and, where lengths are uneven, with its defaults."""
    ways: dict[str, dict[str, Settings]] = {"best": {}}
    for side in SIDES:
        found = report.best.get((case.task, side))
        if found is None:
            found, trials = fastest(f"{case.task}, {side}", case.candidates(side), partial(case.run, side), say)
            report.best[case.task, side] = found
            report.trials[f"{case.task}, {side}"] = trials
        ways["best"][side] = found
    if case.kind == "heavy":
        ways["defaults"] = _DEFAULTS
    for way, settings in ways.items():
        runs = {side: case.run(side, settings[side], 1 + repeats) for side in SIDES}
        seen = take_turns(runs, warm_up=1, repeats=repeats, threads=case.setup.threads)
        case.check(seen, tolerance(case.setup))
        report.add(case, way, settings, seen)
        say(f"{case.name}, {way}: {report.summary(case, way)}")
        if case.kind == "heavy":
            peaks = {side: measured_apart(case, side, settings[side]) for side in SIDES}
            report.add_memory(case, way, peaks)
            say(f"peak memory: {', '.join(f'{side} {peak / 2**20:.0f} MiB' for side, peak in peaks.items())}")


def say(text: str) -> None:
    """A line of progress with the minutes gone."""
    print(f"[{(time.monotonic() - _STARTED) / 60:4.1f} min] {text}", flush=True)


_STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
