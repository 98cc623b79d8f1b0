"""Tiny trainings that stop half-way and go on under another strategy, on another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from datamodules.sampler import EpochSampler, ResumableLoader
from helpers.modules import BATCH, InMemoryData, make_module, quiet_trainer, training_samples

STRATEGIES = {"auto": 1, "ddp": 2, "fsdp2": 2, "fsdp2_sharded": 2}
"""Strategies with their numbers of ranks."""

HALF = {"sft": 2, "grpo": 6}
"""Optimiser steps at which a run is left: between two batches of SFT, amid the second rollout of GRPO."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "sft": {"optim": {"eps": 1e-3}},
    "grpo": {"optim": {"eps": 1e-3}, "num_iterations": 2, "advantage": {"scale": "batch"}},
}


class PlacedData(InMemoryData):
    """The same rows in the same order, by a loader that keeps its place; those of SFT dealt by costs of their own."""

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        assert trainer is not None
        rows: Any = training_samples()
        sampler = EpochSampler(
            len(rows),
            batch_size=BATCH,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            seed=0,
            shuffle=False,
            # Of the first batch 1, 6, 4 and 2: two ranks get rows 0 and 1, and rows 2 and 3.
            costs=[1 + 5 * place % 7 for place in range(len(rows))] if self.split == "sft" else None,
        )
        return ResumableLoader(rows, sampler=sampler, collate_fn=self.collate)


class SaveHalfWay(Callback):
    """Saves once, as soon as a number of optimiser steps is taken."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_step_boundary(self, trainer: Trainer, _: LightningModule) -> None:
        self._save(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.strategy.barrier()
            trainer.save_checkpoint(self.path)


def half(folder: str | Path, kind: str, strategy: str) -> Path:
    """The checkpoint that a run under `strategy` is left with."""
    return Path(folder, f"{kind}-{strategy}-half.ckpt")


def end(folder: str | Path, kind: str, strategy: str, source: str = "") -> Path:
    """The checkpoint at the end of a whole run, or of one that went on from `source`'s."""
    return Path(folder, f"{kind}-{source or 'whole'}-{strategy}.ckpt")


def run(folder: str, kind: str, strategy: str, source: str = "") -> None:
    """One run over the rows, from the beginning or from the checkpoint that `source` was left with."""
    seed_everything(1, verbose=False)
    torch.set_num_threads(1)
    callbacks: list[Callback] = [] if source else [SaveHalfWay(HALF[kind], half(folder, kind, strategy))]
    trainer = quiet_trainer(strategy=strategy, devices=STRATEGIES[strategy], callbacks=callbacks)
    module = make_module(kind, **_OPTIONS[kind])
    trainer.fit(module, PlacedData(kind), ckpt_path=half(folder, kind, source) if source else None)
    trainer.save_checkpoint(end(folder, kind, strategy, source))


def run_all(folder: str, kinds: list[str], strategies: list[str]) -> None:
    """Whole runs under some strategies, then each from the checkpoint of every strategy whose run is there."""
    for kind in kinds:
        for strategy in strategies:
            run(folder, kind, strategy)
        for strategy in strategies:
            for source in STRATEGIES:
                if half(folder, kind, source).exists():
                    run(folder, kind, strategy, source)
