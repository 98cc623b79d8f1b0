"""Rollouts for people to read: image, question, completions and rewards in TensorBoard, and all of them as JSONL."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL.Image import Image

from lit_vlaa.types import Record, ScoredGroup

_IMAGE_SIDE = 256
_FRAME = 2
_GREY = 128
_LINE = 72
"""Characters of a completion's line; beside longer ones TensorBoard breaks the words at the heads of other columns."""
_MARKUP = str.maketrans({char: f"&#{ord(char)};" for char in "&<>\"'\\`*_[]()!#~|"})


class ImageSource(Protocol):
    """What this callback needs of a data module to show images; without it only text is logged."""

    def open_images(self, record: Record) -> tuple[Image, ...]:
        """The record's images."""


class RolloutLogger(Callback):
    """Shows a few prompts of every n-th rollout with their image, completions, rewards and advantages.

    Works with any module whose `training_step` returns `{"rollout": sequence of ScoredGroup}`. Only rank 0 logs, and
    shows its own share of the rollout.
    """

    def __init__(
        self, *, every_n_rollouts: int = 10, prompts: int = 2, completions: int = 4, file: bool = True
    ) -> None:
        """Sets how much is kept.

        Args:
            every_n_rollouts: Rollouts between two that are shown; the first is always shown.
            prompts: Prompts shown a time.
            completions: Completions shown a prompt.
            file: Also append what is shown to `rollouts.jsonl` in the log folder.

        Raises:
            ValueError: If a count is not positive.
        """
        for name, value in (("every_n_rollouts", every_n_rollouts), ("prompts", prompts), ("completions", completions)):
            if value < 1:
                raise ValueError(f"RolloutLogger: {name} must be at least 1, got {value}")
        self.every_n_rollouts = every_n_rollouts
        self.prompts = prompts
        self.completions = completions
        self.file = file
        self._seen = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Logs the rollout that this batch gave, when it is its turn."""
        if not isinstance(outputs, Mapping) or "rollout" not in outputs:
            return
        turn = self._seen % self.every_n_rollouts == 0
        self._seen += 1
        if not turn:
            return
        folder = trainer.log_dir  # Collective: every rank must ask.
        if not trainer.is_global_zero:
            return
        groups: Sequence[ScoredGroup] = outputs["rollout"][: self.prompts]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._show(logger, groups, getattr(trainer, "datamodule", None), trainer.global_step)
        if self.file and folder is not None:
            self._write(Path(folder) / "rollouts.jsonl", groups, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts were seen, so that a resumed run keeps the rhythm."""
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rhythm of the interrupted run."""
        self._seen = int(state_dict["seen"])

    def _show(self, logger: TensorBoardLogger, groups: Sequence[ScoredGroup], source: Any, step: int) -> None:
        for place, group in enumerate(groups):
            tag = f"rollouts/{place}"
            logger.experiment.add_text(tag, table(group, self.completions), step)
            if group.record.images and hasattr(source, "open_images"):
                shown = beside_each_other(source.open_images(group.record))
                logger.experiment.add_image(tag, shown, step, dataformats="HWC")

    def _write(self, path: Path, groups: Sequence[ScoredGroup], step: int) -> None:
        with path.open("a", encoding="utf-8") as file:
            for group in groups:
                row = {
                    "step": step,
                    "id": group.record.id,
                    "question": group.record.question,
                    "truth": group.record.truth,
                    "completions": [
                        {"text": text, "reward": result.value, "status": result.status, "advantage": advantage}
                        for text, result, advantage in zip(group.texts, group.results, group.advantages, strict=True)
                    ],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def table(group: ScoredGroup, completions: int) -> str:
    """Markdown with the question and a row a completion; the policy's text cannot break out of its cell."""
    record = group.record
    head = (
        f"**{_cell(record.kind)}** ({_cell(record.source)}) {_cell(record.question)} **truth: {_cell(record.truth)}**"
    )
    rows = [
        f"| {result.value:.2f} | {result.status} | {advantage:+.2f} | {length} | {_cell(text, _LINE)} |"
        for text, result, advantage, length in zip(
            group.texts, group.results, group.advantages, group.lengths, strict=True
        )
    ][:completions]
    columns = "| reward | status | advantage | tokens | completion |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, "", columns, *rows])


def beside_each_other(images: Sequence[Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`[height, width, 3]` picture of all images in a row, each reduced to at most 256 pixels a side and framed."""
    small = []
    for image in images:
        copy = image.convert("RGB")
        copy.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        edge = ((_FRAME, _FRAME), (_FRAME, _FRAME), (0, 0))  # a white image would run into the white page
        small.append(np.pad(np.asarray(copy), edge, constant_values=_GREY))
    height = max(picture.shape[0] for picture in small)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0)), constant_values=255) for p in small]
    return np.concatenate(padded, axis=1)


def _cell(text: str, width: int | None = None) -> str:
    lines = text.replace("\r", " ").split("\n")
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
    return "<br>".join(line.translate(_MARKUP) for line in lines)
