"""A policy that answers prompts: built for any strategy, whole for its rollouts, measured while it trains."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

import lit_vlaa.strategies  # noqa: F401  # registers fsdp2 and its kin for Trainers made in Python
from lit_vlaa.backbone import Backbone, BackboneConfig, Processor, build_backbone, load_processor
from lit_vlaa.generation import CachedGenerator, RolloutKey
from lit_vlaa.generation.protocol import EngineLostError, OnGroup, check_sampling, may_be_lost
from lit_vlaa.generation.protocol import Generator as RolloutEngine
from lit_vlaa.lost_engine import end_if_lost
from lit_vlaa.meter import Meter
from lit_vlaa.parallel import unsharded
from lit_vlaa.sharding import sharding_policies
from lit_vlaa.types import Completion, Prompt, PromptBatch, SamplingParams


class AnsweringPolicy(LightningModule):
    """Base of the modules: the backbone and its rollouts (implements `lit_vlaa.protocols.AnsweringModule`)."""

    def __init__(
        self,
        *,
        backbone: BackboneConfig,
        init_from: str | None,
        sampling: SamplingParams,
        generator: RolloutEngine | None,
        seed: int | None,
    ) -> None:
        """Keeps the settings; the model is built in `configure_model`, once the strategy is known."""
        super().__init__()
        self.backbone_config = backbone
        self.init_from = init_from
        self.sampling = sampling
        self.engine: RolloutEngine = generator or CachedGenerator()
        check_sampling(self.engine, sampling)
        self.seed = seed
        self.backbone: Backbone
        self.meter: Meter
        """What the training batch asked of the model so far."""
        self._processor: Processor | None = None
        self._in_rollout = False

    @property
    def processor(self) -> Processor:
        """Chat template, tokenizer and image processing; the data module takes it from here."""
        if self._processor is None:
            self._processor = load_processor(self.backbone_config)
        return self._processor

    def configure_model(self) -> None:
        """Builds the backbone, loads `init_from`, and shards it where the strategy has a device mesh."""
        if "backbone" not in self._modules:
            self.backbone = self.build(self.backbone_config)
            self.meter = Meter(self.backbone.model.config, self.backbone_config)

    def build(self, config: BackboneConfig, *, cpu_offload: bool = False) -> Backbone:
        """A backbone with the run's starting weights, laid out as the strategy wants it.

        Args:
            config: The backbone's settings.
            cpu_offload: Keep shards in main memory, whatever the strategy does with the policy's.
        """
        backbone = build_backbone(config, init_from=self.init_from)
        if self.device_mesh is not None:
            backbone.shard(
                self.device_mesh["data_parallel"], **sharding_policies(self.trainer, cpu_offload=cpu_offload)
            )
        return backbone

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum of `values` over all ranks."""
        total: Tensor = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        return total

    def on_any_rank(self, true: bool) -> bool:
        """Whether it is true on one rank at least."""
        decided: bool = self.trainer.strategy.reduce_boolean_decision(true, all=False)
        return decided

    @contextmanager
    def rollout_mode(self) -> Generator[None]:
        """The policy whole on every rank, in evaluation mode and without gradients.

        All ranks enter together. Entered within itself it changes nothing: many calls of `complete`, another number on
        each rank, may share one.
        """
        if self._in_rollout:
            yield
            return
        training = self.backbone.training
        self.backbone.eval()
        self._in_rollout = True
        try:
            with torch.no_grad(), unsharded(self.backbone), _cast_weights_once(self.device.type):
                yield
        finally:
            self._in_rollout = False
            self.backbone.train(training)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        step: int | None = None,
        attempt: int = 0,
        params: SamplingParams | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """Samples completions from the policy.

        Args:
            prompts: This rank's prompts.
            group_size: Completions a prompt.
            step: Names the randomness beside the seed; None takes the current optimiser step.
            attempt: How often these prompts were drawn before at this step.
            params: How to sample; None takes `sampling`.
            on_group: Told of each prompt whose completions have all ended, by an engine that takes this argument.
        """
        key = RolloutKey(seed=self._rollout_seed(), step=self.global_step if step is None else step, attempt=attempt)
        told: dict[str, OnGroup] = {} if on_group is None else {"on_group": on_group}
        with self.rollout_mode():
            groups = self.engine.generate(
                self.backbone, prompts, group_size=group_size, params=params or self.sampling, key=key, **told
            )
        # Evaluation during training is no part of the batch.
        if params is None and self._trainer is not None and self.trainer.training:
            self.meter.note_rollout(prompts, groups)
        return groups

    def complete_or_stop(self, prompts: Sequence[Prompt], **options: Any) -> list[list[Completion]]:
        """`complete`, which all ranks call together; where one of them loses the rollout engine, the run ends on all.

        Args:
            prompts: This rank's prompts.
            options: Further arguments of `complete`.

        Raises:
            RunStoppedError: If the engine is lost. In training a checkpoint is saved first.
        """
        if not may_be_lost(self.engine):
            return self.complete(prompts, **options)
        reason = ""
        groups: list[list[Completion]] = []
        try:
            groups = self.complete(prompts, **options)
        except EngineLostError as error:
            reason = str(error)
        end_if_lost(self.trainer, reason)
        return groups

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, str]]:  # noqa: ARG002
        """Answers each prompt once: id, question, truth and response, without the rows that only pad."""
        groups = self.complete_or_stop(batch.prompts, group_size=1, step=0)
        return [
            {
                "id": prompt.record.id,
                "question": prompt.record.question,
                "truth": prompt.record.truth,
                "response": self.processor.decode(group[0].token_ids),
            }
            for prompt, group in zip(batch.prompts, groups, strict=True)
            if not prompt.padding
        ]

    def _rollout_seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", "42")) if self.seed is None else self.seed


@contextmanager
def _cast_weights_once(device_type: str) -> Generator[None]:
    """Under mixed precision, keeps the half-precision copies of the weights for a whole rollout.

    Lightning switches autocast's cache off, since weights change within a training step. `CachedGenerator` has copies
    of its own, but for the head, which it would convert for every token, as `TransformersGenerator` would every weight.
    The copies are dropped before the weights can change.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    torch.clear_autocast_cache()
    try:
        with torch.autocast(device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()
