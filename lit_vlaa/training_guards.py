"""Signs that a run has gone wrong, read from the numbers that it logs; pure logic, no Trainer.

A guard looks at the numbers of one training batch: an optimiser step of SFT, a rollout of GRPO. Where they look bad for
`patience` batches in a row, it speaks once, and again only after they looked well in between.

Departures from the paper: all of this. It reports loss spikes in SFT (Qwen2-VL-7B, 25K), not what it did about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, ClassVar, Literal

Action = Literal["warn", "stop"]
Metrics = Mapping[str, float]
Memory = dict[str, list[float]]
"""What a guard keeps from batch to batch, in a form that checkpoints hold."""

_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""

_LEAST_SPREAD = 0.01
"""Share of the median that counts as spread where a window varies less."""

_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "patience": (lambda value: value >= 1, "at least 1"),
        "metrics": (bool, "the name of a logged number, or several"),
        "window": (lambda value: value >= 2, "at least 2"),
        "deviations": (lambda value: value > 0, "positive"),
        "share": (lambda value: 0 < value <= 1, "in (0, 1]"),
        "least": (lambda value: value >= 0, "0 or positive"),
        "most": (lambda value: value > 0, "positive"),
    }
)
"""What an option must be, in every guard that has one of this name."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What all guards have in common."""

    name: ClassVar[str]
    advice: ClassVar[str]
    """Likely cause, and which settings to turn."""

    patience: int = 1
    """Batches in a row (steps of SFT, rollouts of GRPO) that must look bad before the guard speaks."""
    action: Action = "warn"
    """`warn` speaks; `stop` also saves a checkpoint and ends the run."""

    def __post_init__(self) -> None:
        for option, (holds, wanted) in _RULES.items():
            value = getattr(self, option, None)
            if value is not None and not holds(value):
                raise ValueError(f"TrainingGuards: {self.name}.{option} must be {wanted}, got {value}")

    def look(self, metrics: Metrics, memory: Memory) -> str | None:
        """Says what looks bad; None where all is well or the run does not log what this guard reads."""
        raise NotImplementedError  # no abstract class, which jsonargparse would want to be named by its path


@dataclass(frozen=True, kw_only=True)
class NotFinite(Guard):
    """Loss or gradient norm that is NaN or infinite.

    The module leaves such an optimiser step out, and ends the run itself after 10 in a row.
    """

    name = "not_finite"
    advice = (
        "the learning rate is too high, or half precision overflows: lower --model.optim.lr or --model.max_grad_norm, "
        "or try --trainer.precision 32-true"
    )

    patience: int = 5
    """Batches in a row before the guard speaks; the module warns of each step."""
    action: Action = "stop"
    """As for every guard; the checkpoint of a `stop` holds the weights as they were before."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:  # noqa: ARG002
        """Reads loss and gradient norm of either module."""
        names = ("train/loss", "train/grad_norm", "policy/loss", "policy/grad_norm")
        bad = [f"{name} is {metrics[name]}" for name in names if not math.isfinite(metrics.get(name, 0.0))]
        return " and ".join(bad) or None


@dataclass(frozen=True, kw_only=True)
class LossSpike(Guard):
    """A number far above its recent ones, by median and median absolute deviation, which earlier spikes do not move."""

    name = "loss_spike"
    advice = (
        "a broken or odd row, or too high a learning rate: look at the rows of this batch, raise "
        "--model.optim.warmup_ratio, lower --model.optim.lr or --model.max_grad_norm"
    )

    metrics: tuple[str, ...] = ("train/loss", "policy/grad_norm")
    """Numbers to watch by the names that they are logged under; those that a run does not log are passed over. (GRPO's
    loss is near zero by construction, whatever happens; its gradient is not.)"""
    window: int = 50
    """Latest batches to compare with; the guard starts when half of them are there."""
    deviations: float = 10.0
    """Robust standard deviations above the median from which on a number is a spike."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:
        """Compares with the batches before, and takes this one in."""
        bad = []
        for name in self.metrics:
            value = metrics.get(name, math.nan)
            if not math.isfinite(value):
                continue
            recent = memory.setdefault(name, [])
            if len(recent) >= self.window // 2:
                middle = median(recent)
                spread = _TO_DEVIATION * median(abs(other - middle) for other in recent)
                limit = middle + self.deviations * max(spread, _LEAST_SPREAD * abs(middle))
                if value > limit:
                    bad.append(
                        f"{name} is {value:.4g}, where {len(recent)} batches before had a median of {middle:.4g}"
                    )
            recent.append(value)
            del recent[: -self.window]
        return " and ".join(bad) or None


