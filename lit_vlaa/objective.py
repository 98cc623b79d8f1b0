"""The GRPO objective of one micro-batch, as a pure function of log-probabilities, advantages and settings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_vlaa.algorithm import KLConfig, LossConfig
from lit_vlaa.kl import ESTIMATORS
from lit_vlaa.losses import aggregate, clipped_surrogate, sequence_log_ratio, truncated_importance

Means = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum, weight), to be added up over micro-batches and ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the objective needs of the rows of one micro-batch; C is the longest row, its prompt included or not."""

    logprobs: Tensor
    """`[B, C]` under the policy being trained, with gradient."""
    old_logprobs: Tensor
    """`[B, C]` under the policy that the ratio is taken against, without gradient."""
    sampler_logprobs: Tensor
    """`[B, C]` as the rollout engine gave them."""
    ref_logprobs: Tensor | None
    """`[B, C]` under the reference policy; None without one."""
    advantages: Tensor
    """`[B]`."""
    mask: Tensor
    """`[B, C]` bool, True at completion tokens that take part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts of the whole optimiser step, over all ranks and micro-batches."""

    sequences: float
    """Completions that take part."""
    tokens: float
    """Tokens of these completions."""


def grpo_objective(
    rows: Scored, loss: LossConfig, kl: KLConfig, *, coefficient: float, totals: Totals, limit: int
) -> tuple[Tensor, Means]:
    """The micro-batch's part of the step's loss (paper, section on RL training; GRPO, equation 3).

    Args:
        rows: The micro-batch.
        loss: Clipping and aggregation.
        kl: Estimator and place of the divergence.
        coefficient: Present weight of the divergence.
        totals: Counts of the whole step.
        limit: Most tokens of a completion.

    Returns:
        A scalar loss, and the means to log: `policy/*`.
    """
    log_ratio = rows.logprobs - rows.old_logprobs
    if loss.ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, rows.mask)
    surrogate = clipped_surrogate(
        log_ratio, rows.advantages, clip_low=loss.clip_low, clip_high=loss.clip_high, dual_clip=loss.dual_clip
    )
    per_token = surrogate.loss
    gap = rows.logprobs.detach() - rows.sampler_logprobs
    if loss.importance_cap is not None:
        per_token = per_token * truncated_importance(rows.old_logprobs, rows.sampler_logprobs, most=loss.importance_cap)
    tokens = rows.mask.sum()
    means: Means = {}
    if rows.ref_logprobs is not None:
        divergence = ESTIMATORS[kl.estimator](rows.logprobs, rows.ref_logprobs)
        if kl.place == "loss":
            per_token = per_token + coefficient * divergence
        means["policy/kl"] = (divergence * rows.mask).sum(), tokens
    value = aggregate(
        per_token,
        rows.mask,
        loss.aggregation,
        sequences=totals.sequences,
        tokens=totals.tokens,
        length=limit,
    )
    means |= {
        "policy/loss": (value * totals.sequences, rows.mask.any(1).sum()),
        "policy/clipped": ((surrogate.clipped & rows.mask).sum(), tokens),
        "policy/ratio": ((surrogate.ratio * rows.mask).sum(), tokens),
        "policy/sampler_gap": ((gap.abs() * rows.mask).sum(), tokens),
    }
    return value, means
