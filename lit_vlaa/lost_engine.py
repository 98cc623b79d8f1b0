"""The end of a run on all ranks where one of them has lost its rollout engine."""

from __future__ import annotations

import logging
from itertools import count
from typing import Any

from lightning.pytorch import Trainer
from torch import distributed

from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.parallel import gather_objects
from lit_vlaa.stopping import stop_run

_log = logging.getLogger(__name__)
_notices = count()


class Notice:
    """Word between ranks that work apart that one of them has lost its engine; nobody waits for anybody.

    Every rank must make one at the same point. It is for that one stretch of work.
    """

    def __init__(self) -> None:
        self._key = f"lit_vlaa/engine_lost/{next(_notices)}"
        together = distributed.is_available() and distributed.is_initialized()
        self._store: Any = None
        if together:
            from torch.distributed.distributed_c10d import _get_default_store  # noqa: PLC0415 - not in every build

            self._store = _get_default_store()

    def give(self) -> None:
        """Says that this rank's engine is lost."""
        if self._store is not None:
            self._store.set(self._key, "")

    def given(self) -> bool:
        """Whether some rank's engine is lost; asks the store where the ranks met, which takes less than 1 ms."""
        return self._store is not None and bool(self._store.check([self._key]))


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
