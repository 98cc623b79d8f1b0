"""Settings of the policy gradient: loss, divergence, advantages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from lit_vlaa.advantages import AdvantageScale
from lit_vlaa.kl import KLEstimator
from lit_vlaa.losses import Aggregation, RatioLevel


def _check(part: str, rules: Iterable[tuple[bool, str, object, str]]) -> None:
    for ok, name, value, wanted in rules:
        if not ok:
            raise ValueError(f"--model.{part}.{name} must be {wanted}, got {value}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The clipped surrogate and how its tokens are weighed. The defaults are the paper's."""

    clip_low: float = 0.2
    """How far below 1 the probability ratio may count."""
    clip_high: float = 0.2
    """How far above 1 the probability ratio may count (0.28 in DAPO)."""
    dual_clip: float | None = None
    """Multiple of a negative advantage, above 1, below which the objective does not fall; null for no such bound."""
    ratio: RatioLevel = "token"
    """One probability ratio a token, or one a sequence, the mean of its tokens' in logarithms (GSPO)."""
    aggregation: Aggregation = "sequence_mean"
    """`sequence_mean`: mean over each sequence's tokens, then over sequences (paper). `token_mean`: mean over a step's
    tokens (DAPO). `constant_length`: sum over tokens by `sampling.max_new_tokens`, mean over sequences (Dr.
    GRPO)."""
    importance_cap: float | None = None
    """Weighs tokens by learner / sampler probability up to this cap, where the rollout engine computes in another
    precision; null for no weights. The gap between both is logged either way."""
    mask_truncated: bool = False
    """Leave completions that ran into the length limit out of the loss; their rewards still count in their group."""

    def __post_init__(self) -> None:
        _check(
            "loss",
            (
                (0 <= self.clip_low <= 1, "clip_low", self.clip_low, "in [0, 1]"),
                (0 <= self.clip_high < math.inf, "clip_high", self.clip_high, "0 or positive"),
                (self.dual_clip is None or self.dual_clip > 1, "dual_clip", self.dual_clip, "above 1, or null"),
                (
                    self.importance_cap is None or self.importance_cap > 0,
                    "importance_cap",
                    self.importance_cap,
                    "positive, or null",
                ),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """Divergence from the reference policy, which is the one that the run started from."""

    coefficient: float = 1e-3
    """Weight of the divergence, at the start if it is adaptive (paper, KL2: 1e-3; KL1: 1e-2); 0 needs no reference."""
    target: float | None = None
    """Mean divergence a token in nats that an adaptive coefficient steers to (paper, KL2: 5e-4; KL1: 5e-3); null keeps
    the coefficient fixed."""
    horizon: int = 10_000
    """Completions over which a lasting error of 20% changes an adaptive coefficient by about 20%."""
    estimator: KLEstimator = "k3"
    """`k1`, `k2` or `k3` of Schulman's note; `k1` has no gradient on average and belongs in the reward."""
    place: Literal["loss", "reward"] = "loss"
    """Add the divergence of each token to the loss (GRPO), or subtract a completion's sum from its reward (PPO)."""

    def __post_init__(self) -> None:
        _check(
            "kl",
            (
                (0 <= self.coefficient < math.inf, "coefficient", self.coefficient, "0 or positive"),
                (self.target is None or self.target > 0, "target", self.target, "positive, or null"),
                (
                    self.target is None or self.coefficient > 0,
                    "coefficient",
                    self.coefficient,
                    "positive where a target is given",
                ),
                (self.horizon >= 1, "horizon", self.horizon, "at least 1"),
                (
                    not (self.estimator == "k1" and self.place == "loss"),
                    "estimator",
                    "k1",
                    "k2 or k3 in the loss, where k1 has no gradient on average; or set place to reward",
                ),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """From rewards to advantages."""

    scale: AdvantageScale = "std"
    """What a reward's distance from its group's mean is divided by: the group's standard deviation (paper), nothing
    (`none`, Dr. GRPO), or the deviation of the step's rewards over all ranks (`batch`)."""
    resample: int = 0
    """Times that groups whose rewards are all equal (before length penalty and divergence) and so teach nothing are
    drawn again (DAPO's dynamic sampling)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Factors of the advantages by kind (`math`) or source (`docvqa`); a row's kind and source both count. A factor of
    the rewards themselves would cancel where advantages are normalised."""
    length_penalty: float = 0.0
    """Taken from the reward of a completion as long as the limit; it grows linearly over `length_buffer` tokens before
    the limit (DAPO, equation 13)."""
    length_buffer: int = 128
    """Tokens before the limit over which the penalty grows."""

    def __post_init__(self) -> None:
        _check(
            "advantage",
            (
                (self.resample >= 0, "resample", self.resample, "0 or positive"),
                (
                    all(0 <= weight < math.inf for weight in self.weights.values()),
                    "weights",
                    self.weights,
                    "0 or positive",
                ),
                (0 <= self.length_penalty < math.inf, "length_penalty", self.length_penalty, "0 or positive"),
                (self.length_buffer >= 1, "length_buffer", self.length_buffer, "at least 1"),
            ),
        )
