"""What happens to a run from outside, at a known place: signals, and checkpoints between two steps of a rollout."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import Preemption


class SignalAt(Callback):
    """Sends a signal to this process, once.

    Args:
        step: Optimiser steps taken before.
        place: Within the next optimiser step, at the end of a batch, or of a validation batch.
        number: The signal; SIGTERM by default.
        rank: The rank that gets it.
        group: Send it to all processes of this one's group.
    """

    def __init__(
        self,
        *,
        step: int,
        place: Literal["optimizer", "batch", "validation"] = "optimizer",
        number: int = int(signal.SIGTERM),
        rank: int = 0,
        group: bool = False,
    ) -> None:
        self.step, self.place, self.number, self.rank, self.group = step, place, number, rank, group
        self.sent = False

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._send(trainer, "optimizer")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._send(trainer, "batch")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._send(trainer, "validation")

    def _send(self, trainer: Trainer, place: str) -> None:
        if (place, trainer.global_step, trainer.global_rank) != (self.place, self.step, self.rank) or self.sent:
            return
        self.sent = True
        if self.group:
            os.killpg(os.getpgid(0), self.number)
        else:
            os.kill(os.getpid(), self.number)


class HeldUp(Callback):
    """Where a file is there, renames it to `.held` after the first batch and waits for a signal, or until it is gone.

    Args:
        path: The file.
        run: Name of the folder of the run that is held up; others are not.
    """

    def __init__(self, *, path: str, run: str) -> None:
        self.path, self.run = Path(path), run

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if Path(trainer.default_root_dir).name != self.run or not self.path.exists():
            return
        (preemption,) = [one for one in trainer.callbacks if isinstance(one, Preemption)]  # type: ignore[attr-defined]
        held = self.path.replace(self.path.with_suffix(".held"))
        while held.exists() and not preemption._noted:
            time.sleep(0.02)


class SaveBetweenSteps(Callback):
    """Saves `between-<step>.ckpt` wherever the run lies between two optimiser steps of one rollout.

    Args:
        folder: Where to.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_step_boundary(self, trainer: Trainer, _: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"between-{trainer.global_step}.ckpt")


class Begun(Callback):
    """Makes a file when training begins.

    Args:
        path: The file.
    """

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)

    def on_train_start(self, trainer: Trainer, _: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.touch()
