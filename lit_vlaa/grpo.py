"""Group relative policy optimisation with the paper's mixed reward.

Departures from the paper (section on RL training):

1. The KL coefficient is fixed; the paper steers it towards a target.
2. Completions without a verdict (a verifier failed or ran out of time) are left out of their group and of the loss.
3. Policy and sampler are the same distribution: temperature and banned vision tokens apply to both.
4. Peak learning rate and completion limit are not stated there; the defaults are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.generation.protocol import Generator
from lit_vlaa.kl import k3
from lit_vlaa.losses import clipped_surrogate, sequence_mean
from lit_vlaa.metrics import RankMeans, RewardStats, timed
from lit_vlaa.optim import OptimConfig
from lit_vlaa.policy import PolicyModule
from lit_vlaa.protocols import ScoreFunction, Scorer, Verifier
from lit_vlaa.reward_guard import RewardGuard
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.rewards.mixed import MixedReward
from lit_vlaa.rollout import OpenImages, Rollout, Sampled, flatten, request_for, rollout_means, score
from lit_vlaa.sequences import assemble, unflatten
from lit_vlaa.types import Kind, PromptBatch, SamplingParams

_ORIGIN = "reference_policy"
_SCORES = "reference_scores"
_POLICY_MEANS = ("policy/loss", "policy/kl", "policy/clipped", "policy/ratio", "policy/entropy", "policy/sampler_gap")


class GRPOModule(PolicyModule):
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
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        beta: float = 1e-3,
        old_logprobs: Literal["learner", "sampler"] = "learner",
        max_grad_norm: float = 1.0,
        max_tokens_per_micro_batch: int = 8192,
        seed: int | None = None,
    ) -> None:
        """Keeps the settings; models are built when the strategy is known.

        Args:
            backbone: The model and how to load it.
            optim: Optimiser and learning-rate schedule.
            init_from: Checkpoint of an earlier run (SFT, say) whose weights to start from, a file or a sharded folder
                that you trust; also the reference policy.
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
            clip_low: How far below 1 the probability ratio may count.
            clip_high: How far above 1 the probability ratio may count.
            beta: Weight of the divergence from the starting policy (paper, KL2: 1e-3 at the start); 0 needs no
                reference model.
            old_logprobs: Where the ratio's denominator comes from when a rollout gives several steps: a forward pass
                before the update, or the sampler's own numbers (one pass less; exact only in float32).
            max_grad_norm: Gradients are scaled down to this global norm; 0 for no clipping.
            max_tokens_per_micro_batch: Padded tokens in one forward and backward pass on one device.
            seed: Seed of the rollouts; null takes `--seed_everything`.

        Raises:
            ValueError: If a setting is out of range.
        """
        super().__init__(
            backbone=backbone,
            optim=optim,
            init_from=init_from,
            max_grad_norm=max_grad_norm,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            sampling=sampling,
            generator=generator,
            seed=seed,
        )
        for name, value, least in (
            ("group_size", group_size, 2),
            ("train_batch_size", train_batch_size, 1),
            ("num_iterations", num_iterations, 1),
        ):
            if value < least:
                raise ValueError(f"--model.{name} must be at least {least}, got {value}")
        for name, number in (("clip_low", clip_low), ("clip_high", clip_high), ("beta", beta)):
            if not number >= 0:
                raise ValueError(f"--model.{name} must be 0 or positive, got {number}")
        if sampling.temperature == 0:
            raise ValueError("--model.sampling.temperature must be positive for GRPO: greedy groups have no variance")
        self.reward = MixedReward(reward, scorer, verifiers)
        self.guard = RewardGuard(self.reward)
        self.group_size = group_size
        self.train_batch_size = train_batch_size
        self.num_iterations = num_iterations
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.beta = beta
        self.old_logprobs = old_logprobs
        self._latest: dict[str, float] = {}
        self.eval_stats = RewardStats(self.guard.kinds)
        # Held in a list so that it is no submodule: it has no place in checkpoints, optimiser or DDP.
        self._reference: list[Backbone] = []

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

    def setup(self, stage: str) -> None:
        """Finds out before any work whether the rows' kinds can be scored and whether the scorer answers.

        Raises:
            ValueError: If not; the message names the flag and the remedy.
        """
        if stage != "predict":
            self.guard.prepare(getattr(self.trainer.datamodule, "kinds_in_use", {}))  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Builds policy and, for training with `beta` above 0, the frozen reference."""
        super().configure_model()
        if self.beta > 0 and self.trainer.training and not self._reference:
            reference = self.build(self.backbone_config).requires_grad_(False).eval()
            self.trainer.precision_plugin.convert_module(reference)
            self._reference.append(reference if self.device_mesh is not None else reference.to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes where the run started from, to build the reference policy again, and the references' scores."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_ORIGIN] = self._origin()
        checkpoint[_SCORES] = self.guard.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with another reference policy.

        Raises:
            ValueError: If the run started from other weights; the message says what to give.
        """
        self.guard.load_state(checkpoint.get(_SCORES, {}))
        origin = checkpoint.get(_ORIGIN)
        if origin is not None and origin != self._origin() and self.trainer.training and self.beta > 0:
            given = " ".join(f"--model.{name} {value or 'null'}" for name, value in origin.items())
            raise ValueError(f"the checkpoint's run measures its KL from other weights; resume it with {given}")

    def _origin(self) -> dict[str, str | None]:
        return {"backbone.path": self.backbone_config.path, "init_from": self.init_from}

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """One rollout and its optimiser steps."""
        seconds: dict[str, float] = {}
        with timed(seconds, "generate"):
            groups = self.complete(batch.prompts, group_size=self.group_size)
        sampled = flatten(batch.prompts, groups, self.processor.decode)
        steps = self.steps_per_batch()
        rows = range(len(sampled.completions))
        old = [completion.logprobs for completion in sampled.completions]
        reference: list[Tensor] | None = None
        # Verifiers work in processes and over networks: let them, while the device scores the same completions.
        with self.guard.judging(partial(score, sampled, self.reward, self._open_images), self.device) as verdicts:
            if steps > 1 and self.old_logprobs == "learner":
                with timed(seconds, "old_logprobs"):
                    old = self._score_rows(self.backbone, sampled, rows)
            if self._reference:
                with timed(seconds, "reference"):
                    reference = self._score_rows(self._reference[0], sampled, rows)
            with timed(seconds, "reward_wait"):
                rollout, seconds["reward"] = verdicts.result()
        means = RankMeans(_POLICY_MEANS)
        norms: list[float] = []
        with timed(seconds, "update"):
            for chunk in self._chunks(rows):
                if 0 < self.trainer.max_steps <= self.global_step:
                    break
                learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
                norms.append(self._update(rollout, chunk, None if steps == 1 else old, reference, means))
        tokens = sum(completion.token_ids.numel() for completion in rollout.completions)
        total_tokens = float(self.sum_over_ranks(torch.tensor(float(tokens))))
        values = rollout_means(rollout, self.guard.kinds).reduce(self.sum_over_ranks)
        values |= means.reduce(self.sum_over_ranks) | self.guard.note(rollout.results, self.sum_over_ranks)
        self._latest = {
            **values,
            "rollout/step": float(self.trainer.fit_loop.epoch_loop.total_batch_idx + 1),
            "policy/grad_norm": sum(norms) / len(norms),
            "optim/lr": learning_rate,
            "rollout/tokens_per_second": total_tokens / seconds["generate"],
            **{f"time/{phase}": value for phase, value in seconds.items()},
            "time/step": sum(value for phase, value in seconds.items() if phase != "reward"),
        }
        self.log_train(self._latest)
        self.log("reward", values.get("reward/mean", 0.0), prog_bar=True, logger=False, rank_zero_only=True)
        return {"rollout": rollout.groups()}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Ends the run, with a checkpoint, where the reward has come to nothing.

        Raises:
            RunStoppedError: If more verifications failed than `reward.max_failed` allows.
        """
        self.guard.stop_if_decided(self.trainer, self._latest)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Reward of one completion a held-out prompt, drawn as in training."""
        self._evaluate(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Reward of one completion a test prompt, drawn as in training."""
        self._evaluate(batch)

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
    def _open_images(self) -> OpenImages | None:
        return getattr(self.trainer.datamodule, "open_images", None)  # type: ignore[attr-defined]

    def _update(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        old: list[Tensor] | None,
        reference: list[Tensor] | None,
        means: RankMeans,
    ) -> float:
        judged = rollout.valid.flatten()
        sequences = float(self.sum_over_ranks(judged[list(rows)].sum().float()))
        if not sequences:
            return 0.0  # nothing was judged; a step on no gradient would still move weights by momentum and decay

        def loss_of(part: range) -> Tensor:
            chosen = [rows[index] for index in part]
            inputs, scores = self._forward(self.backbone, rollout, chosen)
            mask = inputs.target_mask & judged[chosen].to(self.device)[:, None]
            logprobs = unflatten(scores.logprobs, inputs.target_mask)
            sampled = self._gathered([c.logprobs for c in rollout.completions], chosen, inputs.target_mask)
            before = logprobs.detach() if old is None else self._gathered(old, chosen, inputs.target_mask)
            advantages = rollout.advantages.flatten()[chosen].to(self.device)
            surrogate = clipped_surrogate(
                logprobs, before, advantages, clip_low=self.clip_low, clip_high=self.clip_high
            )
            per_token = surrogate.loss
            tokens = mask.sum()
            if reference is not None:
                divergence = k3(logprobs, self._gathered(reference, chosen, inputs.target_mask))
                per_token = per_token + self.beta * divergence
                means.add("policy/kl", (divergence * mask).sum(), tokens)
            loss = sequence_mean(per_token, mask, sequences=sequences)
            means.add("policy/loss", loss * sequences, mask.any(1).sum())
            means.add("policy/clipped", (surrogate.clipped & mask).sum(), tokens)
            means.add("policy/ratio", (surrogate.ratio * mask).sum(), tokens)
            means.add("policy/entropy", scores.entropy.sum(), scores.entropy.numel())
            means.add("policy/sampler_gap", ((logprobs.detach() - sampled).abs() * mask).sum(), tokens)
            return loss

        return self.take_step([rollout.length(row) for row in rows], loss_of)

    def _chunks(self, rows: range) -> Iterator[range]:
        """The rows of each optimiser step: whole groups, in the data's order, as often as there are iterations."""
        size = self.train_batch_size // self.trainer.world_size * self.group_size
        for _ in range(self.num_iterations):
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _forward(self, backbone: Backbone, sampled: Sampled, rows: Sequence[int]) -> tuple[Any, Any]:
        inputs = assemble(
            [sampled.row(row) for row in rows], pad_token_id=self.processor.pad_token_id, device=self.device
        )
        return inputs, backbone(inputs, temperature=self.sampling.temperature, ban=True)

    @torch.no_grad()
    def _score_rows(self, backbone: Backbone, sampled: Sampled, rows: range) -> list[Tensor]:
        """Per row the `[C]` log-probabilities of its completion under `backbone`."""
        result: list[Tensor] = []
        for part in self.micro_batches([sampled.length(row) for row in rows]):
            _, scores = self._forward(backbone, sampled, part)
            sizes = [sampled.completions[row].token_ids.numel() for row in part]
            result.extend(scores.logprobs.split(sizes))
        return result

    def _gathered(self, per_row: Sequence[Tensor], rows: Sequence[int], mask: Tensor) -> Tensor:
        return unflatten(torch.cat([per_row[row] for row in rows]).to(mask.device), mask)

    def _evaluate(self, batch: PromptBatch) -> None:
        groups = self.complete(batch.prompts, group_size=1, step=0)
        texts = [self.processor.decode(group[0].token_ids) for group in groups]
        pairs = zip(batch.prompts, texts, strict=True)
        results = self.reward([request_for(prompt, text, self._open_images) for prompt, text in pairs])
        for prompt, result in zip(batch.prompts, results, strict=True):
            if not prompt.padding:
                self.eval_stats.update(result.kind, result.value if result.judged else None)

    def _log_evaluation(self, stage: str) -> None:
        values = self.eval_stats.compute()
        if values["failed"]:
            rank_zero_warn(f"{stage}: {values['failed']:.0f} answers without a verdict are left out (failed/<kind>)")
        self.eval_stats.reset()
        self.log_dict({**{f"{stage}/{name}": value for name, value in values.items()}, "step": float(self.global_step)})
