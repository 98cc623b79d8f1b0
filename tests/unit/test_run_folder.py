"""The lock of a run's folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from lit_vlaa import run_folder


def test_what_a_run_forked_does_not_keep_its_lock(tmp_path: Path) -> None:
    """Such as a data loader's worker, which outlives a killed run by seconds."""
    reading, writing = os.pipe()
    run = os.fork()
    if run == 0:
        run_folder.claim(tmp_path, 0)
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())  # by itself, as it has let the lock go when it comes here
        time.sleep(600)
    worker = int(os.read(reading, 20))
    checkpoint = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    try:
        assert run_folder.going_on(checkpoint) == tmp_path / "version_0"
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        assert run_folder.going_on(checkpoint) is None
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading)
        os.close(writing)
