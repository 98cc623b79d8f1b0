"""Hostile responses by the thousand, each kind in a process of its own (`LIT_VLAA_FUZZ` says how many a kind)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers import fuzz
from helpers.fuzz_grammar import requests
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.types import KINDS, Kind, RewardRequest

COUNT = int(os.environ.get("LIT_VLAA_FUZZ", "100000"))
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_responses(kind: Kind) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "helpers.fuzz", kind, str(COUNT), "0"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"{kind}: {COUNT} responses" in done.stdout


def test_hostile_requests_repeat_and_vary() -> None:
    first, again, other = (list(requests("mcq", 300, seed)) for seed in (5, 5, 6))
    assert first == again
    assert len({request.response for request in first} & {request.response for request in other}) < 60
    assert any("\\boxed" in request.response for request in first)
    assert max(len(request.response) for request in first) > 3000


def _raises(_answer: str, _request: RewardRequest) -> float:
    raise RuntimeError("a bug")


def _opens(_answer: str, _request: RewardRequest) -> float:
    with Path(os.devnull).open(encoding="utf-8"):
        return 0.0


def _starts_a_process(_answer: str, _request: RewardRequest) -> float:
    subprocess.run(["true"], check=True)  # noqa: S607
    return 0.0


def _evaluates(answer: str, _request: RewardRequest) -> float:
    return float(eval(repr(len(answer))) > 10**9)  # noqa: S307


def _dawdles(_answer: str, _request: RewardRequest) -> float:
    start = time.process_time()
    while time.process_time() - start < 0.02:
        pass
    return 0.0


def _fine(_answer: str, _request: RewardRequest) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("verifier", "failures"),
    [
        (_raises, ["status verifier_error"]),
        (_opens, ["scoring touched ['open'"]),
        (_starts_a_process, ["scoring touched", "subprocess.Popen"]),
        (_evaluates, ["scoring touched", "compile"]),
        (_dawdles, ["0.0 s for"]),
        (_fine, []),
    ],
)
def test_the_watch_sees_what_it_is_there_for(
    verifier: Callable[[str, RewardRequest], float], failures: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if verifier is _dawdles:
        monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 0.01)
    reward = MixedReward(RewardConfig(math_workers=1), verifiers={"digit": verifier})
    report = fuzz.run("digit", 64, reward=reward)
    assert report.responses == 64
    text = "\n".join(report.failures)
    assert bool(failures) == bool(text), text
    assert all(failure in text for failure in failures), text
    assert re.search(r"digit: 64 responses, \d+ paid", str(report))


def test_growth_of_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MEMORY_LIMIT_MB", -1.0)  # less than no growth at all
    assert [failure[:14] for failure in fuzz.run("iou", 8).failures] == ["memory grew by"]
