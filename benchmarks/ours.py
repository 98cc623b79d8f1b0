"""Our side: the modules as users run them, under Lightning, with a callback that times whole batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.eos import Plan, planned_uniforms
from benchmarks.lockstep import Pause, Run, Values
from benchmarks.models import Setup
from benchmarks.workload import reward
from lit_vlaa.algorithm import KLConfig
from lit_vlaa.backbone import Processor
from lit_vlaa.generation.protocol import Generator
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.optim import OptimConfig
from lit_vlaa.sft import SFTModule
from lit_vlaa.types import PromptBatch, RewardRequest, RewardResult, Sample, SamplingParams, SFTBatch

Settings = dict[str, Any]

PHASES = {
    "time/generate": "rollout",
    "time/reward_wait": "reward",
    "time/old_logprobs": "old log-probabilities",
}
"""Names that the module logs, and those of the tables; what is left of a step is the update, on either side."""


class Rows(LightningDataModule):
    """The same rows in every batch, encoded anew each time as a data loader would."""

    def __init__(self, rows: Sequence[Sample], batches: int, processor: Processor, *, responses: bool) -> None:
        """Serves `rows` `batches` times, with their responses for SFT."""
        super().__init__()
        self.rows = rows
        self.batch_size = len(rows)
        self.batches_per_epoch = batches
        self.processor = processor
        self.responses = responses
        self.seconds = 0.0

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches."""
        return DataLoader(range(self.batches_per_epoch), collate_fn=self._encode)  # type: ignore[arg-type]

    def _encode(self, _: Any) -> PromptBatch | SFTBatch:
        started = time.perf_counter()
        prompts = tuple(self.processor.encode(row) for row in self.rows)
        if not self.responses:
            self.seconds = time.perf_counter() - started
            return PromptBatch(prompts)
        return SFTBatch(prompts, tuple(self.processor.encode_response(row.record.response or "") for row in self.rows))


class Graded:
    """Rewards by place, which cost nothing."""

    def __init__(self, group_size: int) -> None:
        """For groups of `group_size`."""
        self.group_size = group_size

    def __call__(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One verdict a request."""
        return [RewardResult(reward(i, self.group_size), "digit", None, "ok") for i in range(len(requests))]

    def close(self) -> None:
        """Nothing to end."""


class Clock(Callback):
    """Says after each batch how long it took and what the module logged."""

    def __init__(self, setup: Setup, data: Rows, pause: Pause) -> None:
        """Calls `pause` after every batch."""
        super().__init__()
        self.setup_ = setup
        self.data = data
        self.pause = pause
        self.started = self.cpu_started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self.setup_.synchronize()
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
        """Stops it."""
        self.setup_.synchronize()
        seconds = time.perf_counter() - self.started + self.data.seconds
        cpu = time.process_time() - self.cpu_started + self.data.seconds
        latest = pl_module.latest
        values: Values = {"step": seconds, "cpu": cpu, "loss": latest.get("train/loss", latest.get("policy/loss"))}
        values |= {name: latest[key] for key, name in PHASES.items() if key in latest}
        if not self.data.responses:
            values["prepare"] = self.data.seconds
            values["update"] = seconds - self.data.seconds - sum(values.get(name, 0.0) for name in PHASES.values())
            values["lengths"] = [length for group in outputs["rollout"] for length in group.lengths]
        self.pause(values)


def optimizer(rate: float, eps: float) -> OptimConfig:
    """AdamW at a constant rate without decay."""
    return OptimConfig(lr=rate, schedule="constant", warmup_ratio=0.0, weight_decay=0.0, eps=eps)


def sft(setup: Setup, rows: Sequence[Sample], *, steps: int, rate: float, eps: float = 1e-8, settings: Settings) -> Run:
    """A training of `steps` SFT steps on `rows`; `settings` go to the module."""

    def run(pause: Pause) -> None:
        module = SFTModule(backbone=setup.config, optim=optimizer(rate, eps), **settings)
        _fit(setup, module, Rows(rows, steps, setup.fit_out(module).processor, responses=True), pause)

    return run


def grpo(
    setup: Setup,
    rows: Sequence[Sample],
    *,
    steps: int,
    rate: float,
    plan: Plan | None,
    eps: float = 1e-8,
    generator: Generator | None = None,
    kind: type[GRPOModule] = GRPOModule,
    settings: Settings,
) -> Run:
    """A training of `steps` rollouts and their updates.

    Args:
        setup: Model and device.
        rows: Prompts of every rollout.
        steps: Rollouts.
        rate: Learning rate.
        plan: Completion lengths; None where `generator` sees to them.
        eps: Adam's epsilon.
        generator: Engine; None takes the module's own.
        kind: The module's class.
        settings: Go to the module.
    """
    scale = setup.scale

    def run(pause: Pause) -> None:
        module = kind(
            backbone=setup.config,
            optim=optimizer(rate, eps),
            sampling=SamplingParams(max_new_tokens=scale.limit, temperature=scale.temperature),
            group_size=scale.group_size,
            train_batch_size=len(rows),
            kl=KLConfig(coefficient=0.0),
            generator=generator,
            **settings,
        )
        module.reward = Graded(scale.group_size)  # type: ignore[assignment]
        processor = setup.fit_out(module).processor
        with nullcontext() if plan is None else planned_uniforms(plan):
            _fit(setup, module, Rows(rows, steps, processor, responses=False), pause)

    return run


def _fit(setup: Setup, module: SFTModule | GRPOModule, data: Rows, pause: Pause) -> None:
    trainer = Trainer(
        accelerator=setup.device,
        devices=1,
        max_epochs=1,
        callbacks=[Clock(setup, data, pause)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    trainer.fit(module, data)
    if setup.device == "cuda":
        torch.cuda.empty_cache()
