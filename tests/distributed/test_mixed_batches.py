"""Ranks with unlike work train as one device does: other images, lengths, numbers of flat groups and of verdicts.

Measured over all cases: weights, of size 0.1 and moved by up to 1e-3 a step, differ by at most 1.2e-7, about
one rounding of float32; gradient norms and logged numbers by 4.1e-6 of themselves under FSDP2, which adds up its norm
over shards, and by 9e-7 under DDP. The bounds leave a factor of eight and of four.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.launch import run_ranks
from helpers.matrix import CASES, run_cases, weights_file

STRATEGIES = ("ddp", "fsdp2")
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Outcome]:
    return run_cases(["auto"], 1, str(folder))["auto"]


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Outcome]]]:
    """By rank, strategy and case."""
    arguments: dict[str, Any] = {"strategies": list(STRATEGIES), "devices": 2, "folder": str(folder)}
    return run_ranks("helpers.matrix:run_cases", timeout=240, **arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(
    case: str,
    strategy: str,
    single: dict[str, Outcome],
    ranks: list[dict[str, dict[str, Outcome]]],
    folder: Path,
) -> None:
    expected = single[case]
    outcomes = [rank[strategy][case] for rank in ranks]
    for outcome in outcomes:
        assert outcome["steps"] == expected["steps"] == len(expected["norms"])
        assert outcome["rates"] == expected["rates"]
        assert outcome["norms"] == pytest.approx(expected["norms"], rel=1.6e-5)
        assert len(outcome["logged"]) == len(expected["logged"])
        for ours, theirs in zip(outcome["logged"], expected["logged"], strict=True):
            assert ours == pytest.approx(theirs, rel=1.6e-5, abs=1e-6)
    # Each prompt was one rank's, and had the same completions, rewards and advantages there.
    rewards = outcomes[0]["rewards"] | outcomes[1]["rewards"]
    assert len(rewards) == len(outcomes[0]["rewards"]) + len(outcomes[1]["rewards"])
    assert rewards.keys() == expected["rewards"].keys()
    for prompt, (values, advantages) in expected["rewards"].items():
        assert rewards[prompt][0] == values
        assert rewards[prompt][1] == pytest.approx(advantages, rel=1.6e-5, abs=1e-5)
    weights, whole = (torch.load(weights_file(folder, name, case)) for name in (strategy, "auto"))
    assert weights.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6, msg=f"{name} differs")


def test_the_cases_are_what_they_say(single: dict[str, Outcome]) -> None:
    for name, outcome in single.items():
        assert all(norm > 1e-3 for norm in outcome["norms"]), name
    drawn = [row["rollout/resampled"] for row in single["grpo, resampling"]["logged"]]
    # Rows 0 and 3 of the first four, one of each rank; row 6 of the next, one rank's alone.
    assert drawn == [0.5, 0.25]
    assert [row["rollout/zero_variance"] for row in single["grpo, resampling"]["logged"]] == [0.25, 0.0]
    assert single["grpo, resampled rollouts of its own"]["logged"][0]["rollout/resampled"] > 0
    coefficients = [row["policy/kl_coefficient"] for row in single["grpo, adaptive KL"]["logged"]]
    # Sixteen completions against a horizon of 40, the error cut to 20%: 8% a rollout.
    assert coefficients == pytest.approx([0.1, 0.108, 0.11664])
    failing = single["grpo, failures and truncation"]["logged"]
    assert [row["failed/timeout"] for row in failing] == [0.5, 0.25]  # rows 0 and 2, both rank 0's; then row 5
    assert all(row["rollout/truncated"] > 0 for row in failing)
    assert len({row["rollout/length"] for row in failing}) == 2
