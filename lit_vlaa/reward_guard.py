"""What a run does about its reward besides asking it: looks ahead, watches for failures, stops in time, resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_vlaa.parallel import gather_objects
from lit_vlaa.rewards.failures import FailureWatch, shares, tally
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.stopping import stop_run
from lit_vlaa.types import Kind, RewardResult


class RewardGuard:
    """Watches over a run's reward.

    Args:
        reward: The reward of the run.
    """

    def __init__(self, reward: MixedReward) -> None:
        self.kinds = reward.kinds
        self.needs_device = bool(getattr(reward.open_ended.scorer, "uses_accelerator", False))
        """Whether the scorer wants the device, and its memory, for itself."""
        self._reward = reward
        self._watch = FailureWatch(reward.kinds, most=reward.config.max_failed, window=reward.config.failed_window)
        self._reason: str | None = None

    def prepare(self, kinds_in_use: Mapping[Kind, str]) -> None:
        """Finds out before any work whether the rows can be scored.

        Args:
            kinds_in_use: The kinds of the run's rows, each with the origin (`file:row`) of its first row; empty when
                they are not known.

        Raises:
            ValueError: If a kind has no verifier, or the scorer does not work; the message names the flag.
        """
        for kind, origin in kinds_in_use.items():
            if kind not in self.kinds:
                raise ValueError(
                    f"{origin}: nothing scores verifier_type {kind!r}; known are {', '.join(self.kinds)}. Name its "
                    f"function, as in --model.verifiers '{{{kind}: my_package.{kind}.score}}', or leave such rows out "
                    "with --data.kinds"
                )
        if not kinds_in_use or "open_ended" in kinds_in_use:
            self._reward.prepare()

    def note(self, results: Sequence[RewardResult], sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Adds one rollout's results; may decide that the run ends (`stop_if_decided`).

        Returns:
            Shares of completions without a verdict over all ranks: `failed/<kind>` and `failed/<status>`.
        """
        counts = torch.tensor(tally(results, self.kinds), dtype=torch.float32)
        summed: list[list[int]] = sum_over_ranks(counts).long().tolist()
        self._reason = self._watch.update(summed)
        return shares(summed, self.kinds)

    def stop_if_decided(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Saves a checkpoint and ends the run where the reward has come to nothing; every rank must call it.

        Args:
            trainer: The run's Trainer.
            metrics: The step's numbers, which Lightning would log only after this.

        Raises:
            RunStoppedError: If too many verifications failed.
        """
        if self._reason is None:
            return
        stop_run(trainer, self._reason, metrics)

    def state(self) -> dict[str, Any]:
        """The scores of the reference answers of all ranks, and the latest failures; every rank must call it."""
        own = self._reward.open_ended.state()
        references = {key: value for state in gather_objects(own) for key, value in state["references"].items()}
        return {**own, "references": references, "failures": self._watch.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self._reward.open_ended.load_state(state)
        self._watch.load_state(state.get("failures", {}))
