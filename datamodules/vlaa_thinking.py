"""The LightningDataModule for VLAA-Thinking and for any data in its schema.

Departure from the paper: validation rows may be held out of the training file; the paper validates on benchmarks alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL.Image import Image
from torch.utils.data import DataLoader

from datamodules.boxes import TruthBoxes, check_frames, warn_of_contradictions
from datamodules.collate import collate_prompts, collate_sft
from datamodules.dataset import Encoder, PromptDataset, SFTDataset, open_images
from datamodules.records import OnBadRecord, Split
from datamodules.sampler import EpochSampler, ResumableLoader, StridedSampler
from datamodules.shards import check_files
from datamodules.sources import SOURCE_NAMES, check_names
from datamodules.table import RecordTable
from datamodules.workers import worker_options
from lit_vlaa.prompts import PromptConfig
from lit_vlaa.protocols import ChatProcessor
from lit_vlaa.types import KINDS, Kind, Record

_LOG = logging.getLogger(__name__)

Part = Literal["train", "val", "test"]
_FLAGS: dict[Part, str] = {"train": "data_file", "val": "val_file", "test": "test_file"}
Rows = tuple[RecordTable, np.ndarray[tuple[int], np.dtype[np.int64]]]

_FRACTIONS = (
    "--data.prompt.box_space %s asks for other boxes than the fractions of the image that responses of the sft split "
    "hold as released; use normalized unless yours were converted"
)
_PARTS: dict[str | None, tuple[Part, ...]] = {
    None: ("train", "val", "test"),
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class VLAAThinkingDataModule(LightningDataModule):
    """Rows of VLAA-Thinking as batches for SFT or GRPO.

    Training, validation and test batches are `SFTBatch` for split sft and `PromptBatch` for split grpo; predict
    batches, which come from the test file, are always `PromptBatch`. At every training step the local batches of all
    ranks together are the global batch, equally many rows each (`datamodules.sampler` says which).
    """

    preflight = "datamodules.check.preflight:run"  # what `lit-vlaa doctor` has look at the rows

    def __init__(
        self,
        *,
        split: Split,
        data_file: str,
        image_root: str,
        val_file: str | None = None,
        val_count: int = 0,
        test_file: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 8,
        sources: list[str] | None = None,
        kinds: list[Kind] | None = None,
        max_samples: int | None = None,
        seed: int = 42,
        shuffle: bool = True,
        num_workers: int = 4,
        on_bad_record: OnBadRecord = "error",
        max_image_pixels: int = 64_000_000,
        prompt: PromptConfig = PromptConfig(),  # frozen; a default that `--help` can show
        truth_boxes: dict[str, TruthBoxes] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            split: `sft` for rows with responses to learn, `grpo` for rows with a ground truth to score against.
            data_file: Training rows: a JSON array or JSON Lines in any form of VLAA-Thinking, or a folder that
                `lit-vlaa data convert` made of one.
            image_root: Folder that the rows' image paths start from, but for images in shards; others are refused.
            val_file: Validation rows; null to hold rows out of the training file, see `val_count`.
            val_count: Rows held out of the training file by seed for validation when `val_file` is null; 0 for none.
            test_file: Rows for `test` and `predict`.
            batch_size: Samples in one optimiser step (sft) or prompts in one rollout (grpo), all ranks together; a
                multiple of the number of ranks. The last incomplete batch of an epoch is dropped.
            eval_batch_size: Rows in one evaluation batch on each rank.
            sources: Sources to keep, in every file; null for all.
            kinds: Verifier kinds to keep, in every file; null for all.
            max_samples: Training rows to keep, drawn by seed; a smaller number gives a subset of a larger one's rows.
                Null for all.
            seed: Decides the order of every epoch, the subset and the rows held out.
            shuffle: Whether each epoch of training has an order of its own.
            num_workers: Processes on each rank that prepare batches; 0 prepares them in the training process.
            on_bad_record: `error` stops at the first row that cannot be used, `skip` leaves such rows out and reports
                how many and why; for an image that proves broken only when it is decoded, `skip` takes the next row
                and says so.
            max_image_pixels: Images with more pixels are refused before they are decoded.
            prompt: What is said to the model around the question.
            truth_boxes: What the true boxes of a source are fractions of, by source: `plain` for the image, which is
                the default, `padded_square` for the image in the middle of a square as wide as its longer side. The
                text of responses stays as it is.
            cache_dir: Folder for the rows' Arrow copies; null for `.lit_vlaa_cache` beside each file, or the user's
                cache folder where that cannot be written to.

        Raises:
            ValueError: If an argument is out of range or names an unknown source or kind.
        """
        super().__init__()
        self.split: Split = split
        self.files: dict[Part, str | None] = {"train": data_file, "val": val_file, "test": test_file}
        self.image_root = Path(image_root).expanduser().resolve()
        self.val_count = 0 if val_file is not None else val_count
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.sources, self.kinds, self.max_samples = sources, kinds, max_samples
        self.seed, self.shuffle, self.num_workers = seed, shuffle, num_workers
        self.on_bad_record: OnBadRecord = on_bad_record
        self.max_image_pixels = max_image_pixels
        self.prompt = prompt
        self.truth_boxes = truth_boxes or {}
        self.cache_dir = cache_dir
        self._processor: ChatProcessor | None = None
        self._rows: dict[Part, Rows] = {}
        self._check_arguments(val_count)

    def attach_processor(self, processor: ChatProcessor) -> None:
        """Sets what encodes the rows, for use without a Trainer; otherwise the module's `processor` is taken."""
        self._processor = processor

    def prepare_data(self) -> None:
        """Writes the Arrow copy of every file that the command needs (one process on each node).

        Raises:
            BadRecord: At the first row that cannot be used, with `on_bad_record="error"`.
        """
        state = None if self.trainer is None else self.trainer.state.fn
        needed = set(_PARTS[getattr(state, "value", None)])
        if self.val_count and "val" in needed:
            needed.add("train")
        files = {_FLAGS[part]: file for part, file in self.files.items() if file is not None and part in needed}
        check_files(files, self.image_root)
        for file in files.values():
            table = RecordTable.prepare(file, **self._table_options())
            if table.skipped:
                reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(table.skipped.items()))
                _LOG.warning(
                    "%s: %d rows used, %d left out: %s", file, len(table), sum(table.skipped.values()), reasons
                )

    def setup(self, stage: str | None = None) -> None:
        """Opens the files that `stage` needs and chooses their rows.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or None for all that are named.

        Raises:
            FileNotFoundError: If `prepare_data` was not called before.
            ValueError: If no row remains, or too few for one training batch.
        """
        if self._processor is None and self.trainer is not None:
            self._processor = getattr(self.trainer.lightning_module, "processor", None)
        wanted = _PARTS[getattr(stage, "value", stage)]
        if "train" in wanted or ("val" in wanted and self.val_count):
            self._rows |= self._split_training_file()
        for part in wanted:
            file = self.files[part]
            if part != "train" and file is not None:
                table = RecordTable.open(file, **self._table_options())
                self._rows[part] = table, self._filtered(table, file)
        self._check_kinds()
        if self.split == "sft" and self.prompt.box_space != "normalized" and "iou" in self.kinds_in_use:
            _LOG.warning(_FRACTIONS, self.prompt.box_space)
        if "train" in wanted and not self.batches_per_epoch:
            count = len(self._rows["train"][1])
            raise ValueError(f"{count} training row(s) are fewer than batch_size={self.batch_size}; lower it")
        if self.split == "grpo" and getattr(stage, "value", stage) != "predict" and self._place()[0] == 0:
            used = [self._rows[part] for part in wanted if part in self._rows]
            warn_of_contradictions(used, self.truth_boxes, image_root=self.image_root, max_pixels=self.max_image_pixels)

    @property
    def kinds_in_use(self) -> dict[Kind, str]:
        """The kinds of the rows that were set up, each with the origin (`file:row`) of its first row."""
        found: dict[Kind, str] = {}
        for table, chosen in self._rows.values():
            names, first = np.unique(table.column("kind")[chosen], return_index=True)
            for name, place in zip(names.tolist(), first.tolist(), strict=True):
                found.setdefault(name, table[int(chosen[place])].origin)
        return found

    @property
    def batches_per_epoch(self) -> int:
        """Training batches in an epoch (the same on every rank), before `Trainer(limit_train_batches)`; after setup."""
        return len(self._chosen("train")[1]) // self.batch_size

    def open_images(self, record: Record) -> tuple[Image, ...]:
        """Opens a record's images as RGB.

        Raises:
            BadRecord: If one cannot be read; the message names file, row and image.
        """
        return open_images(record, image_root=self.image_root, max_pixels=self.max_image_pixels)

    def train_dataloader(self) -> ResumableLoader:
        """Returns this rank's training batches; goes on where a restored run stopped.

        Raises:
            ValueError: If the ranks cannot share `batch_size` evenly.
        """
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("overfit_batches would give every rank the same rows; use max_samples and more epochs")
        table, chosen = self._chosen("train")
        rank, world_size = self._place()
        sampler = EpochSampler(
            len(chosen),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            shuffle=self.shuffle,
            costs=table.text_bytes()[chosen] if self.split == "sft" else None,
        )
        if rank == 0:
            _LOG.info(
                "%d training rows: %d batches of %d an epoch, %d rows dropped at its end",
                len(chosen),
                sampler.batches,
                self.batch_size,
                len(chosen) % self.batch_size,
            )
        prompts = PromptDataset(table, chosen, self._encoder())
        dataset: Any = SFTDataset(prompts) if self.split == "sft" else prompts
        return ResumableLoader(
            dataset,
            sampler=sampler,
            collate_fn=collate_sft if self.split == "sft" else collate_prompts,
            # A rollout's images take gigabytes and its step minutes: one batch a worker ahead is plenty.
            prefetch_factor=1 if self.split == "grpo" and self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            **worker_options(self.num_workers),
        )

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Returns this rank's validation batches; an empty list when there is no validation data."""
        return self._eval_loader("val", sft=self.split == "sft") if "val" in self._rows else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns this rank's test batches."""
        return self._eval_loader("test", sft=self.split == "sft")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Returns this rank's rows of the test file as prompts."""
        return self._eval_loader("test", sft=False)

    def _eval_loader(self, part: Part, *, sft: bool) -> DataLoader[Any]:
        table, chosen = self._chosen(part)
        rank, world_size = self._place()
        even = -(-len(chosen) // world_size) * world_size
        prompts = PromptDataset(table, chosen, self._encoder(), length=even)
        dataset: Any = SFTDataset(prompts) if sft else prompts
        return DataLoader(
            dataset,
            sampler=StridedSampler(even, rank=rank, world_size=world_size),
            batch_size=self.eval_batch_size,
            collate_fn=collate_sft if sft else collate_prompts,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
            **worker_options(self.num_workers),
        )

    def _split_training_file(self) -> dict[Part, Rows]:
        file = str(self.files["train"])
        table = RecordTable.open(file, **self._table_options())
        kept = self._filtered(table, file)
        if self.val_count >= len(kept):
            raise ValueError(f"val_count={self.val_count} leaves none of the {len(kept)} rows of {file} for training")
        shuffled = np.random.default_rng(self.seed).permutation(kept)
        train = shuffled[self.val_count :][: self.max_samples]
        rows: dict[Part, Rows] = {"train": (table, np.sort(train))}
        if self.val_count:
            rows["val"] = table, np.sort(shuffled[: self.val_count])
        return rows

    def _filtered(self, table: RecordTable, file: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        keep = np.ones(len(table), dtype=bool)
        for name, allowed in (("source", self.sources), ("kind", self.kinds)):
            if allowed is not None:
                keep &= np.isin(table.column(name), allowed)
        if not keep.any():
            raise ValueError(
                f"sources={self.sources} and kinds={self.kinds} leave none of the {len(table)} rows of {file}"
            )
        return np.flatnonzero(keep).astype(np.int64)

    def _chosen(self, part: Part) -> Rows:
        if part not in self._rows:
            flag = "val_file or --data.val_count" if part == "val" else _FLAGS[part]
            raise ValueError(f"no {part} rows: give --data.{flag}; without a Trainer call setup() first")
        return self._rows[part]

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _encoder(self) -> Encoder:
        if self._processor is None:
            raise ValueError("no processor: call attach_processor(), or train a module that has a `processor`")
        return Encoder(
            image_root=self.image_root,
            max_image_pixels=self.max_image_pixels,
            prompt=self.prompt,
            processor=self._processor,
            replace_unreadable=self.on_bad_record == "skip",
            truth_boxes=self.truth_boxes,
        )

    def _table_options(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "image_root": self.image_root,
            "on_bad_record": self.on_bad_record,
            "cache_dir": self.cache_dir,
        }

    def _check_arguments(self, val_count: int) -> None:
        positive = ("batch_size", "eval_batch_size", "max_image_pixels")
        for name in (*positive, *(("max_samples",) if self.max_samples is not None else ())):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if val_count < 0 or self.num_workers < 0:
            raise ValueError(f"val_count and num_workers must not be negative, got {val_count} and {self.num_workers}")
        if self.files["val"] is not None and val_count:
            raise ValueError("give either val_file or val_count, not both")
        check_names("sources", self.sources or (), SOURCE_NAMES)
        check_frames(self.truth_boxes)

    def _check_kinds(self) -> None:
        """Looks for names that neither are known nor occur in the rows, now that these are."""
        kinds = {*KINDS, *self.kinds_in_use}
        check_names("kinds", self.kinds or (), kinds)
        check_names("prompt.instructions", self.prompt.instructions, SOURCE_NAMES | kinds)
