"""Advantages from rewards, per group of completions of one prompt.

Departures from the paper: a completion that could not be judged takes no part in its group's mean and deviation, and
gets advantage zero; the paper does not say what it did with failed verifiers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, valid: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Rewards normalised within each group: `(r - mean) / (std + eps)` (DeepSeekMath, section 4.1.2).

    Args:
        rewards: `[B, G]`.
        valid: `[B, G]` bool, False where no verdict was reached.
        eps: Keeps groups of almost equal rewards from blowing up.

    Returns:
        `[B, G]` float32. Zero where `valid` is False and in groups with fewer than two valid rewards.
    """
    rewards = rewards.float()
    weight = valid.float()
    count = weight.sum(1, keepdim=True)
    mean = (rewards * weight).sum(1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean) * weight
    std = ((centred**2).sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(count > 1, centred / (std + eps), torch.zeros_like(centred))


def zero_variance(rewards: Tensor, valid: Tensor) -> Tensor:
    """`[B]` bool: groups whose valid rewards are all equal (or fewer than two), which teach nothing.

    Args:
        rewards: `[B, G]`.
        valid: `[B, G]` bool.
    """
    low = torch.where(valid, rewards, torch.inf).amin(1)
    high = torch.where(valid, rewards, -torch.inf).amax(1)
    return ~(high > low)
