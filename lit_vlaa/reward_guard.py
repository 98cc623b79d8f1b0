"""What a run does about its reward besides asking it: looks ahead, watches for failures, stops in time, resumes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

from lit_vlaa.rewards.failures import FailureWatch, shares, tally
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.stopping import stop_run
from lit_vlaa.types import Kind, RewardResult

_T = TypeVar("_T")


class RewardGuard:
    """Watches over a run's reward.

    Args:
        reward: The reward of the run.
    """

    def __init__(self, reward: MixedReward) -> None:
        self.kinds = reward.kinds
        # Such a scorer wants the device's memory for itself.
        self._needs_device = bool(getattr(reward.open_ended.scorer, "uses_accelerator", False))
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

    @contextmanager
    def judging(self, work: Callable[[], _T], device: torch.device) -> Iterator[Future[tuple[_T, float]]]:
        """Scores in a thread of its own; waits for it at the start where the scorer needs the device, else at the end.

        Args:
            work: What scores.
            device: This rank's device.

        Yields:
            What `work` will give, and the seconds that it took.
        """
        outcome: Future[tuple[_T, float]] = Future()

        def run() -> None:
            try:
                if device.type == "cuda":
                    torch.cuda.set_device(device)  # a new thread would take the first
                started = time.perf_counter()
                outcome.set_result((work(), time.perf_counter() - started))
            except BaseException as error:  # noqa: BLE001 - raised again by `result`
                outcome.set_exception(error)

        # Not an executor's thread: Python would wait for that one when the user interrupts the run.
        threading.Thread(target=run, name="reward", daemon=True).start()
        if self._needs_device:
            wait([outcome])
        yield outcome
        wait([outcome])

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
        states: list[Any] = [own]
        if distributed.is_available() and distributed.is_initialized():
            states = [None] * distributed.get_world_size()
            distributed.all_gather_object(states, own)
        references = {key: value for state in states for key, value in state["references"].items()}
        return {**own, "references": references, "failures": self._watch.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self._reward.open_ended.load_state(state)
        self._watch.load_state(state.get("failures", {}))
