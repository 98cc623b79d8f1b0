"""What worker processes do besides their work."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType


def outlive_sigterm(worker: int) -> None:  # noqa: ARG001  # PyTorch gives the worker's number
    """Makes a worker pass over SIGUSR1 and its first SIGTERM, which schedulers send to all processes of a job.

    The trainer's process then decides when to end, and its workers end with it. A second SIGTERM ends the worker: so
    Python ends one that hangs. This is a `worker_init_fn`.
    """
    told = False

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal told
        if told:
            os._exit(128 + signal.SIGTERM)
        told = True

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM's; else a fork of the trainer would save and requeue


def end_with(parent: int) -> None:
    """Makes this process end within a second of its parent, whose death a process that waits for work may never notice.

    Args:
        parent: The parent's process number, taken by the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
