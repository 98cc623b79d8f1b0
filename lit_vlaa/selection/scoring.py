"""Likelihoods of a pool's responses under one model after the other, by Lightning's prediction loop on any devices.

Every rank holds the model whole. Rows are dealt to the ranks anew at each start, from what no process has written yet.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from datamodules.check.settings import MOST_CHARS
from datamodules.dataset import Encoder
from datamodules.sampler import StridedSampler
from datamodules.workers import worker_options
from lit_vlaa.perplexity import TextRow, TracePart
from lit_vlaa.perplexity_module import LikelihoodModule, Model, quiet
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.run_config import context_of
from lit_vlaa.selection.choice import Integers
from lit_vlaa.selection.rows import Pool
from lit_vlaa.selection.scores import ScoreFile, ScoreFolder
from lit_vlaa.types import Prompt, PromptBatch

_BROKEN, _LONG = "its image cannot be read", "it is longer than the model's context"


SIGTERM_EXIT = 143


class _Unusable(NamedTuple):
    """Why a row cannot be scored."""

    reason: str
    """The same for many rows."""
    message: str
    """Names the row."""


Batch = tuple[list[int], PromptBatch, list[tuple[int, _Unusable]]]
"""Numbers of the rows that can be scored, their prompts; numbers of the others, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How rows are read and dealt."""

    part: TracePart
    shard: tuple[int, int]
    """Which, from 1, of how many."""
    image_root: Path
    max_image_pixels: int
    prompt: PromptConfig
    batch_size: int
    workers: int
    skip_bad: bool
    """Whether rows that cannot be scored are left out; otherwise the first one stops the run."""
    devices: Any
    num_nodes: int


def left(pool: Pool, folder: ScoreFolder, settings: Settings) -> Integers:
    """Places in the pool of a shard's rows that are still to score."""
    at, of = settings.shard
    mine = np.arange(len(pool.rows)) % of == at - 1
    done = folder.read(pool.rows).done(again=() if settings.skip_bad else (_BROKEN, _LONG))
    return np.flatnonzero(mine & ~done).astype(np.int64)


def score(pool: Pool, models: Sequence[tuple[Model, ScoreFolder]], settings: Settings) -> None:
    """Scores what is still to score.

    Args:
        pool: The rows.
        models: What scores, and where to write; all with one accelerator and precision.
        settings: How rows are read and dealt.

    Raises:
        ValueError: If a row cannot be scored, or a model says nothing finite of it.
        KeyboardInterrupt: After Ctrl-C, and with `SIGTERM_EXIT` after SIGTERM.
    """
    first = models[0][0]
    with quiet():
        trainer = Trainer(
            accelerator=first.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            precision=first.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            inference_mode=False,
        )
        try:
            for model, folder in models:
                data = _Rows(pool, folder, settings)
                trainer.predict(_scorer(model, folder, settings), datamodule=data, return_predictions=False)
                # What the first process reads next, the others have written.
                trainer.strategy.barrier("scored")
        except BaseException as error:
            if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
                trainer.strategy.launcher.kill(signal.SIGKILL)  # the other ranks would wait for this one
            if isinstance(error, SystemExit):  # Lightning makes it of Ctrl-C
                raise KeyboardInterrupt(error.code) from error
            raise


def _scorer(model: Model, folder: ScoreFolder, settings: Settings) -> _Scorer:
    """Loads the processor; what cannot be found is said of this command's flag."""
    try:
        return _Scorer(model, folder, settings)
    except ValueError as error:
        own = f"--model.backbone.path {model.backbone.path}"
        if model.init_from is None and str(error).startswith(own):
            raise ValueError(f"--models {folder.model}{str(error).removeprefix(own)}") from error
        raise


class _Encoded(Dataset[tuple[int, Prompt | _Unusable | None]]):
    """Rows with their prompts, or with why they have none; places past the last row hold nothing."""

    def __init__(self, pool: Pool, places: Integers, encoder: Encoder, length: int, context: int | None) -> None:
        self.pool, self.places, self.encoder, self.length, self.context = pool, places, encoder, length, context

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Prompt | _Unusable | None]:
        if index >= len(self.places):
            return 0, None
        place = self.places[index]
        row = int(self.pool.rows[place])
        record = self.pool.table[int(self.pool.places[place])]
        remedy = "shorten the row, or leave such rows out with --data.on_bad_record skip"
        if (chars := len(record.question) + len(record.response or "")) > MOST_CHARS:
            return row, _Unusable(_LONG, f"{record.origin}: {chars} characters, {_LONG}; {remedy}")
        try:
            prompt = self.encoder(record)
        except ValueError as error:
            return row, _Unusable(_BROKEN, str(error))
        tokens = prompt.input_ids.numel() + len(self.encoder.processor.encode_response(record.response or ""))
        if self.context is not None and tokens > self.context:
            return row, _Unusable(_LONG, f"{record.origin}: {tokens} tokens, {_LONG} of {self.context}; {remedy}")
        return row, prompt


