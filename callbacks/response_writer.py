"""Responses of an evaluation with their verdicts as one JSONL file, for `lit-vlaa study traces` and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from callbacks.ranked_lines import RankedLines


class ResponseWriter(Callback):
    """Writes what `lit-vlaa test` or `validate` of the GRPO module judged, one JSON object a row.

    Keys are the fields of `lit_vlaa.study.responses.ScoredResponse`: text, reward, status, truth, tokens and more. Rows
    are in the order of the data, whatever the number of ranks; those that only pad are left out. Validation during
    `fit` writes nothing. Works with any module whose evaluation steps return `{"responses": ...}`, a `ScoredResponse`
    or None for each row of the batch.
    """

    def __init__(self, *, path: str | None = None) -> None:
        """Sets the file.

        Args:
            path: The file to write; null takes `responses.jsonl` in the log folder.
        """
        self.path = path
        self._lines: RankedLines | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Starts this rank's file."""
        self._lines = RankedLines(trainer, self.path, "responses.jsonl")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts this rank's file, unless validation is a part of training."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, pl_module)

    def on_test_batch_end(  # noqa: PLR0917  # Lightning fixes the arguments
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Appends one batch.

        Raises:
            ValueError: If the module's steps hand out no responses.
        """
        if self._lines is None:
            return
        if not isinstance(outputs, Mapping) or "responses" not in outputs:
            raise ValueError(
                f"callbacks.ResponseWriter: {type(pl_module).__name__} hands out no responses; use it with "
                "lit_vlaa.grpo.GRPOModule, or have its evaluation steps return {'responses': ...}"
            )
        rows = outputs["responses"]
        self._lines.add((None if row is None else asdict(row) for row in rows), dataloader_idx)

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Joins the ranks' files."""
        if self._lines is not None:
            rows = self._lines.finish(trainer)
            rank_zero_info(f"{rows} responses: {self._lines.target}")
            self._lines = None

    on_validation_end = on_test_end
