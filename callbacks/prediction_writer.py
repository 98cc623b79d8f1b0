"""Answers of `lit-vlaa predict` as one JSONL file, whatever the number of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning_utilities.core.rank_zero import rank_zero_info


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
        self._target = Path()
        self._rows: int = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts this rank's file."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Collective: every rank must ask.
        self._target = folder / "predictions.jsonl" if self.path is None else Path(self.path)
        part = self._part(trainer.global_rank)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("", encoding="utf-8")
        self._rows = 0

    def write_on_batch_end(  # noqa: PLR0917  # the base class fixes the arguments
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        prediction: Any,
        batch_indices: Sequence[int] | None,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int,  # noqa: ARG002
    ) -> None:
        """Appends one batch; row i of rank r is row `i * ranks + r` of the data."""
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as file:
            for row in prediction:
                place = self._rows * trainer.world_size + trainer.global_rank
                file.write(json.dumps([place, row], ensure_ascii=False) + "\n")
                self._rows += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Joins the ranks' files."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = [self._part(rank) for rank in range(trainer.world_size)]
        rows: list[tuple[int, Mapping[str, Any]]] = []
        for part in parts:
            with part.open(encoding="utf-8") as file:
                rows.extend(json.loads(line) for line in file)
        draft = self._target.with_name(self._target.name + ".part")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for _, row in sorted(rows, key=lambda pair: pair[0]))
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(self._target)
        for part in parts:
            part.unlink()
        rank_zero_info(f"{len(rows)} answers: {self._target}")

    def _part(self, rank: int) -> Path:
        return self._target.with_name(f".{self._target.name}.rank{rank}")
