"""The end of a run on all ranks where one of them has lost its rollout engine."""

from __future__ import annotations

import logging

from lightning.pytorch import Trainer

from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.parallel import gather_objects
from lit_vlaa.stopping import stop_run

_log = logging.getLogger(__name__)


def end_if_lost(trainer: Trainer, reason: str) -> None:
    """Ends the run if some rank gives a reason; every rank must call it.

    Args:
        trainer: The run's Trainer.
        reason: Why this rank lost its engine; empty if it did not.

    Raises:
        RunStoppedError: If the engine is lost. In training a checkpoint is saved first.
    """
    if reason and trainer.world_size > 1:
        _log.error("%s", reason)  # the others may come here late, or not before they give up waiting
    reasons = [text for text in gather_objects(reason) if text]
    if reasons and trainer.state.fn == "fit":
        stop_run(trainer, reasons[0], {})
    if reasons:
        raise EngineLostError(reasons[0])
