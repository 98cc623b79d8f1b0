"""Group relative policy optimisation with the paper's mixed reward.

Departures from the paper (section on RL training):

1. Completions without a verdict (a verifier failed or ran out of time) are left out of their group and of the loss.
2. Policy and sampler are the same distribution: temperature and banned vision tokens apply to both.
3. Peak learning rate and completion limit are not stated there; the defaults are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from lit_vlaa.algorithm import AdvantageConfig, KLConfig, LossConfig
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.generation.protocol import Generator
from lit_vlaa.kl import ESTIMATORS, AdaptiveCoefficient
from lit_vlaa.metrics import RankMeans, timed
from lit_vlaa.micro_batches import Batching, scores_by_row
from lit_vlaa.optim import OptimConfig
from lit_vlaa.protocols import ScoreFunction, Scorer, Verifier
from lit_vlaa.reference import Reference, ReferenceKind, Score
from lit_vlaa.resampling import resample
from lit_vlaa.rewarded import RewardedModule
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rollout import (
    Experience,
    Judged,
    Sampled,
    divergence,
    flatten,
    judge,
    rollout_means,
    with_advantages,
)
from lit_vlaa.streamed_reward import StreamedVerdicts, can_stream
from lit_vlaa.types import Kind, Prompt, PromptBatch, SamplingParams, TokenScores
from lit_vlaa.unfinished import RolloutShape, UnfinishedRollout, take_up
from lit_vlaa.update import STEP_MEANS, UpdateStep

_SCORES = "reference_scores"
_COEFFICIENT = "kl_coefficient"
_UNFINISHED = "unfinished_rollout"


class GRPOModule(RewardedModule):
    """Improves the backbone on the RL split by sampling, scoring and a clipped policy gradient.

    One batch of the data module is one rollout. Logged by optimiser step: `reward/*`, `rollout/*`, `policy/*`,
    `time/*` in seconds, `optim/lr`; by evaluation: `val/*` and `test/*`.
    """

    def __init__(
        self,
        *,
        backbone: BackboneConfig = BackboneConfig(freeze=("vision",)),
        optim: OptimConfig = OptimConfig(),
        init_from: str | None = None,
        reward: RewardConfig = RewardConfig(),
        scorer: Scorer | ScoreFunction | None = None,
        verifiers: dict[Kind, Verifier] | None = None,
        generator: Generator | None = None,
        sampling: SamplingParams = SamplingParams(max_new_tokens=800, temperature=0.8),
        group_size: int = 4,
        train_batch_size: int = 256,
        num_iterations: int = 1,
        loss: LossConfig = LossConfig(),
        kl: KLConfig = KLConfig(),
        reference: ReferenceKind = "auto",
        advantage: AdvantageConfig = AdvantageConfig(),
        old_logprobs: Literal["learner", "sampler"] = "learner",
        max_grad_norm: float = 1.0,
        batching: Batching = "shared",
        max_tokens_per_micro_batch: int = 8192,
        max_skipped_steps: int = 10,
        seed: int | None = None,
    ) -> None:
        """Keeps the settings; models are built when the strategy is known.

        Args:
            backbone: The model and how to load it.
            optim: Optimiser and learning-rate schedule.
            init_from: Checkpoint of an earlier run (SFT, say) whose weights to start from, a file or a sharded folder;
                also the reference policy.
            reward: Settings of the mixed reward.
            scorer: Judge of open-ended answers, a class or function `(requests, answers) -> scores`
                (`lit_vlaa.protocols.Scorer`); null takes the embedded lexical one.
            verifiers: Reward kinds of your own: the name in the rows' `verifier_type`, and the function that judges an
                answer (`lit_vlaa.protocols.Verifier`), such as `{color: my_rewards.color.score}`.
            generator: Rollout engine; null takes the cached one.
            sampling: How completions are drawn, in training and in evaluation.
            group_size: Completions a prompt (paper: 4).
            train_batch_size: Prompts in one optimiser step over all ranks (paper: 256); divides the data module's
                `batch_size`, which counts the prompts of one rollout (paper: 512).
            num_iterations: Passes over a rollout.
            loss: The clipped surrogate and how its tokens are weighed.
            kl: Divergence from the policy that the run started from, the reference.
            reference: How it is kept: a frozen `copy`, a copy in main memory that visits the device for its pass
                (`cpu`), the policy without its adapters (`adapter`); `auto` takes the last, or a copy without any.
            advantage: From rewards to advantages.
            old_logprobs: Where the ratio's denominator comes from when a rollout gives several steps: a forward pass
                before the update, or the sampler's own numbers (one pass less; exact only in float32).
            max_grad_norm: Gradients are scaled down to this global norm; 0 for no clipping.
            batching: How rows go through the model together: a prompt once, followed by all its completions (`shared`),
                each completion behind its own copy of the prompt (`packed`), or the same padded to the longest
                (`padded`). The numbers are the same up to rounding.
            max_tokens_per_micro_batch: Tokens in one forward and backward pass on one device, padding included. Under
                `shared` a prompt's completions stay together where they fit.
            max_skipped_steps: Optimiser steps in a row that are left out for a gradient that is not finite, before the
                run saves a checkpoint and stops.
            seed: Seed of the rollouts; null takes `--seed_everything`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(
            backbone=backbone,
            optim=optim,
            init_from=init_from,
            max_grad_norm=max_grad_norm,
            batching=batching,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            max_skipped_steps=max_skipped_steps,
            sampling=sampling,
            generator=generator,
            seed=seed,
            reward=MixedReward(reward, scorer, verifiers),
        )
        for name, value, least in (
            ("group_size", group_size, 2),
            ("train_batch_size", train_batch_size, 1),
            ("num_iterations", num_iterations, 1),
        ):
            if value < least:
                raise ValueError(f"--model.{name} must be at least {least}, got {value}")
        if loss.importance_cap is not None and old_logprobs == "sampler":
            raise ValueError("--model.loss.importance_cap needs --model.old_logprobs learner: the sampler's own are 1")
        if sampling.temperature == 0:
            raise ValueError("--model.sampling.temperature must be positive for GRPO: greedy groups have no variance")
        self.group_size = group_size
        self.train_batch_size = train_batch_size
        self.num_iterations = num_iterations
        self.loss = loss
        self.kl = kl
        self.advantage = advantage
        self.kl_coefficient = AdaptiveCoefficient(kl.coefficient, target=kl.target, horizon=kl.horizon)
        self.old_logprobs = old_logprobs
        self.reference = Reference(reference, backbone, init_from)
        self._shape = RolloutShape(group_size, train_batch_size, num_iterations)
        self._left: dict[str, Any] | None = None
        self._streams = can_stream(self.engine, needs_device=self.guard.needs_device)

    def steps_per_batch(self) -> int:
        """Optimiser steps that one rollout gives.

        Raises:
            ValueError: If the train batch does not divide the rollout.
        """
        rollout: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        if rollout % self.train_batch_size or self.train_batch_size % self.trainer.world_size:
            raise ValueError(
                f"--model.train_batch_size {self.train_batch_size} must divide --data.batch_size {rollout} and be a "
                f"multiple of the {self.trainer.world_size} rank(s)"
            )
        return self.num_iterations * (rollout // self.train_batch_size)

    def configure_model(self) -> None:
        """Builds policy and, for training with a divergence, the reference."""
        super().configure_model()
        if self.kl.coefficient > 0 and self.trainer.training:
            self.reference.make(self.backbone, partial(self.build, self.backbone_config), self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes where the run started from, to build the reference policy again, and the references' scores."""
        super().on_save_checkpoint(checkpoint)
        self.reference.note(checkpoint)
        checkpoint[_SCORES] = self.guard.state()
        checkpoint[_COEFFICIENT] = self.kl_coefficient.value
        checkpoint[_UNFINISHED] = None if self.unfinished is None else self.unfinished.state(self._shape)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with another reference policy.

        Raises:
            ValueError: If the run started from other weights; the message says what to give.
        """
        super().on_load_checkpoint(checkpoint)
        self._left = checkpoint.get(_UNFINISHED) if self.trainer.training else None
        if self._left is not None:
            self._shape.check(self._left)
        self.guard.load_state(checkpoint.get(_SCORES, {}))
        if self.kl.target is not None:
            self.kl_coefficient.value = checkpoint.get(_COEFFICIENT, self.kl_coefficient.value)
        if self.trainer.training and self.kl.coefficient > 0:
            self.reference.check(checkpoint)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """One rollout and its optimiser steps."""
        with self.backbone.images.features.remembering(batch.prompts):
            return self._rollout_and_update(batch)

    def _rollout_and_update(self, batch: PromptBatch) -> dict[str, Any]:
        work = self._begin(batch.prompts)
        experience, rollout, seconds = work.experience, work.experience.rollout, work.seconds
        chunks = self._shape.chunks(range(len(rollout.completions)), self.trainer.world_size)
        with timed(seconds, "update"):
            for chunk in islice(chunks, len(work.norms), None):
                if 0 < self.trainer.max_steps <= self.global_step:
                    break
                self.step_boundary()
                learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
                work.norms.append(self._update(experience, chunk, work.means))
        self.unfinished = None if len(work.norms) == self.steps_per_batch() else work
        tokens = sum(completion.token_ids.numel() for completion in rollout.completions)
        total_tokens = float(self.sum_over_ranks(torch.tensor(float(tokens))))
        values = rollout_means(rollout, self.guard.kinds).reduce(self.sum_over_ranks)
        values |= work.means.reduce(self.sum_over_ranks)
        done = self.unfinished is None
        if done:  # one that `max_steps` cut short is finished by the run that goes on
            values |= self.guard.note(rollout.results, self.sum_over_ranks)
        if experience.reference is not None:
            values["policy/kl_coefficient"] = self.kl_coefficient.value
        metrics = {
            **values,
            "rollout/resampled": experience.resampled,
            "rollout/step": float(self.trainer.fit_loop.epoch_loop.total_batch_idx + 1),
            "policy/grad_norm": sum(work.norms) / len(work.norms),
            "optim/lr": learning_rate,
            "rollout/tokens_per_second": total_tokens / seconds["generate"],
            **{f"time/{phase}": value for phase, value in seconds.items()},
            "time/step": sum(value for phase, value in seconds.items() if phase != "reward"),
        }
        if "policy/kl" in values and done:
            completions = self.group_size * self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
            self.kl_coefficient.update(values["policy/kl"], completions)
        self.log_train(metrics)
        self.log("reward", values.get("reward/mean", 0.0), prog_bar=True, logger=False, rank_zero_only=True)
        return {"rollout": rollout.groups()} if done else {}

    def _begin(self, prompts: Sequence[Prompt]) -> UnfinishedRollout:
        """A new rollout, or the one that the interrupted run left."""
        left, self._left, self.unfinished = self._left, None, None
        means, own = RankMeans(STEP_MEANS), (self.trainer.global_rank, self.trainer.world_size)
        if left is None:
            seconds: dict[str, float] = {}
            self.unfinished = UnfinishedRollout(self._collect(prompts, seconds), means, seconds)
        else:
            self.unfinished = take_up(left, prompts, self._shape, means, own)
        return self.unfinished

    def _collect(self, prompts: Sequence[Prompt], seconds: dict[str, float]) -> Experience:
        """Completions, their verdicts and advantages, and what policy and reference thought of them."""
        old: list[Tensor] | None = None
        reference: list[Tensor] | None = None
        resampled = 0.0
        # Verifiers work in processes and over networks: let them, while the device writes and reads completions.
        with StreamedVerdicts(prompts, self.group_size, self._judging(), self.device) as verdicts:
            with timed(seconds, "generate"):
                on_group = verdicts.add if self._streams else None
                groups = self.complete_or_stop(prompts, group_size=self.group_size, on_group=on_group)
            with timed(seconds, "reward_wait"):
                sampled = verdicts.finish(groups, wait=self.guard.needs_device or self.advantage.resample > 0)
            if self.advantage.resample:
                judged, seconds["reward"] = verdicts.result()
                with timed(seconds, "resample"):
                    judged, resampled = resample(
                        judged, draw=self._redraw, times=self.advantage.resample, sum_over_ranks=self.sum_over_ranks
                    )
                sampled = judged
            rows = range(len(sampled.completions))
            if self.steps_per_batch() > 1:
                old = [completion.logprobs for completion in sampled.completions]
                if self.old_logprobs == "learner":
                    with timed(seconds, "old_logprobs"):
                        old = self._score_rows(self.backbone, sampled, rows)
            if self.reference.made:
                with timed(seconds, "reference"), self.reference.running() as score:
                    reference = self._score_rows(score, sampled, rows)
            if not self.advantage.resample:
                with timed(seconds, "reward_wait"):
                    judged, seconds["reward"] = verdicts.result()
        rollout = with_advantages(
            judged,
            self.advantage,
            limit=self.sampling.max_new_tokens,
            divergence=self._divergence(sampled, old, reference),
            sum_over_ranks=self.sum_over_ranks,
        )
        return Experience(rollout=rollout, old=old, reference=reference, resampled=resampled)

    def _redraw(self, prompts: Sequence[Prompt], attempt: int) -> Judged:
        groups = self.complete_or_stop(prompts, group_size=self.group_size, attempt=attempt)
        return self._judging()(flatten(prompts, groups))

    def _judging(self) -> Callable[[Sampled], Judged]:
        return partial(judge, decode=self.processor.decode, reward=self.reward, open_images=self.open_images)

    def _divergence(self, sampled: Sampled, old: list[Tensor] | None, reference: list[Tensor] | None) -> Tensor | None:
        """`[B * G]` what each completion's reward loses by its divergence; None where that is in the loss."""
        if reference is None or self.kl.place != "reward":
            return None
        return self.kl_coefficient.value * divergence(sampled, old, reference, ESTIMATORS[self.kl.estimator])

    def _update(self, experience: Experience, rows: Sequence[int], means: RankMeans) -> float:
        step = UpdateStep(
            experience,
            rows,
            self.loss,
            self.kl,
            score=partial(self._forward, self.backbone, experience.rollout),
            coefficient=self.kl_coefficient.value,
            limit=self.sampling.max_new_tokens,
            sum_over_ranks=self.sum_over_ranks,
        )
        if not step.sequences:
            self.count_step(moves=False)  # nothing to learn from: momentum and decay shall not move the weights either
            return 0.0
        norm = self.take_step(step.sizes, step.loss_of)
        # A step that ends the run is taken again by the one that goes on: its numbers count once it is done.
        means.merge(step.means)
        return norm

    def _forward(self, score: Score, sampled: Sampled, rows: Sequence[int]) -> TokenScores:
        inputs = self.join([sampled.row(row) for row in rows])
        return score(inputs, temperature=self.sampling.temperature, ban=True)

    @torch.no_grad()
    def _score_rows(self, score: Score, sampled: Sampled, rows: range) -> list[Tensor]:
        """Per row the `[C]` log-probabilities of its completion under a policy."""
        sizes = [sampled.size(row) for row in rows]

        def forward(part: Sequence[int]) -> TokenScores:
            return self._forward(score, sampled, [rows[index] for index in part])

        return [row.logprobs for row in scores_by_row(sizes, self.micro_batches(sizes), forward)]
