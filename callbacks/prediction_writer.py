"""Answers of `lit-vlaa predict` as one JSONL file, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning_utilities.core.rank_zero import rank_zero_info

from callbacks.ranked_lines import RankedLines


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, one JSON object a row, to `predictions.jsonl` in the log folder.

    Each rank appends to a file of its own as it goes; at the end they become one file, in the order of the data.
    """

    def __init__(self, *, path: str | None = None) -> None:
        """Sets the file.

        Args:
            path: The file to write; null takes `predictions.jsonl` in the log folder.
        """
        super().__init__(write_interval="batch")
        self.path = path
        self._lines: RankedLines

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts this rank's file."""
        self._lines = RankedLines(trainer, self.path, "predictions.jsonl")

    def write_on_batch_end(  # noqa: PLR0917  # the base class fixes the arguments
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        prediction: Any,
        batch_indices: Sequence[int] | None,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int,
    ) -> None:
        """Appends one batch."""
        self._lines.add(prediction, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Joins the ranks' files."""
        rows = self._lines.finish(trainer)
        rank_zero_info(f"{rows} answers: {self._lines.target}")
