"""Losses over scored tokens, as pure functions of `[B, C]` tensors and a mask.

Departures from the paper: none in the defaults; the clip range may be set apart for both sides, as later work does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped policy objective, token by token."""

    loss: Tensor
    """`[B, C]`, to be minimised."""
    ratio: Tensor
    """`[B, C]` probability ratio of policy to sampling policy, without gradient."""
    clipped: Tensor
    """`[B, C]` bool, True where the clip decided and the token gives no gradient."""


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """`-min(r A, clip(r, 1 - low, 1 + high) A)` (PPO, equation 7; the paper's GRPO objective).

    Args:
        logprobs: `[B, C]` under the policy being trained.
        old_logprobs: `[B, C]` under the policy that sampled, without gradient.
        advantages: `[B]`, one a completion.
        clip_low: How far below 1 the ratio may count.
        clip_high: How far above 1 the ratio may count.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    advantage = advantages[:, None]
    plain = ratio * advantage
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return Surrogate(loss=-torch.minimum(plain, bounded), ratio=ratio.detach(), clipped=(bounded < plain).detach())


def sequence_mean(values: Tensor, mask: Tensor, *, sequences: float) -> Tensor:
    """Mean over each sequence's own tokens, summed over sequences and divided by `sequences` (paper, GRPO objective).

    Args:
        values: `[B, C]`.
        mask: `[B, C]` bool; a sequence without any token adds nothing.
        sequences: Number of sequences of the whole optimiser step over all ranks and micro-batches.

    Returns:
        A scalar; the values of all micro-batches and ranks add up to the step's value.
    """
    tokens = mask.sum(1).clamp(min=1)
    return ((values * mask).sum(1) / tokens).sum() / sequences


def token_mean(values: Tensor, *, tokens: float) -> Tensor:
    """Sum over tokens divided by the token count of the whole optimiser step, over all ranks and micro-batches.

    Args:
        values: `[N]`, one a scored token.
        tokens: Scored tokens of the step.
    """
    return values.sum() / tokens
