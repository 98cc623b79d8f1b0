"""Measures the math reward on a step of made-up answers beside bare Math-Verify; `python -m benchmarks.rewards --help`.

Every answer's verdict is known from how it was made, not from any verifier, so wrong verdicts can be counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks.answers import GROUP_SIZE, Answer, step
from benchmarks.machine import processor_name
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.types import RewardRequest

SLOW_S = 4.0
BARE = "bare Math-Verify, in process"


@dataclass
class Tally:
    """What a verifier said of the answers."""

    wrong_payments: int = 0
    missed: int = 0
    failed: int = 0
    slow: int = 0
    slow_seconds: float = 0.0
    """Answers that took bare Math-Verify longer than `SLOW_S`, which is to say its timeout, and their time."""

    def add(self, *, right: bool, paid: bool, judged: bool) -> None:
        """Counts one verdict."""
        self.failed += not judged
        self.wrong_payments += judged and paid and not right
        self.missed += judged and right and not paid


def score_ours(answers: Sequence[Answer], reward: MixedReward) -> tuple[float, Tally]:
    """Answers a second through the whole mixed reward."""
    requests = [RewardRequest(f"<answer>{answer.text}</answer>", "math", answer.truth) for answer in answers]
    started = time.perf_counter()
    results = reward(requests)
    seconds = time.perf_counter() - started
    tally = Tally()
    for answer, result in zip(answers, results, strict=True):
        tally.add(right=answer.right, paid=result.value > 0, judged=result.judged)
    return len(answers) / seconds, tally


def score_bare(answers: Sequence[Answer]) -> tuple[float, Tally]:
    """Answers a second by Math-Verify on the plain text in this process, with its own settings and timeouts."""
    from math_verify import parse, verify  # noqa: PLC0415

    tally = Tally()
    started = time.perf_counter()
    for answer in tqdm(answers, desc="bare Math-Verify", unit="answer"):
        begun = time.perf_counter()
        paid = verify(parse(answer.truth), parse(answer.text))
        tally.add(right=answer.right, paid=paid, judged=True)
        if (taken := time.perf_counter() - begun) > SLOW_S:
            tally.slow, tally.slow_seconds = tally.slow + 1, tally.slow_seconds + taken
    return len(answers) / (time.perf_counter() - started), tally


def main() -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__)
    parser.add_argument("--prompts", type=int, default=512, help="prompts of a step, four answers each (default 512)")
    parser.add_argument("--repeats", type=int, default=3, help="steps, each with other answers (default 3)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first step's answers (default 0)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.prompts < 1:
        parser.error("--repeats and --prompts must be at least 1")
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    load = os.getloadavg()[0]
    speeds: dict[str, list[float]] = {}
    tallies: dict[str, Tally] = {}

    def note(name: str, outcome: tuple[float, Tally]) -> None:
        speeds.setdefault(name, []).append(outcome[0])
        sum_of = tallies.setdefault(name, Tally())
        for field, count in vars(outcome[1]).items():
            setattr(sum_of, field, getattr(sum_of, field) + count)

    offsets = {workers: 1000 * index for index, workers in enumerate(arguments.workers)}
    for workers in arguments.workers:
        reward = MixedReward(RewardConfig(math_workers=workers))
        try:
            score_ours(step(8, arguments.seed + 999_999), reward)  # the processes start
            for repeat in tqdm(range(arguments.repeats), desc=f"ours, workers: {workers}", unit="step"):
                answers = step(arguments.prompts, arguments.seed + offsets[workers] + repeat)
                note(f"ours, workers: {workers}, new answers", score_ours(answers, reward))
                note(f"ours, workers: {workers}, answers seen before", score_ours(answers, reward))
        finally:
            reward.close()
    bare = step(arguments.prompts, arguments.seed)
    speed, tally = score_bare(bare)
    note(BARE, (speed, tally))
    quick = len(bare) - tally.slow
    speeds[f"{BARE}, without {tally.slow} that ran into its timeout"] = [
        quick / (len(bare) / speed - tally.slow_seconds)
    ]
    write(speeds, tallies, Counter(answer.right for answer in bare), arguments, load)
    return 0


def write(
    speeds: dict[str, list[float]],
    tallies: dict[str, Tally],
    made: Counter[bool],
    arguments: argparse.Namespace,
    load: float,
) -> None:
    """Prints the table and writes it beside the single values; `load` is the machine's before the start."""
    command = shlex.join(["python", "-m", "benchmarks.rewards", *sys.argv[1:]])
    machine = f"{processor_name()}, {platform.system()} {platform.machine()}, load {load:.1f} of {os.cpu_count()}"
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("math-verify", "sympy")}}
    lines = [
        f"Command: `{command}`. Machine: {machine} at the start.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        f"A step: {arguments.prompts} prompts, {GROUP_SIZE} answers each; of the first step's, {made[True]} are right.",
        "",
        "| | answers/s (median) | lowest | highest | answers | paid though wrong | missed though right | no verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, numbers in speeds.items():
        tally = tallies.get(name)
        cells = [f"{value:.4g}" for value in (statistics.median(numbers), min(numbers), max(numbers))]
        total = len(numbers) * arguments.prompts * GROUP_SIZE
        counts = (total, tally.wrong_payments, tally.missed, tally.failed) if tally else ("", "", "", "")
        lines.append(f"| {name} | {' | '.join(cells)} | {' | '.join(map(str, counts))} |")
    table = "\n".join(lines) + "\n"
    print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / "rewards"
    stem.with_suffix(".md").write_text(table, encoding="utf-8")
    content = {
        "command": command,
        "machine": machine,
        "versions": versions,
        "answers_per_second": speeds,
        "verdicts": {name: vars(tally) for name, tally in tallies.items()},
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
