"""Which evaluations of a run are done, and which an interruption left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import Trainer


@dataclass(slots=True)
class Progress:
    """How far evaluation has come in a run; checkpoints hold it."""

    last: int = 0
    """Optimiser step at which part of the rows was evaluated last."""
    pending: bool = False
    """Whether that evaluation is still going on."""
    full: int | None = None
    """Step at which all rows were evaluated when training ended; None before."""

    def due(self, step: int, every: int | None) -> bool:
        """Whether a multiple of `every` lies after the last evaluation and not after `step`."""
        return every is not None and step // every > self.last // every


def after_training(trainer: Trainer, act: Callable[[], None]) -> None:
    """Has `act` called once when the training loop is left, also where Lightning skips it with all of its hooks.

    That is what it does with a resumed run that has nothing left to train. `on_fit_end` would come too late: by then
    the model has left its device. An exception within the loop also skips `act`.

    Args:
        trainer: About to train.
        act: Called while model, optimisers and loggers are as in training.
    """
    loop = trainer.fit_loop
    run = loop.run

    def run_and_act() -> None:
        loop.run = run  # type: ignore[method-assign]
        run()
        act()

    loop.run = run_and_act  # type: ignore[method-assign]