def _collate(rows: Sequence[tuple[int, Prompt | _Unusable | None]]) -> Batch:
    prompts = [(row, prompt) for row, prompt in rows if isinstance(prompt, Prompt)]
    failed = [(row, why) for row, why in rows if isinstance(why, _Unusable)]
    return [row for row, _ in prompts], PromptBatch(tuple(prompt for _, prompt in prompts)), failed


class _Rows(LightningDataModule):
    """A shard's rows that no process has scored yet, dealt to the ranks in turn."""

    def __init__(self, pool: Pool, folder: ScoreFolder, settings: Settings) -> None:
        super().__init__()
        self.pool, self.folder, self.settings = pool, folder, settings
        self.pending: Integers

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """The first rank's view of what is left holds for all, since others may write already."""
        trainer: Any = self.trainer
        pending = left(self.pool, self.folder, self.settings) if trainer.is_global_zero else None
        self.pending = trainer.strategy.broadcast(pending)

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's rows."""
        trainer: Any = self.trainer
        ranks, settings = trainer.world_size, self.settings
        even = -(-len(self.pending) // ranks) * ranks
        encoder = Encoder(
            image_root=settings.image_root,
            max_image_pixels=settings.max_image_pixels,
            prompt=settings.prompt,
            processor=trainer.lightning_module.processor,
        )
        context = context_of(trainer.lightning_module.settings.backbone)
        return DataLoader(
            _Encoded(self.pool, self.pending, encoder, even, context),
            sampler=StridedSampler(even, rank=trainer.global_rank, world_size=ranks),
            batch_size=settings.batch_size,
            collate_fn=_collate,
            **worker_options(settings.workers),
        )


class _Scorer(LikelihoodModule):
    """Writes the likelihood of each row's response as soon as its batch is done."""

    def __init__(self, model: Model, folder: ScoreFolder, settings: Settings) -> None:
        super().__init__(model)
        self.folder, self.how = folder, settings
        self._file: ScoreFile
        self._bar: Any

    def on_predict_start(self) -> None:
        """Opens this rank's file."""
        at, of = self.how.shard
        self._file = self.folder.open(f"{at}-of-{of}-rank{self.global_rank}")
        loader: Any = self.trainer.predict_dataloaders
        hidden = None if self.trainer.is_global_zero else True
        self._bar = tqdm(total=len(loader.sampler), desc=f"{self.folder.model}"[-40:], unit="row", disable=hidden)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[int]:  # noqa: ARG002
        """Scores a batch; gives the rows that went through the model.

        Raises:
            ValueError: If a row cannot be scored and none may be left out, or its likelihood is not finite.
            SystemExit: If SIGTERM came meanwhile.
        """
        rows, prompts, failed = batch
        if failed and not self.how.skip_bad:
            raise ValueError(failed[0][1].message)
        texts = [TextRow(prompt, prompt.record.response or "") for prompt in prompts.prompts]
        lines: list[Mapping[str, Any]] = [{"row": row, "unscored": why.reason} for row, why in failed]
        for row, one in zip(rows, self.likelihoods(texts, self.how.part), strict=True):
            if not one.tokens:
                lines.append({"row": row, "unscored": f"it has no token of the {self.how.part}"})
            elif not np.isfinite(one.nll):
                raise ValueError(
                    f"--models {self.folder.model} gives row {row} a likelihood that is not finite; is it a trained "
                    "model? If so, try --trainer.precision 32-true"
                )
            else:
                lines.append({"row": row, "nll": one.nll, "tokens": one.tokens})
        self._file.append(lines)
        self._bar.update(len(lines))
        if self.trainer.received_sigterm:
            raise SystemExit(SIGTERM_EXIT)
        return rows

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """Closes the file, also after an error."""
        if hasattr(self, "_bar"):
            self._file.__exit__()
            self._bar.close()
