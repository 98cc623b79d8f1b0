"""Settings of the mixed reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Settings of the mixed reward."""

    open_ended_scale: float = 0.2
    """b of the open-ended formula, per unit of the scorer's values. The paper does not state it."""
    open_ended_baseline: Literal["auto", "reference"] | float = "auto"
    """What stands for s(y): the reference answer's own score (`reference`), or a fixed number. `auto` takes the
    reference's score, except for a scorer of similarity to the reference, which brings a number of its own."""
    math_workers: int = 2
    """Math-Verify processes on each rank."""
    math_timeout_s: float = 4.0
    """Seconds for one comparison before its process is killed."""
    math_memory_mb: int = 2048
    """Address space of one Math-Verify process in MiB."""
    format_weight: float = 0.0
    """Share of the reward in [0, 1] that any response with an extractable answer gets, right or wrong."""
    max_failed: float = 0.5
    """Share of one kind's answers that may be without a verdict (verifier or scorer failed, timeout, unreadable truth),
    over the latest rollouts; above it the run saves a checkpoint and stops. 1 never stops."""
    failed_window: int = 64
    """Answers of a kind, over all ranks, that `max_failed` needs and looks back on at least."""

    def __post_init__(self) -> None:
        for ok, name, wanted in (
            (self.open_ended_scale > 0, "open_ended_scale", "positive"),
            (
                not isinstance(self.open_ended_baseline, float) or math.isfinite(self.open_ended_baseline),
                "open_ended_baseline",
                "finite",
            ),
            (self.math_workers >= 1, "math_workers", "at least 1"),
            (self.math_timeout_s > 0, "math_timeout_s", "positive"),
            (self.math_memory_mb >= 256, "math_memory_mb", "at least 256, which Math-Verify needs to start"),
            (0 <= self.format_weight <= 1, "format_weight", "in [0, 1]"),
            (0 <= self.max_failed <= 1, "max_failed", "in [0, 1]"),
            (self.failed_window >= 1, "failed_window", "at least 1"),
        ):
            if not ok:
                raise ValueError(f"--model.reward.{name} must be {wanted}, got {getattr(self, name)}")
