"""Supervised fine-tuning on reasoning traces.

Departures from the paper (section on SFT): the loss is a mean over the answer tokens of the whole batch, not of each
micro-batch or rank; the learning rate, which the paper leaves open, is ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.generation.protocol import Generator
from lit_vlaa.losses import token_mean
from lit_vlaa.metrics import RankMeans
from lit_vlaa.micro_batches import RowSize, scores_by_row
from lit_vlaa.optim import OptimConfig
from lit_vlaa.policy import PolicyModule
from lit_vlaa.types import ModelInputs, SamplingParams, SFTBatch

_EVAL_STAGES = ("val", "test")


class SFTModule(PolicyModule):
    """Teaches the backbone to write the responses of the SFT split.

    One batch gives one optimiser step. Logged: `train/*` by step, `val/*` and `test/*` by evaluation.
    """

    def __init__(
        self,
        *,
        backbone: BackboneConfig = BackboneConfig(freeze=("vision",)),
        optim: OptimConfig = OptimConfig(lr=1e-5, min_lr=0.0),
        init_from: str | None = None,
        max_grad_norm: float = 1.0,
        batching: Literal["packed", "padded"] = "packed",
        max_tokens_per_micro_batch: int = 8192,
        max_skipped_steps: int = 10,
        sampling: SamplingParams = SamplingParams(max_new_tokens=800, temperature=0.0),
        generator: Generator | None = None,
        seed: int | None = None,
    ) -> None:
        """Keeps the settings; the model is built when the strategy is known.

        Args:
            backbone: The model and how to load it.
            optim: Optimiser and learning-rate schedule.
            init_from: Checkpoint of an earlier run whose weights to start from, a file or a sharded folder.
            max_grad_norm: Gradients are scaled down to this global norm; 0 for no clipping.
            batching: How rows go through the model together: one after the other without padding (`packed`), or padded
                to the longest.
            max_tokens_per_micro_batch: Tokens in one forward and backward pass on one device, padding included.
            max_skipped_steps: Optimiser steps in a row that are left out for a gradient that is not finite, before the
                run saves a checkpoint and stops.
            sampling: How `predict` writes answers.
            generator: Engine that `predict` writes answers with; null takes the cached one.
            seed: Seed of sampling; null takes `--seed_everything`.
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
        )
        for stage in _EVAL_STAGES:
            setattr(self, f"{stage}_nll", MeanMetric())
            setattr(self, f"{stage}_accuracy", MeanMetric())

    def training_step(self, batch: SFTBatch, batch_idx: int) -> None:  # noqa: ARG002
        """One optimiser step over this rank's share of a batch."""
        started = time.perf_counter()
        batch = _by_length(batch)
        sizes = _sizes(batch)
        counts = torch.tensor([sum(map(len, batch.responses)), _tokens(sizes)], dtype=torch.float64)
        targets, tokens = self.sum_over_ranks(counts.float()).tolist()
        means = RankMeans(("train/loss", "train/token_accuracy"))

        def loss_of(part: Sequence[int]) -> Tensor:
            scores = self.backbone(self._inputs(batch, part))
            means.add("train/loss", -scores.logprobs.sum(), scores.logprobs.numel())
            means.add("train/token_accuracy", scores.correct.sum(), scores.correct.numel())
            return token_mean(-scores.logprobs, tokens=targets)

        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        norm = self.take_step(sizes, loss_of)
        values = means.reduce(self.sum_over_ranks)
        seconds = time.perf_counter() - started
        self.log_train(
            {
                **values,
                "train/perplexity": float(torch.tensor(values["train/loss"]).exp()),
                "train/grad_norm": norm,
                "train/tokens_per_second": tokens / seconds,
                "time/step": seconds,
                "optim/lr": learning_rate,
            }
        )
        self.log("loss", values["train/loss"], prog_bar=True, logger=False, rank_zero_only=True)

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Loss and accuracy on held-out rows."""
        self._evaluate(batch, "val")

    def test_step(self, batch: SFTBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Loss and accuracy on test rows."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of all ranks."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of all ranks."""
        self._log_evaluation("test")

    def _evaluate(self, batch: SFTBatch, stage: str) -> None:
        if not len(batch):
            return
        nll, accuracy = self._metrics(stage)
        batch = _by_length(batch)
        sizes = _sizes(batch)
        parts = self.micro_batches(sizes)
        rows = scores_by_row(sizes, parts, lambda part: self.backbone(self._inputs(batch, part)))
        kept = [row for row, prompt in zip(rows, batch.prompts, strict=True) if not prompt.padding]
        if kept:
            nll.update(-torch.cat([row.logprobs for row in kept]))
            accuracy.update(torch.cat([row.correct for row in kept]).float())

    def _log_evaluation(self, stage: str) -> None:
        nll, accuracy = self._metrics(stage)
        if not self.on_any_rank(nll.update_called):
            return
        loss = nll.compute()
        values = {
            f"{stage}/loss": loss,
            f"{stage}/perplexity": loss.exp(),
            f"{stage}/token_accuracy": accuracy.compute(),
        }
        self.log_dict({**values, "step": float(self.global_step)})
        nll.reset()
        accuracy.reset()

    def _metrics(self, stage: str) -> tuple[Any, Any]:
        return getattr(self, f"{stage}_nll"), getattr(self, f"{stage}_accuracy")

    def _inputs(self, batch: SFTBatch, part: Sequence[int]) -> ModelInputs:
        return self.join([(batch.prompts[row], batch.responses[row]) for row in part])


def _sizes(batch: SFTBatch) -> list[RowSize]:
    pairs = zip(batch.prompts, batch.responses, strict=True)
    return [RowSize(prompt.input_ids.numel(), len(response), row) for row, (prompt, response) in enumerate(pairs)]


def _tokens(sizes: Sequence[RowSize]) -> int:
    return sum(size.prompt + size.completion for size in sizes)


def _by_length(batch: SFTBatch) -> SFTBatch:
    """Rows of like length beside each other, so that padded micro-batches hold little padding."""
    lengths = [_tokens([size]) for size in _sizes(batch)]
    order = sorted(range(len(batch)), key=lengths.__getitem__)
    return SFTBatch(tuple(batch.prompts[row] for row in order), tuple(batch.responses[row] for row in order))
