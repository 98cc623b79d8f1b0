"""Advantages from rewards, per group of completions of one prompt.

Departures from the paper: a completion that could not be judged takes no part in its group's mean and deviation, and
gets advantage zero; the paper does not say what it did with failed verifiers. Other scales than the group's deviation
are later work's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AdvantageScale = Literal["std", "none", "batch"]


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    *,
    scale: AdvantageScale = "std",
    batch_deviation: float | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Rewards centred on their group's mean, and scaled.

    `std`: by the group's standard deviation (DeepSeekMath, section 4.1.2). `none`: not at all (Dr. GRPO, section 3.1).
    `batch`: by the standard deviation of the whole batch (REINFORCE++; "Tricks or Traps", section 4.1).

    Args:
        rewards: `[B, G]`.
        valid: `[B, G]` bool, False where no verdict was reached.
        scale: What to divide by.
        batch_deviation: Standard deviation of the valid rewards of all ranks; for `batch`.
        eps: Added to the divisor; keeps groups of almost equal rewards from blowing up.

    Returns:
        `[B, G]` float32. Zero where `valid` is False and in groups with fewer than two valid rewards.

    Raises:
        ValueError: `batch` without `batch_deviation`.
    """
    rewards = rewards.float()
    weight = valid.float()
    count = weight.sum(1, keepdim=True)
    mean = (rewards * weight).sum(1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean) * weight
    if scale == "std":
        variance = (centred**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    elif scale == "batch":
        if batch_deviation is None:
            raise ValueError("scale 'batch' needs batch_deviation")
        centred = centred / (batch_deviation + eps)
    return torch.where(count > 1, centred, torch.zeros_like(centred))


def moments(rewards: Tensor, valid: Tensor) -> Tensor:
    """`[3]` float64: count, sum and sum of squares of the valid rewards, to be added up over ranks."""
    kept = rewards[valid].double()
    return torch.stack([torch.tensor(float(kept.numel()), dtype=torch.float64), kept.sum(), (kept**2).sum()])


def deviation(summed: Tensor) -> float:
    """Standard deviation (over n - 1) from `moments`; 0 with fewer than two rewards."""
    count, total, squares = summed.tolist()
    return max(0.0, (squares - total**2 / count) / (count - 1)) ** 0.5 if count > 1 else 0.0


def length_penalty(lengths: Tensor, *, limit: int, buffer: int, weight: float) -> Tensor:
    """0 up to `limit - buffer` tokens, then falling linearly to `-weight` at the limit (DAPO, equation 13).

    Args:
        lengths: Completion tokens, any shape.
        limit: Most tokens of a completion.
        buffer: Tokens before the limit over which the penalty grows.
        weight: Penalty at the limit.
    """
    return -weight * ((lengths.float() - (limit - buffer)) / buffer).clamp(0, 1)


def zero_variance(rewards: Tensor, valid: Tensor) -> Tensor:
    """`[B]` bool: groups whose valid rewards are all equal (or fewer than two), which teach nothing.

    Args:
        rewards: `[B, G]`.
        valid: `[B, G]` bool.
    """
    low = torch.where(valid, rewards, torch.inf).amin(1)
    high = torch.where(valid, rewards, -torch.inf).amax(1)
    return ~(high > low)
