"""Advantages, divergence and losses against arithmetic done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_vlaa.advantages import deviation, group_advantages, length_penalty, moments, zero_variance
from lit_vlaa.kl import ESTIMATORS, AdaptiveCoefficient, k3
from lit_vlaa.losses import (
    Aggregation,
    aggregate,
    clipped_surrogate,
    sequence_log_ratio,
    token_mean,
    truncated_importance,
)

EVERY = torch.ones(1, 4, dtype=torch.bool)


def test_advantages_are_centred_and_scaled_by_the_sample_deviation() -> None:
    # Mean 0.5; deviations +-0.5; variance 4 * 0.25 / 3 = 1/3.
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    advantages = group_advantages(torch.tensor([[1.0, 0, 1, 0]]), EVERY)
    torch.testing.assert_close(advantages, torch.tensor([[expected, -expected, expected, -expected]]))


def test_samples_without_verdict_neither_gain_nor_shift_their_group() -> None:
    valid = torch.tensor([[True, True, False, True]])
    # Mean of 1, 0, 1 is 2/3; variance (1/9 + 4/9 + 1/9) / 2 = 1/3.
    scale = math.sqrt(1 / 3) + 1e-4
    advantages = group_advantages(torch.tensor([[1.0, 0, 0, 1]]), valid)
    torch.testing.assert_close(advantages, torch.tensor([[1 / 3, -2 / 3, 0, 1 / 3]]) / scale)


@pytest.mark.parametrize(
    ("rewards", "valid"), [([[0.5] * 4], [[True] * 4]), ([[1.0, 0, 0, 0]], [[True] + [False] * 3])]
)
def test_groups_that_teach_nothing_get_zero_and_are_counted(
    rewards: list[list[float]], valid: list[list[bool]]
) -> None:
    assert group_advantages(torch.tensor(rewards), torch.tensor(valid)).tolist() == [[0, 0, 0, 0]]
    assert zero_variance(torch.tensor(rewards), torch.tensor(valid)).tolist() == [True]


def test_groups_that_differ_are_not_counted_as_flat() -> None:
    assert zero_variance(torch.tensor([[0.0, 0, 0.1, 0]]), EVERY).tolist() == [False]


def test_k3_is_zero_where_policies_agree_and_known_elsewhere() -> None:
    # ratio 2: 2 - 1 - ln 2; ratio 1/2: 1/2 - 1 + ln 2.
    logprobs = torch.tensor([0.0, 0.0, 0.0])
    reference = torch.tensor([0.0, math.log(2), -math.log(2)])
    expected = torch.tensor([0.0, 1 - math.log(2), math.log(2) - 0.5])
    torch.testing.assert_close(k3(logprobs, reference), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 1.0, -1.3, True),  # gains are capped at 1 + clip_high
        (1.5, -1.0, 1.5, False),  # losses are not
        (0.5, 1.0, -0.5, False),
        (0.5, -1.0, 0.8, True),  # capped at 1 - clip_low
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = clipped_surrogate(logprobs, torch.tensor([advantage]), clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(result.loss, torch.tensor([[loss]]))
    torch.testing.assert_close(result.ratio, torch.tensor([[ratio]]))
    assert result.clipped.item() is clipped
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    # d(-r A)/d(log pi) = -r A where the clip does not decide.
    torch.testing.assert_close(gradient, torch.tensor([[0.0 if clipped else -ratio * advantage]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, -1.0, 1.5, False),
        (5.0, -1.0, 3.0, True),  # no further than three times the advantage
        (5.0, 1.0, -1.3, True),  # a positive advantage knows one clip only
        (0.5, -1.0, 0.8, True),
    ],
)
def test_dual_clip_bounds_what_a_bad_completion_can_cost(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = clipped_surrogate(logprobs, torch.tensor([advantage]), clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    torch.testing.assert_close(result.loss, torch.tensor([[loss]]))
    assert result.clipped.item() is clipped
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor([[0.0 if clipped else -ratio * advantage]]))


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    log_ratio = torch.tensor([[math.log(2.0), math.log(8.0), 9.0]])
    mask = torch.tensor([[True, True, False]])
    # sqrt(2 * 8) = 4 at every place.
    torch.testing.assert_close(sequence_log_ratio(log_ratio, mask).exp(), torch.full((1, 3), 4.0))
    assert sequence_log_ratio(log_ratio, torch.zeros_like(mask)).tolist() == [[0, 0, 0]]


def test_truncated_importance() -> None:
    learner, sampler = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.0, math.log(2), -math.log(4)])
    weights = truncated_importance(learner.requires_grad_(), sampler, most=3.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5, 3.0]))
    assert not weights.requires_grad


VALUES = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sequence_mean", (2 + 5) / 4),  # means 2 and 5, four sequences in the step
        ("token_mean", (1 + 3 + 5) / 12),  # twelve tokens in the step
        ("constant_length", (1 + 3 + 5) / (4 * 10)),  # ten tokens at most
    ],
)
def test_aggregation(how: Aggregation, expected: float) -> None:
    totals: dict[str, Any] = {"sequences": 4, "tokens": 12, "length": 10}
    assert aggregate(VALUES, MASK, how, **totals).item() == pytest.approx(expected)
    assert aggregate(VALUES, torch.zeros_like(MASK), how, **totals).item() == 0


def test_advantages_without_scale_are_centred_only() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 0, 1, 0]]), EVERY, scale="none")
    assert advantages.tolist() == [[0.5, -0.5, 0.5, -0.5]]


def test_advantages_scaled_by_the_batch() -> None:
    rewards, valid = torch.tensor([[1.0, 0], [0.5, 0.5]]), torch.tensor([[True, True], [True, False]])
    # 1, 0, 0.5: mean 0.5, variance (0.25 + 0.25) / 2.
    spread = deviation(moments(rewards, valid))
    assert spread == pytest.approx(0.5)
    advantages = group_advantages(rewards, valid, scale="batch", batch_deviation=spread)
    torch.testing.assert_close(advantages, torch.tensor([[0.5, -0.5], [0.0, 0.0]]) / 0.5001)
    with pytest.raises(ValueError, match="batch_deviation"):
        group_advantages(rewards, valid, scale="batch")


def test_moments_add_up_over_ranks() -> None:
    rewards = torch.tensor([[0.2, 0.9, 0.4], [0.0, 1.0, 0.7]])
    valid = torch.ones_like(rewards, dtype=torch.bool)
    parts = moments(rewards[:1], valid[:1]) + moments(rewards[1:], valid[1:])
    assert deviation(parts) == pytest.approx(float(rewards.std()))
    assert deviation(moments(rewards[:1, :1], valid[:1, :1])) == 0


def test_the_length_penalty_grows_over_the_buffer() -> None:
    penalty = length_penalty(torch.tensor([0, 60, 80, 90, 100]), limit=100, buffer=40, weight=0.5)
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.0, -0.25, -0.375, -0.5]))


def test_estimators_by_hand() -> None:
    # Policy twice as probable as the reference: ln 2; (ln 2)^2 / 2; 1/2 - 1 + ln 2.
    logprobs, reference = torch.tensor([math.log(2)]), torch.zeros(1)
    values = {name: estimate(logprobs, reference).item() for name, estimate in ESTIMATORS.items()}
    assert values == {
        "k1": pytest.approx(math.log(2)),
        "k2": pytest.approx(math.log(2) ** 2 / 2),
        "k3": pytest.approx(math.log(2) - 0.5),
    }


def test_k1_and_k3_are_unbiased() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    exact = (policy.exp() * (policy - reference)).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * ESTIMATORS[name](policy, reference)).sum(), exact)


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [
        (1e-3, 1 + 0.2 * 0.5),  # twice the target, error cut to 0.2; half a horizon of completions
        (5.5e-4, 1 + 0.1 * 0.5),
        (5e-4, 1.0),
        (0.0, 1 - 0.2 * 0.5),
    ],
)
def test_the_adaptive_coefficient_follows_its_target(divergence: float, factor: float) -> None:
    coefficient = AdaptiveCoefficient(1e-3, target=5e-4, horizon=4096)
    coefficient.update(divergence, 2048)
    assert coefficient.value == pytest.approx(1e-3 * factor)


def test_a_fixed_coefficient_stays_and_a_short_horizon_cannot_reach_zero() -> None:
    fixed = AdaptiveCoefficient(1e-3, target=None, horizon=10)
    fixed.update(9.0, 1000)
    assert fixed.value == 1e-3
    broken = AdaptiveCoefficient(1e-3, target=1.0, horizon=10)
    broken.update(math.nan, 1000)
    assert broken.value == 1e-3
    steep = AdaptiveCoefficient(1e-3, target=1.0, horizon=10)
    steep.update(0.0, 1000)
    assert steep.value == 5e-4


def test_token_mean_divides_by_the_whole_steps_tokens() -> None:
    assert token_mean(torch.tensor([1.0, 2.0, 3.0]), tokens=12).item() == 0.5
