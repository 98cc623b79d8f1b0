"""A policy whose completions are rewarded: in training, in validation and in tests."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lit_vlaa.metrics import RewardStats
from lit_vlaa.policy import PolicyModule
from lit_vlaa.reward_guard import RewardGuard
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rollout import OpenImages, request_for
from lit_vlaa.study.responses import ScoredResponse
from lit_vlaa.types import Completion, Prompt, PromptBatch, RewardResult

Outcome = dict[str, tuple[ScoredResponse | None, ...]]
"""What an evaluation step hands to callbacks: `responses`, one for each row of the batch, None where it only pads."""


class RewardedModule(PolicyModule):
    """Base of the modules that train or evaluate by the mixed reward. Logs `val/*` and `test/*`."""

    def __init__(self, *, reward: MixedReward, **policy: Any) -> None:
        """Keeps the reward; `policy` are the arguments of `PolicyModule`."""
        super().__init__(**policy)
        self.reward = reward
        self.guard = RewardGuard(reward)
        self.eval_stats = RewardStats(self.guard.kinds)

    def setup(self, stage: str) -> None:
        """Finds out before any work whether the rows' kinds can be scored and whether the scorer answers.

        Raises:
            ValueError: If not; the message names the flag and the remedy.
        """
        super().setup(stage)
        if stage != "predict":
            self.guard.prepare(getattr(self.trainer.datamodule, "kinds_in_use", {}))  # type: ignore[attr-defined]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Ends the run, with a checkpoint, where the reward has come to nothing.

        Raises:
            RunStoppedError: If more verifications failed than `reward.max_failed` allows.
        """
        self.guard.stop_if_decided(self.trainer, self.latest)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> Outcome:  # noqa: ARG002
        """Reward of one completion a held-out prompt, drawn as in training."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> Outcome:  # noqa: ARG002
        """Reward of one completion a test prompt, drawn as in training."""
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the rewards of all ranks."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs the rewards of all ranks."""
        self._log_evaluation("test")

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Ends the reward's worker processes."""
        self.reward.close()

    @property
    def open_images(self) -> OpenImages | None:
        """Opens a record's images, where the data module can."""
        return getattr(self.trainer.datamodule, "open_images", None)  # type: ignore[attr-defined]

    def _evaluate(self, batch: PromptBatch, stage: str) -> Outcome:
        if not len(batch):
            return {"responses": ()}
        completions = [group[0] for group in self.complete_or_stop(batch.prompts, group_size=1, step=0)]
        texts = [self.processor.decode(completion.token_ids) for completion in completions]
        pairs = zip(batch.prompts, texts, strict=True)
        results = self.reward([request_for(prompt, text, self.open_images) for prompt, text in pairs])
        for prompt, result in zip(batch.prompts, results, strict=True):
            if not prompt.padding:
                self.eval_stats.update(result.kind, result.value if result.judged else None)
        rows = zip(batch.prompts, completions, texts, results, strict=True)
        return {"responses": tuple(None if row[0].padding else _response(stage, *row) for row in rows)}

    def _log_evaluation(self, stage: str) -> None:
        if not self.on_any_rank(self.eval_stats.update_called):
            return
        values = self.eval_stats.compute()
        if values["failed"]:
            rank_zero_warn(f"{stage}: {values['failed']:.0f} answers without a verdict are left out (failed/<kind>)")
        self.eval_stats.reset()
        self.log_dict({**{f"{stage}/{name}": value for name, value in values.items()}, "step": float(self.global_step)})


def _response(stage: str, prompt: Prompt, completion: Completion, text: str, result: RewardResult) -> ScoredResponse:
    record = prompt.record
    return ScoredResponse(
        set=stage,
        id=record.id,
        response=text,
        score=result.value if result.judged else None,
        kind=record.kind,
        source=record.source,
        question=record.question,
        truth=record.truth,
        image=record.images[0] if record.images else None,
        tokens=completion.token_ids.numel(),
        finish=completion.finish,
        status=result.status,
        extracted=result.extracted,
    )
