"""How a run ends itself before its time: a checkpoint, the last numbers, and a message on how to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from lightning.pytorch import Trainer

from lit_vlaa.checks import RunStoppedError


def stop_run(trainer: Trainer, reason: str, metrics: Mapping[str, float]) -> NoReturn:
    """Saves `checkpoints/stopped.ckpt` in the log folder and ends the run; every rank must call it.

    Args:
        trainer: The run's Trainer.
        reason: Why, and what to change, without a full stop.
        metrics: The step's numbers that Lightning has not written yet.

    Raises:
        RunStoppedError: Always.
    """
    folder = trainer.log_dir or trainer.default_root_dir  # collective: every rank must ask
    path = Path(folder) / "checkpoints" / "stopped.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    for logger in trainer.loggers:
        if metrics:
            logger.log_metrics(dict(metrics), step=trainer.global_step)
    raise RunStoppedError(f"{reason}. Go on with --ckpt_path {path}, or from an earlier checkpoint")
