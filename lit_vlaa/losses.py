"""Losses over scored tokens, as pure functions of `[B, C]` tensors and a mask.

Departures from the paper: none in the defaults (token ratios, one clip range, mean over each sequence's tokens). Later
work sets the clip range apart for both sides (DAPO), clips twice where the advantage is negative, takes one ratio a
sequence (GSPO), and weighs tokens in other ways (DAPO, Dr. GRPO).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]
RatioLevel = Literal["token", "sequence"]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped policy objective, token by token."""

    loss: Tensor
    """`[B, C]`, to be minimised."""
    ratio: Tensor
    """`[B, C]` probability ratio of policy to sampling policy, without gradient."""
    clipped: Tensor
    """`[B, C]` bool, True where a clip decided and the token gives no gradient."""


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sequence's token log ratios, at every token (GSPO, equation 7).

    Args:
        log_ratio: `[B, C]`.
        mask: `[B, C]` bool.
    """
    mean = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio)


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Surrogate:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)` (PPO, equation 7; the paper's GRPO objective).

    Args:
        log_ratio: `[B, C]` log-probability under the policy being trained less that under the one that sampled.
        advantages: `[B]`, one a completion.
        clip_low: How far below 1 the ratio may count.
        clip_high: How far above 1 the ratio may count.
        dual_clip: Where the advantage is negative, the objective is no lower than this multiple of it, above 1 (Ye et
            al. 2020, equation 5); None for no such bound.
    """
    ratio = torch.exp(log_ratio)
    advantage = advantages[:, None]
    plain = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    objective = torch.minimum(plain, bounded)
    clipped = bounded < plain
    if dual_clip is not None:
        floor = dual_clip * advantage
        deep = (advantage < 0) & (objective < floor)
        objective = torch.where(deep, floor, objective)
        clipped = clipped | deep
    return Surrogate(loss=-objective, ratio=ratio.detach(), clipped=clipped.detach())


def truncated_importance(learner: Tensor, sampler: Tensor, *, most: float) -> Tensor:
    """`min(learner / sampler, most)` as weights of tokens: mends what a sampler of lower precision distorts.

    Args:
        learner: Log-probabilities of the sampled tokens by the training forward pass, before the update.
        sampler: The same by the rollout engine.
        most: Largest weight.

    Returns:
        Weights of the same shape, without gradient.
    """
    return torch.exp(learner - sampler).clamp(max=most).detach()


def aggregate(
    values: Tensor, mask: Tensor, how: Aggregation, *, sequences: float, tokens: float, length: int
) -> Tensor:
    """This micro-batch's part of the loss of a whole optimiser step.

    `sequence_mean` (paper, GRPO objective): mean over each sequence's own tokens, then over sequences. `token_mean`
    (DAPO, equation 8): mean over all tokens. `constant_length` (Dr. GRPO, section 3.1): sum over tokens by the limit of
    a completion, mean over sequences.

    Args:
        values: `[B, C]`.
        mask: `[B, C]` bool; a sequence without any token adds nothing.
        how: How tokens are weighed.
        sequences: Sequences of the whole optimiser step over all ranks and micro-batches.
        tokens: Tokens of the whole optimiser step.
        length: Most tokens of a completion.

    Returns:
        A scalar; the values of all micro-batches and ranks add up to the step's value.
    """
    masked = (values * mask).sum(1)
    if how == "sequence_mean":
        return (masked / mask.sum(1).clamp(min=1)).sum() / sequences
    if how == "token_mean":
        return masked.sum() / tokens
    return masked.sum() / (sequences * length)


def token_mean(values: Tensor, *, tokens: float) -> Tensor:
    """Sum over tokens divided by the token count of the whole optimiser step, over all ranks and micro-batches.

    Args:
        values: `[N]`, one a scored token.
        tokens: Scored tokens of the step.
    """
    return values.sum() / tokens
