"""Ends a run in good order when it is told to go: a checkpoint at the next safe place, and one line on how to go on.

SIGTERM is what `kill`, `timeout`, containers and schedulers send. Lightning's own handler talks to the other ranks at
once, amid whatever they are reducing, and the one for SLURM saves there too. Here a handler only notes the signal, and
all ranks ask each other at places where they stand alike: before a batch, between two optimiser steps of a batch,
before a validation batch. What lies between two such places (an optimiser step, a rollout, a validation batch) must
fit the time that is left until SIGKILL; torchrun, told to go itself, leaves 30 seconds, `lit_vlaa.hosts` 180.

Schedulers signal every process of a job. A data loader's workers must outlive that, or the run dies with them before it
has saved: `datamodules.workers.worker_options` sees to it.

Without SLURM the checkpoint is `checkpoints/preempted.ckpt` in the log folder. On SLURM it is `hpc_ckpt_<n>.ckpt` in
`--trainer.default_root_dir`, where Lightning looks when the same job starts again, and the requeue signal (SIGUSR1)
requeues the job as by Lightning, though only at such a place. The exit code is 143, as of a process that SIGTERM
ended, so that no script takes the run for finished. A signal that comes after the last of these places lets the run
finish.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from lit_vlaa.checks import PreemptedExit

_EXIT_CODE = 128 + signal.SIGTERM


class Preemption(Callback):
    """Saves a checkpoint and ends the run on SIGTERM, and on SLURM's requeue signal.

    The module calls `on_step_boundary` where all ranks are between two optimiser steps of one batch.
    """

    def __init__(self) -> None:
        """Notes no signal before training begins: until then there is nothing to lose."""
        self._noted: set[int] = set()
        self._earlier: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begins to listen."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Begins to listen."""
        self._listen(trainer)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """A safe place."""
        self._stop_if_told(trainer)

    def on_step_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """A safe place."""
        self._stop_if_told(trainer)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """A safe place; the resumed run begins the validation anew."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Listens no longer."""
        self._be_deaf()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Listens no longer."""
        self._be_deaf()

    def _listen(self, trainer: Trainer) -> None:
        if self._earlier or threading.current_thread() is not threading.main_thread():
            return
        numbers = {signal.SIGTERM}
        if (slurm := _slurm(trainer)) is not None and slurm.requeue_signal is not None:
            numbers.add(slurm.requeue_signal)
        self._noted.clear()
        self._earlier = {number: signal.signal(number, self._note) for number in numbers}

    def _be_deaf(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._noted.add(number)

    def _stop_if_told(self, trainer: Trainer) -> None:
        told = self._noted
        decide = trainer.strategy.reduce_boolean_decision
        if not decide(bool(told), all=False):
            return
        slurm = _slurm(trainer)
        if slurm is not None and slurm.requeue_signal is not None and decide(slurm.requeue_signal in told, all=False):
            self._earlier[slurm.requeue_signal](slurm.requeue_signal, None)  # Lightning's: it saves and requeues
            raise PreemptedExit(_exit_code(trainer))
        if slurm is None:
            folder = trainer.log_dir or trainer.default_root_dir  # collective: every rank must ask
            path = Path(folder) / "checkpoints" / "preempted.ckpt"
        else:
            path = Path(_CheckpointConnector.hpc_save_path(trainer.default_root_dir))
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            sys.stderr.write(f"lit-vlaa: SIGTERM: stopped at step {trainer.global_step}; {_how_to_go_on(path)}\n")
        raise PreemptedExit(_exit_code(trainer))


def _slurm(trainer: Trainer) -> SLURMEnvironment | None:
    """The environment in which Lightning requeues jobs, if the run is in it."""
    environment = trainer._accelerator_connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) and environment.auto_requeue else None


def _exit_code(trainer: Trainer) -> int:
    environment = trainer._accelerator_connector.cluster_environment
    # Lightning's launcher kills the first process when one that it started ends in any other way.
    started = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
    return 0 if started else _EXIT_CODE


def _how_to_go_on(path: Path) -> str:
    words = sys.argv[1:]
    if words[:1] != ["fit"]:
        return f"go on with trainer.fit(..., ckpt_path={str(path)!r})"
    kept: list[str] = []
    earlier = False
    for word in words:
        if not (earlier or word.partition("=")[0] == "--ckpt_path"):
            kept.append(word)
        earlier = word == "--ckpt_path"
    return f"go on with: {shlex.join(['lit-vlaa', *kept, '--ckpt_path', str(path)])}"
