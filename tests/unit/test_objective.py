"""The objective of a micro-batch: what each setting does to the loss and to the logged means, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_vlaa.algorithm import KLConfig, LossConfig
from lit_vlaa.objective import Scored, Totals, grpo_objective

# Two completions with advantages 1 and -1, of two tokens and of one. Ratios 1.5 and 0.5; 2.
RATIOS = torch.tensor([[1.5, 0.5], [2.0, 1.0]])
MASK = torch.tensor([[True, True], [True, False]])
# Clips at 0.8 and 1.2: -min(1.5, 1.2) = -1.2, -min(0.5, 0.8) = -0.5; -min(-2, -1.2) = 2.
LOSSES = (-1.2, -0.5, 2.0)
NO_KL = KLConfig(coefficient=0.0)


def scored(**changes: Any) -> Scored:
    values: dict[str, Any] = {
        "logprobs": RATIOS.log(),
        "old_logprobs": torch.zeros(2, 2),
        "sampler_logprobs": torch.zeros(2, 2),
        "ref_logprobs": None,
        "advantages": torch.tensor([1.0, -1.0]),
        "mask": MASK,
    }
    return Scored(**values | changes)


def value(
    rows: Scored, loss: LossConfig = LossConfig(), kl: KLConfig = NO_KL, coefficient: float = 0.0, limit: int = 4
) -> float:
    totals = Totals(sequences=2, tokens=3)
    return grpo_objective(rows, loss, kl, coefficient=coefficient, totals=totals, limit=limit)[0].item()


def means(rows: Scored, loss: LossConfig = LossConfig(), kl: KLConfig = NO_KL) -> dict[str, float]:
    totals = Totals(sequences=2, tokens=3)
    found = grpo_objective(rows, loss, kl, coefficient=0.5, totals=totals, limit=4)[1]
    return {name: (total / weight).item() for name, (total, weight) in found.items()}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (LossConfig(), ((LOSSES[0] + LOSSES[1]) / 2 + LOSSES[2]) / 2),
        (LossConfig(aggregation="token_mean"), sum(LOSSES) / 3),
        (LossConfig(aggregation="constant_length"), sum(LOSSES) / (2 * 4)),
        (LossConfig(clip_high=0.4), ((-1.4 - 0.5) / 2 + 2) / 2),
        (LossConfig(dual_clip=1.25), ((-1.2 - 0.5) / 2 + 1.25) / 2),
        # One ratio for the first: sqrt(1.5 * 0.5) = sqrt(0.75), within the clip; the second has one token alone.
        (LossConfig(ratio="sequence"), (-math.sqrt(0.75) + 2) / 2),
    ],
    ids=str,
)
def test_loss(loss: LossConfig, expected: float) -> None:
    assert value(scored(), loss) == pytest.approx(expected)


def test_clip_low_holds_up_a_bad_completion_that_became_rarer() -> None:
    rows = scored(logprobs=torch.full((2, 2), math.log(0.5)))
    # Advantage 1: -0.5 at each token; advantage -1: 0.8, or 0.6 with the wider clip.
    assert value(rows) == pytest.approx((-0.5 + 0.8) / 2)
    assert value(rows, LossConfig(clip_low=0.4)) == pytest.approx((-0.5 + 0.6) / 2)


def test_the_sampler_counts_only_with_a_cap() -> None:
    # The learner gives the sampled tokens 2, 1 and 4 times the sampler's probability; the cap is 3.
    rows = scored(sampler_logprobs=-torch.tensor([[2.0, 1.0], [4.0, 9.0]]).log())
    assert value(rows) == value(scored())
    expected = ((2 * LOSSES[0] + LOSSES[1]) / 2 + 3 * LOSSES[2]) / 2
    assert value(rows, LossConfig(importance_cap=3.0)) == pytest.approx(expected)


def test_divergence_in_the_loss_is_added_to_every_token_and_in_the_reward_to_none() -> None:
    # The policy gives its tokens 1.5, 0.5 and 2 times the old probability, the reference the old one.
    rows = scored(ref_logprobs=torch.zeros(2, 2))
    k3 = [1 / ratio - 1 + math.log(ratio) for ratio in (1.5, 0.5, 2.0)]
    k2 = [math.log(ratio) ** 2 / 2 for ratio in (1.5, 0.5, 2.0)]
    for kl, each in ((KLConfig(), k3), (KLConfig(estimator="k2"), k2)):
        expected = value(scored()) + 0.5 * ((each[0] + each[1]) / 2 + each[2]) / 2
        assert value(rows, kl=kl, coefficient=0.5) == pytest.approx(expected)
        assert means(rows, kl=kl)["policy/kl"] == pytest.approx(sum(each) / 3)
    in_reward = KLConfig(estimator="k1", place="reward")
    assert value(rows, kl=in_reward, coefficient=0.5) == value(scored())
    assert means(rows, kl=in_reward)["policy/kl"] == pytest.approx(math.log(1.5 * 0.5 * 2) / 3)


def test_means_are_over_the_tokens_that_take_part() -> None:
    found = means(scored(sampler_logprobs=torch.ones(2, 2)))
    # Clipped are the first (1.5 above 1.2, good) and not the third (2, bad: the plain value is the worse one).
    assert found == {
        "policy/loss": pytest.approx(value(scored())),
        "policy/clipped": pytest.approx(1 / 3),
        "policy/ratio": pytest.approx((1.5 + 0.5 + 2) / 3),
        "policy/sampler_gap": pytest.approx(sum(abs(math.log(r) - 1) for r in (1.5, 0.5, 2.0)) / 3),
    }


def test_a_sequence_that_takes_no_part_has_neither_loss_nor_gradient() -> None:
    logprobs = RATIOS.log().requires_grad_()
    rows = scored(logprobs=logprobs, mask=torch.tensor([[True, True], [False, False]]), ref_logprobs=torch.ones(2, 2))
    totals = Totals(sequences=1, tokens=2)
    loss, found = grpo_objective(rows, LossConfig(), KLConfig(), coefficient=0.0, totals=totals, limit=4)
    assert loss.item() == pytest.approx((LOSSES[0] + LOSSES[1]) / 2)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # The first token is clipped; the second gives -r A / 2.
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.25], [0.0, 0.0]]))
    assert found["policy/loss"][1].item() == 1
