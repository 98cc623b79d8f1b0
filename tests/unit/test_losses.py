"""Advantages, divergence and losses against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lit_vlaa.advantages import group_advantages, zero_variance
from lit_vlaa.kl import k3
from lit_vlaa.losses import clipped_surrogate, sequence_mean, token_mean

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
    result = clipped_surrogate(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.3)
    torch.testing.assert_close(result.loss, torch.tensor([[loss]]))
    torch.testing.assert_close(result.ratio, torch.tensor([[ratio]]))
    assert result.clipped.item() is clipped
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    # d(-r A)/d(log pi) = -r A where the clip does not decide.
    torch.testing.assert_close(gradient, torch.tensor([[0.0 if clipped else -ratio * advantage]]))


def test_sequence_mean_weighs_sequences_equally_whatever_their_length() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sequence_mean(values, mask, sequences=4).item() == (2 + 5) / 4
    assert sequence_mean(values, torch.zeros_like(mask), sequences=4).item() == 0


def test_token_mean_divides_by_the_whole_steps_tokens() -> None:
    assert token_mean(torch.tensor([1.0, 2.0, 3.0]), tokens=12).item() == 0.5
