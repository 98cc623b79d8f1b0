"""What the command line watches of a run: that all ranks begin alike, whether it has begun, and its logs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_vlaa.parallel import gather_objects


class Progress(Callback):
    """Sees to it that all ranks begin alike, notes when they do, and ends a run whose logs cannot be written."""

    def __init__(self) -> None:
        self.started = False
        self.last: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Compares what the ranks go on from: each host looks for the last checkpoint in its own view of the folder.

        Raises:
            RuntimeError: If they differ.
        """
        paths = gather_objects(self.last)
        if other := [rank for rank, path in enumerate(paths) if path != paths[0]]:
            found = f"rank 0 found {paths[0]}, rank {other[0]} {paths[other[0]]}"
            raise RuntimeError(f"--ckpt_path last: {found}; start again, once all hosts see the same files")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Training begins."""
        self.started = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Validation begins."""
        self.started = True

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The training data comes after the batches that try out validation."""
        self.started = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Testing begins."""
        self.started = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """A place where a run can be saved."""
        _check_logs(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """The last one."""
        _check_logs(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Numbers of `validate` are all that it is run for."""
        if trainer.state.fn != "fit":
            _check_logs(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """As for `validate`."""
        _check_logs(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Prediction begins."""
        self.started = True


def _check_logs(trainer: Trainer) -> None:
    from lit_vlaa.run_logs import check_logs  # noqa: PLC0415  # imports TensorBoard's writer

    check_logs(trainer)
