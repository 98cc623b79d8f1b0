"""Estimators of the divergence from the reference policy, per token."""

from __future__ import annotations

import torch
from torch import Tensor


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference): `r - 1 - log r` with `r = ref / policy`.

    Source: Schulman, "Approximating KL divergence"; GRPO's equation 4.

    Args:
        logprobs: Log-probabilities of sampled tokens under the policy, any shape.
        ref_logprobs: The same tokens under the reference.
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio
