"""Means over ranks and reward statistics, against hand arithmetic and the standard library."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from helpers.launch import run_ranks
from lit_vlaa.metrics import RankMeans, RewardStats


def one_rank(values: Tensor) -> Tensor:
    return values


def test_means_are_weighted() -> None:
    means = RankMeans(("a", "b"))
    means.add("a", 6.0, 2)
    means.add("a", torch.tensor(1.0), torch.tensor(3))
    means.add("b", torch.tensor(2), 1)
    assert means.reduce(one_rank) == {"a": pytest.approx(7 / 5), "b": 2.0}


def test_sums_and_weights_are_reduced_before_they_are_divided() -> None:
    """This rank has 1 over 1, the other 9 over 3: together 10 over 4, not the mean of 1 and 3."""
    means = RankMeans(("a", "b", "c"))
    means.add("a", 1.0, 1)
    # The order of the names fixes the places: (total, weight) of a, then of b, then of c.
    reduced = means.reduce(lambda values: values + torch.tensor([9.0, 3.0, 5.0, 2.0, 0.0, 0.0]))
    assert reduced == {"a": 2.5, "b": 2.5}, "a name with a weight on another rank is there, one with none is left out"


def test_means_take_no_gradient_and_know_their_names() -> None:
    means = RankMeans(("a",))
    value = torch.tensor(2.0, requires_grad=True)
    means.add("a", value * 3, 1)
    assert means.reduce(one_rank) == {"a": 6.0}
    with pytest.raises(KeyError):
        means.add("b", 1.0, 1)


def test_reward_statistics_by_hand() -> None:
    stats = RewardStats()
    for kind, reward in (("digit", 1.0), ("digit", 0.0), ("iou", 0.4), ("math", None), ("digit", None)):
        stats.update(kind, reward)
    result = stats.compute()
    # Mean 1.4 / 3; standard error: sqrt(variance / 3) with the variance of (1, 0, 0.4) over n - 1.
    assert result == {
        "n": 3.0,
        "failed": 2.0,
        "reward": pytest.approx(1.4 / 3),
        "stderr": pytest.approx((((1 - 1.4 / 3) ** 2 + (1.4 / 3) ** 2 + (0.4 - 1.4 / 3) ** 2) / 2 / 3) ** 0.5),
        "reward/digit": 0.5,
        "n/digit": 2.0,
        "reward/iou": pytest.approx(0.4),
        "n/iou": 1.0,
        "failed/digit": 1.0,
        "failed/math": 1.0,
    }


def test_reward_statistics_of_a_kind_of_ones_own() -> None:
    stats = RewardStats(("digit", "words"))
    stats.update("words", 0.5)
    assert stats.compute()["reward/words"] == 0.5


def test_standard_error_equals_the_standard_librarys() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(50, generator=generator, dtype=torch.float64).tolist()
    stats = RewardStats()
    for reward in rewards:
        stats.update("mcq", reward)
    result = stats.compute()
    assert result["reward"] == pytest.approx(statistics.fmean(rewards))
    assert result["stderr"] == pytest.approx(statistics.stdev(rewards) / len(rewards) ** 0.5)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_equal_rewards_have_no_error_and_a_single_one_none_either(reward: float) -> None:
    stats = RewardStats()
    stats.update("mcq", reward)
    assert stats.compute()["stderr"] == 0
    for _ in range(9):
        stats.update("mcq", reward)
    assert stats.compute()["stderr"] == pytest.approx(0, abs=1e-8)


def test_without_verdicts_there_is_no_mean() -> None:
    stats = RewardStats()
    assert stats.compute() == {"n": 0.0, "failed": 0.0}
    stats.update("math", None)
    assert stats.compute() == {"n": 0.0, "failed": 1.0, "failed/math": 1.0}
    stats.reset()
    assert stats.compute() == {"n": 0.0, "failed": 0.0}


VALUES = (0.2, 0.9, None, 1.0, 0.0)


def statistics_of_this_rank() -> dict[str, float]:
    """Runs in each of two gloo processes: rank r adds every second value from r on."""
    torch.distributed.init_process_group("gloo")
    stats = RewardStats()
    for reward in VALUES[torch.distributed.get_rank() :: 2]:
        stats.update("digit", reward)
    result: dict[str, float] = stats.compute()
    return result


def test_two_ranks_see_all_values() -> None:
    whole = RewardStats()
    for reward in VALUES:
        whole.update("digit", reward)
    for result in run_ranks("unit.test_metrics:statistics_of_this_rank"):
        assert result == pytest.approx(whole.compute())
