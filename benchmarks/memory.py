"""Peak memory of one side alone in its own process; `python -m benchmarks` starts it and reads the line it prints."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from benchmarks.cases import Case, quiet
from benchmarks.lockstep import Values
from benchmarks.models import Setup
from benchmarks.peak import process_bytes, reset_process_peak

STEPS = 2
"""The first makes the optimiser's state; the peak is the second's."""


def measured_apart(case: Case, side: str, settings: dict[str, Any]) -> int:
    """Starts the process and waits for it.

    Args:
        case: What to run.
        side: `ours` or `trl`.
        settings: Of that side.

    Returns:
        Bytes at the peak of a step beyond those before the model was made.

    Raises:
        RuntimeError: If it failed; with the end of what it said.
    """
    setup = case.setup
    question: dict[str, Any] = {
        "task": case.task,
        "kind": case.kind,
        "side": side,
        "settings": settings,
        "model": setup.model,
    }
    question |= {"device": setup.device, "threads": setup.threads}
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this very program
    if done.returncode:
        raise RuntimeError(f"the memory of {side}, {case.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def peak_of_step(case: Case, side: str, settings: dict[str, Any]) -> int:
    """Bytes at the peak of a training step in this process, beyond those before the model was made."""
    on_gpu = case.setup.device == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else process_bytes("VmRSS")
    peaks: list[int] = []

    def after_step(_: Values) -> None:
        if on_gpu:
            peaks.append(torch.cuda.max_memory_allocated() - before)
            torch.cuda.reset_peak_memory_stats()
        else:
            peaks.append(process_bytes("VmHWM") - before)
            reset_process_peak()

    case.run(side, settings, STEPS)(after_step)
    return peaks[-1]


def main() -> None:
    """Answers one question and prints a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("question", type=json.loads, help="task, kind, side, settings, model, device, threads")
    question = parser.parse_args().question
    quiet()
    setup = Setup(question["model"], question["device"], question["threads"])
    torch.set_num_threads(setup.threads)
    case = Case(setup, question["task"], question["kind"])
    print(json.dumps({"peak": peak_of_step(case, question["side"], question["settings"])}))


if __name__ == "__main__":
    main()
