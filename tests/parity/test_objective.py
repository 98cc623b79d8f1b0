"""The objective of a micro-batch against the papers' formulas, written out token by token in plain Python.

Gradients are compared with central differences of the plain version, all in float64.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch

from lit_vlaa.algorithm import KLConfig, LossConfig
from lit_vlaa.losses import Aggregation, RatioLevel
from lit_vlaa.objective import Scored, Totals, grpo_objective

LENGTHS = (3, 1, 4, 2)
LIMIT = 5
COEFFICIENT = 0.3
TOTALS = Totals(sequences=7, tokens=23)  # of a step to which other micro-batches belong
Rows = list[list[float]]


def draw(seed: int) -> dict[str, Any]:
    """Log-probabilities of four completions under four policies, ratios from 0.4 to 2.5, and advantages."""
    generator = random.Random(seed)
    old = [[-generator.uniform(0.5, 4) for _ in range(length)] for length in LENGTHS]
    shifted = [[[x + generator.uniform(-0.9, 0.9) for x in row] for row in old] for _ in range(3)]
    return {
        "new": shifted[0],
        "old": old,
        "sampler": shifted[1],
        "reference": shifted[2],
        "advantages": [1.3, -0.7, -1.1, 0.4],
    }


def plain_loss(case: dict[str, Any], new: Rows, loss: LossConfig, kl: KLConfig | None) -> float:
    """DAPO, equation 8, Dr. GRPO, section 3.1, GRPO, equation 3; GSPO, equation 7; Ye et al. 2020, equation 5."""
    total = 0.0
    for row, length in enumerate(LENGTHS):
        advantage = case["advantages"][row]
        logs = [new[row][t] - case["old"][row][t] for t in range(length)]
        if loss.ratio == "sequence":
            logs = [sum(logs) / length] * length
        terms = []
        for t in range(length):
            ratio = math.exp(logs[t])
            clipped = min(max(ratio, 1 - loss.clip_low), 1 + loss.clip_high)
            gain = min(ratio * advantage, clipped * advantage)
            if loss.dual_clip is not None and advantage < 0:
                gain = max(gain, loss.dual_clip * advantage)
            if loss.importance_cap is not None:
                gain *= min(math.exp(case["old"][row][t] - case["sampler"][row][t]), loss.importance_cap)
            cost = -gain
            if kl is not None and kl.place == "loss":
                difference = new[row][t] - case["reference"][row][t]
                estimates = {"k2": difference**2 / 2, "k3": math.exp(-difference) - 1 + difference}
                cost += COEFFICIENT * estimates[kl.estimator]
            terms.append(cost)
        if loss.aggregation == "sequence_mean":
            total += sum(terms) / length / TOTALS.sequences
        elif loss.aggregation == "token_mean":
            total += sum(terms) / TOTALS.tokens
        else:
            total += sum(terms) / (TOTALS.sequences * LIMIT)
    return total


def padded(rows: Rows) -> torch.Tensor:
    """`[B, C]` with numbers at the masked places that would show if they took part."""
    return torch.tensor([row + [-50.0] * (max(LENGTHS) - len(row)) for row in rows], dtype=torch.float64)


def objective(
    case: dict[str, Any], loss: LossConfig, kl: KLConfig | None, rows: slice = slice(None)
) -> tuple[float, torch.Tensor]:
    """Loss of some rows and its gradient."""
    new = padded(case["new"])[rows].requires_grad_()
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None])[rows]
    value, _ = grpo_objective(
        Scored(
            logprobs=new,
            old_logprobs=padded(case["old"])[rows],
            sampler_logprobs=padded(case["sampler"])[rows],
            ref_logprobs=None if kl is None else padded(case["reference"])[rows],
            advantages=torch.tensor(case["advantages"], dtype=torch.float64)[rows],
            mask=mask,
        ),
        loss,
        kl or KLConfig(coefficient=0.0),
        coefficient=COEFFICIENT,
        totals=TOTALS,
        limit=LIMIT,
    )
    (gradient,) = torch.autograd.grad(value, new)
    return value.item(), gradient


RATIOS: tuple[RatioLevel, ...] = ("token", "sequence")
AGGREGATIONS: tuple[Aggregation, ...] = ("sequence_mean", "token_mean", "constant_length")
LOSSES = [
    LossConfig(clip_low=0.15, clip_high=0.3, ratio=ratio, aggregation=how, dual_clip=dual, importance_cap=cap)
    for ratio, how, dual, cap in itertools.product(RATIOS, AGGREGATIONS, (None, 1.4), (None, 1.2))
]
DIVERGENCES = [
    None,
    KLConfig(estimator="k2"),
    KLConfig(estimator="k3"),
    KLConfig(estimator="k1", place="reward"),
]


@pytest.mark.parametrize("kl", DIVERGENCES, ids=lambda kl: "none" if kl is None else f"{kl.estimator}-{kl.place}")
@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{loss.ratio}-{loss.aggregation}-{loss.dual_clip}-{loss.importance_cap}"
)
def test_loss_and_gradient(loss: LossConfig, kl: KLConfig | None) -> None:
    case = draw(0)
    value, gradient = objective(case, loss, kl)
    assert value == pytest.approx(plain_loss(case, case["new"], loss, kl), rel=1e-12)
    step = 1e-6
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            shifted = [[list(other) for other in case["new"]] for _ in range(2)]
            shifted[0][row][t] += step
            shifted[1][row][t] -= step
            up, down = (plain_loss(case, new, loss, kl) for new in shifted)
            assert gradient[row, t].item() == pytest.approx((up - down) / (2 * step), abs=1e-8)
        assert not gradient[row, length:].any()


@pytest.mark.parametrize("loss", LOSSES[::4], ids=lambda loss: f"{loss.ratio}-{loss.aggregation}")
def test_micro_batches_add_up(loss: LossConfig) -> None:
    case = draw(1)
    whole, gradient = objective(case, loss, DIVERGENCES[2])
    parts = [objective(case, loss, DIVERGENCES[2], rows) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(value for value, _ in parts) == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient)
