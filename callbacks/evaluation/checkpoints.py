"""Checkpoints that are kept by a benchmark's score: whether they will meet one, and one that came late."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def check_monitors(
    trainer: Trainer, module: LightningModule, *, names: Collection[str], every_n_steps: int | None
) -> None:
    """Refuses checkpoints by score whose saving would meet no score, or an old one.

    Args:
        trainer: Has the checkpoints.
        module: Tells how many optimiser steps a batch gives; one unless it has a method `steps_per_batch`.
        names: What there are scores of.
        every_n_steps: Optimiser steps between two evaluations.

    Raises:
        ValueError: If there is such a checkpoint.
    """
    for callback in _by_score(trainer):
        monitor, every = callback.monitor or "", callback._every_n_train_steps
        if monitor.split("/")[1].removesuffix("_stderr") not in names:
            raise ValueError(f"ModelCheckpoint monitors {monitor}, but evaluated are {', '.join(sorted(names))}")
        if every_n_steps is None or not every or every % every_n_steps:
            raise ValueError(
                f"ModelCheckpoint monitors {monitor} and saves every {every} steps, BenchmarkEvaluation evaluates "
                f"every {every_n_steps}: set every_n_train_steps and every_n_steps alike"
            )
        steps = int(getattr(module, "steps_per_batch", lambda: 1)())
        if every_n_steps % steps:
            raise ValueError(
                f"ModelCheckpoint monitors {monitor} and saves at multiples of {every} steps alone, but a batch gives "
                f"{steps} steps, so that evaluations every {every_n_steps} steps fall beside them: set every_n_steps "
                f"and every_n_train_steps to a multiple of {steps}"
            )


def save_by_score(trainer: Trainer, module: LightningModule, values: Mapping[str, float]) -> None:
    """Has checkpoints by score look at scores that came late: of a step at whose end they had no turn.

    Args:
        trainer: Is at that step.
        module: The policy.
        values: The scores.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for callback in _by_score(trainer):
        callback.on_train_batch_end(trainer, module, None, None, 0)


def _by_score(trainer: Trainer) -> Iterator[ModelCheckpoint]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (callback.monitor or "").startswith("eval/"):
            yield callback
