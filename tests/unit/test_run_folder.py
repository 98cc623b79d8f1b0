"""The lock of a run's folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

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


SETTINGS = {"config.yaml", "hparams.yaml"}


@pytest.mark.parametrize(
    ("files", "begun", "left"),
    [
        (set(), True, None),
        (set(), False, None),
        (SETTINGS, False, None),
        ({"config.yaml"}, False, None),
        (SETTINGS, True, SETTINGS),
        ({*SETTINGS, "events.out.tfevents.1"}, False, {*SETTINGS, "events.out.tfevents.1"}),
        ({*SETTINGS, "checkpoints/last.ckpt"}, False, {*SETTINGS, "checkpoints/last.ckpt"}),
        ({*SETTINGS, "rollouts/"}, False, {*SETTINGS, "rollouts/"}),
        ({"notes.txt"}, False, {"notes.txt"}),
    ],
)
def test_what_is_left_of_a_run(files: set[str], begun: bool, left: set[str] | None, tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()  # of another run
    folder = tmp_path / f"version_{run_folder.claim(tmp_path, 0)}"
    for name in files:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("")
    run_folder.release(begun=begun)
    found = {
        f"{path.relative_to(folder)}{'/' * path.is_dir()}"
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }
    assert (found if folder.exists() else None) == left
    assert (tmp_path / "version_0").is_dir()