@dataclass(frozen=True, kw_only=True)
class RewardCollapse(Guard):
    """A running mean of the reward that fell far below the best that the run has reached."""

    name = "reward_collapse"
    advice = (
        "the policy has left what it could do: go back to an earlier checkpoint, then lower --model.optim.lr or raise "
        "--model.kl.coefficient"
    )

    patience: int = 5
    """Rollouts in a row before the guard speaks."""
    window: int = 10
    """Rollouts in the running mean."""
    share: float = 0.5
    """Of the best running mean; a lower one counts as collapse."""
    least: float = 0.05
    """Best running mean from which on a fall counts; below it the reward is noise."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:
        """Takes the rollout's mean reward in; one without any verdict has none."""
        recent = memory.setdefault("rewards", [])
        if "reward/mean" in metrics:
            recent.append(metrics["reward/mean"])
            del recent[: -self.window]
        if len(recent) < self.window:
            return None
        mean = fmean(recent)
        best = max([mean, *memory.get("best", ())])
        memory["best"] = [best]
        if best < self.least or mean >= self.share * best:
            return None
        return f"the mean reward of {self.window} rollouts is {mean:.3g}, where it has been {best:.3g}"


@dataclass(frozen=True, kw_only=True)
class FlatGroups(Guard):
    """Rollouts in which groups have no differences in reward, so that nothing is learned from them."""

    name = "flat_groups"
    advice = (
        "the task is too hard or solved, or answers have the wrong form (see rollout/no_answer): raise "
        "--model.sampling.temperature or --model.group_size, set --model.advantage.resample, or choose other rows"
    )

    patience: int = 5
    """Rollouts in a row before the guard speaks."""
    share: float = 1.0
    """Share of flat groups from which on a rollout looks bad."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:  # noqa: ARG002
        """Reads `rollout/zero_variance`."""
        flat = metrics.get("rollout/zero_variance", 0.0)
        return f"{flat:.0%} of the groups have no differences in reward" if flat >= self.share else None


@dataclass(frozen=True, kw_only=True)
class EntropyCollapse(Guard):
    """A policy that is sure of every token, so that the completions of a group are alike."""

    name = "entropy_collapse"
    advice = (
        "the policy stopped exploring: lower --model.optim.lr, raise --model.loss.clip_high (0.28 in DAPO), "
        "--model.sampling.temperature or --model.kl.coefficient"
    )

    patience: int = 5
    """Rollouts in a row before the guard speaks."""
    least: float = 0.02
    """Mean entropy of a token, in nats, below which a rollout looks bad."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:  # noqa: ARG002
        """Reads `policy/entropy`."""
        entropy = metrics.get("policy/entropy", math.inf)
        return f"the entropy is {entropy:.3g} nats a token" if entropy < self.least else None


@dataclass(frozen=True, kw_only=True)
class KLBlowUp(Guard):
    """A policy far away from its reference."""

    name = "kl_blow_up"
    advice = (
        "the updates outrun the divergence's weight: raise --model.kl.coefficient, set --model.kl.target, or lower "
        "--model.optim.lr"
    )

    patience: int = 3
    """Rollouts in a row before the guard speaks."""
    most: float = 1.0
    """Mean divergence of a token, in nats, above which a rollout looks bad."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:  # noqa: ARG002
        """Reads `policy/kl`."""
        divergence = metrics.get("policy/kl", 0.0)
        return f"the divergence is {divergence:.3g} nats a token" if divergence > self.most else None


@dataclass(frozen=True, kw_only=True)
class Truncation(Guard):
    """Completions that run into the length limit before they give an answer."""

    name = "truncation"
    advice = (
        "the limit is too low, or the policy rambles: raise --model.sampling.max_new_tokens, or set "
        "--model.advantage.length_penalty"
    )

    patience: int = 3
    """Rollouts in a row before the guard speaks."""
    share: float = 1.0
    """Share of truncated completions from which on a rollout looks bad."""

    def look(self, metrics: Metrics, memory: Memory) -> str | None:  # noqa: ARG002
        """Reads `rollout/truncated`."""
        cut = metrics.get("rollout/truncated", 0.0)
        return f"{cut:.0%} of the completions ran into the length limit" if cut >= self.share else None


@dataclass
class Watch:
    """A guard at work."""

    guard: Guard
    count: int = 0
    """How often it has spoken."""
    streak: int = 0
    """Batches in a row that looked bad."""
    told: bool = False
    """Whether it has spoken of this streak."""
    memory: Memory = field(default_factory=dict)

    def update(self, metrics: Metrics) -> str | None:
        """Takes in one batch.

        Returns:
            What to tell the user, once a streak.
        """
        finding = self.guard.look(metrics, self.memory)
        if finding is None:
            self.streak, self.told = 0, False
            return None
        self.streak += 1
        if self.told or self.streak < self.guard.patience:
            return None
        self.count += 1
        times = f" ({self.streak} times in a row)" if self.streak > 1 else ""
        # A run that is resumed after its stop gets as much patience again.
        self.told = self.guard.action == "warn"
        self.streak = self.streak if self.told else 0
        return f"{finding}{times}. Likely {self.guard.advice}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        memory = {name: list(values) for name, values in self.memory.items()}
        return {"count": self.count, "streak": self.streak, "told": self.told, "memory": memory}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.count, self.streak, self.told = state["count"], state["streak"], state["told"]
        self.memory = {name: list(values) for name, values in state["memory"].items()}
