"""What a data loader's worker processes do besides loading."""

from __future__ import annotations

import os
import signal
from types import FrameType


def outlive_sigterm(worker: int) -> None:  # noqa: ARG001  # PyTorch gives the worker's number
    """Makes a worker pass over its first SIGTERM, which schedulers send to all processes of a job.

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
