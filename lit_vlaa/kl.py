"""Divergence from the reference policy: estimators per token, and the controller of its weight.

Departures from the paper (KL1 and KL2): it names the initial coefficient and the target of its adaptive controller; the
horizon is ours (10,000 completions, the stock value of the controller's source).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

_MOST_ERROR = 0.2


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference) with high variance: `log policy - log ref`.

    As a term of the loss its expected gradient is zero; it belongs in the reward.

    Args:
        logprobs: Log-probabilities of sampled tokens under the policy, any shape.
        ref_logprobs: The same tokens under the reference.
    """
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Biased estimate of low variance whose gradient is that of the true KL: half the squared log ratio.

    Args:
        logprobs: Log-probabilities of sampled tokens under the policy, any shape.
        ref_logprobs: The same tokens under the reference.
    """
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference): `r - 1 - log r` with `r = ref / policy`.

    Source: Schulman, "Approximating KL divergence"; GRPO's equation 4.

    Args:
        logprobs: Log-probabilities of sampled tokens under the policy, any shape.
        ref_logprobs: The same tokens under the reference.
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: Mapping[KLEstimator, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType({"k1": k1, "k2": k2, "k3": k3})
"""Estimators by name (Schulman, "Approximating KL divergence")."""


class AdaptiveCoefficient:
    """A KL coefficient steered towards a target divergence (Ziegler et al. 2019, section 2.2, equation 3).

    Args:
        initial: The coefficient at the start.
        target: Wanted mean divergence per token in nats; None keeps the coefficient fixed.
        horizon: Completions over which a lasting error of 20% changes the coefficient by about 20%.
    """

    def __init__(self, initial: float, *, target: float | None, horizon: int) -> None:
        self.value = initial
        self.target = target
        self.horizon = horizon

    def update(self, divergence: float, completions: int) -> None:
        """Moves the coefficient after `completions` samples had a mean divergence of `divergence`.

        A divergence that is not finite (a broken step) moves nothing.
        """
        if self.target is None or not math.isfinite(divergence):
            return
        error = min(max(divergence / self.target - 1, -_MOST_ERROR), _MOST_ERROR)
        # With more completions than the horizon the factor could reach zero, or change its sign.
        self.value *= max(1 + error * completions / self.horizon, 0.5)
