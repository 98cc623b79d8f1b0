"""`python -m lit_vlaa` is `lit-vlaa`."""

from __future__ import annotations

import os
import signal
import sys

from lit_vlaa.checks import AGENT
from lit_vlaa.cli import main

_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of Linux."""


def end_with(agent: int) -> None:
    """Has the kernel kill this process when its parent dies: in a session of its own it would train on, unseen.

    Args:
        agent: The parent's number.
    """
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != agent:
        sys.exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    if AGENT in os.environ:
        end_with(int(os.environ.pop(AGENT)))  # not for what this one starts
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        sys.exit(record(main)())  # torchrun and `lit_vlaa.hosts` tell then what a process crashed of
    sys.exit(main())
