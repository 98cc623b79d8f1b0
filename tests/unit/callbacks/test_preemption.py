from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import Preemption
from helpers.interruptions import SignalAt
from helpers.toy import ToyData, ToyModule
from lit_vlaa.checks import PreemptedExit


class Toy(ToyModule):
    """Takes three optimiser steps a batch, and says where it lies between them."""

    def training_step(self, batch: list[torch.Tensor]) -> None:
        for part in range(3):
            if part:
                for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, Preemption):
                        callback.on_step_boundary(self.trainer, self)
            super().training_step(batch)


class Places(Callback):
    """Notes what SIGTERM would do at some places, and whether it is held back."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Any, bool]] = {}

    def _note(self, place: str) -> None:
        self.seen[place] = signal.getsignal(signal.SIGTERM), signal.SIGTERM in signal.pthread_sigmask(0, [])

    def on_fit_start(self, *_: Any) -> None:
        self._note("setup")

    def on_train_batch_start(self, *_: Any) -> None:
        self._note("training")

    def on_fit_end(self, *_: Any) -> None:
        self._note("end")


def fit(root: Path, *callbacks: Callback, module: LightningModule | None = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "default_root_dir": root,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "inference_mode": False,
        "callbacks": list(callbacks),
    }
    trainer = Trainer(**settings | options)
    trainer.fit(module or Toy(), ToyData())
    return trainer


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever happens, the process listens as it did."""
    handler, mask = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, [])
    yield
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.pthread_sigmask(0, []) == mask


def steps(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.parametrize(("step", "place", "stopped"), [(4, "optimizer", 5), (5, "optimizer", 6), (3, "batch", 3)])
def test_stops_at_the_next_safe_place(
    step: int,
    place: Any,
    stopped: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])  # other tests leave a command of this program's there
    with pytest.raises(PreemptedExit) as caught:
        fit(tmp_path, Preemption(), SignalAt(step=step, place=place))
    assert caught.value.code == 143
    path = tmp_path / "checkpoints" / "preempted.ckpt"
    assert steps(path) == stopped
    expected = f"lit-vlaa: SIGTERM: stopped at step {stopped}; go on with trainer.fit(..., ckpt_path='{path}')\n"
    assert capsys.readouterr().err.endswith(expected)


def test_stops_before_a_validation(tmp_path: Path) -> None:
    with pytest.raises(PreemptedExit):
        fit(tmp_path, Preemption(), SignalAt(step=6, place="batch"), val_check_interval=2)
    checkpoint = torch.load(tmp_path / "checkpoints" / "preempted.ckpt", weights_only=True)
    # The third batch was not begun.
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2


def test_the_sanity_check_is_no_place_to_stop(tmp_path: Path) -> None:
    with pytest.raises(PreemptedExit):
        fit(tmp_path, Preemption(), SignalAt(step=0, place="validation"), num_sanity_val_steps=2)
    assert steps(tmp_path / "checkpoints" / "preempted.ckpt") == 0


def test_a_signal_in_the_last_step_lets_the_run_finish(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Preemption(), SignalAt(step=8), limit_val_batches=0)
    assert trainer.global_step == 9
    assert not list(tmp_path.iterdir())


def test_the_command_line_is_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["fit", "--model", "M", "--data.prompt.system_prompt=two words", "--ckpt_path", "old.ckpt"]
    monkeypatch.setattr(sys, "argv", ["lit-vlaa", *given, "--ckpt_path=older.ckpt", "--x=1"])
    with pytest.raises(PreemptedExit):
        fit(tmp_path, Preemption(), SignalAt(step=1))
    command = capsys.readouterr().err.splitlines()[-1].partition("; go on with: ")[2]
    path = str(tmp_path / "checkpoints" / "preempted.ckpt")
    assert shlex.split(command) == ["lit-vlaa", *given[:4], "--x=1", "--ckpt_path", path]


def test_listens_only_while_training(tmp_path: Path) -> None:
    places, listener = Places(), Preemption()
    fit(tmp_path, listener, places)
    assert places.seen["setup"] == places.seen["end"] == (signal.getsignal(signal.SIGTERM), False)
    assert places.seen["training"] == (listener._note, True)


def test_processes_of_the_run_live_on(tmp_path: Path) -> None:
    """A scheduler's signal to all processes of a job would otherwise take the data loaders' workers first."""

    class Worker(Callback):
        code = 0

        def on_train_batch_start(self, *_: Any) -> None:
            self.code = subprocess.run(["/bin/sh", "-c", "kill -TERM $$; exit 7"], check=False).returncode

    worker = Worker()
    fit(tmp_path, Preemption(), worker)
    assert worker.code == 7
    fit(tmp_path, worker)
    assert worker.code == -signal.SIGTERM


def test_a_run_outside_the_main_thread_is_left_alone(tmp_path: Path) -> None:
    trainers: list[Trainer] = []
    thread = threading.Thread(target=lambda: trainers.append(fit(tmp_path, Preemption())))
    thread.start()
    thread.join()
    assert trainers[0].global_step == 9


class TestSlurm:
    @pytest.fixture(autouse=True)
    def job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A job of SLURM's, with an `scontrol` that writes down what it is asked."""
        control = tmp_path / "bin" / "scontrol"
        control.parent.mkdir()
        control.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
        control.chmod(0o755)
        monkeypatch.setenv("PATH", str(control.parent), prepend=os.pathsep)
        settings = {"JOB_ID": "12345", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "run"}
        for name, value in settings.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        (tmp_path / "run").mkdir()
        return tmp_path

    def test_the_requeue_signal_saves_and_requeues_between_two_steps(self, job: Path) -> None:
        plugins = [SLURMEnvironment(auto_requeue=True)]
        with pytest.raises(PreemptedExit):
            fit(job / "run", Preemption(), SignalAt(step=4, number=int(signal.SIGUSR1)), plugins=plugins)
        assert (job / "asked").read_text() == "requeue 12345\n"
        assert steps(job / "run" / "hpc_ckpt_1.ckpt") == 5

    def test_the_requeued_job_goes_on_by_itself(self, job: Path) -> None:
        plugins = [SLURMEnvironment(auto_requeue=True)]
        with pytest.raises(PreemptedExit):
            fit(job / "run", Preemption(), SignalAt(step=5), plugins=plugins)
        assert not (job / "asked").exists()
        assert steps(job / "run" / "hpc_ckpt_1.ckpt") == 6
        with pytest.raises(PreemptedExit):
            fit(job / "run", Preemption(), SignalAt(step=6), plugins=plugins)
        assert steps(job / "run" / "hpc_ckpt_2.ckpt") == 7

    def test_without_requeuing_it_is_as_elsewhere(self, job: Path) -> None:
        plugins = [SLURMEnvironment(auto_requeue=False)]
        with pytest.raises(PreemptedExit):
            fit(job / "run", Preemption(), SignalAt(step=4), plugins=plugins)
        assert steps(job / "run" / "checkpoints" / "preempted.ckpt") == 5
