"""Two hosts, played by process trees of their own on this machine, that torchrun brings together over TCP.

One of them is killed while it trains; the other ends too, and the same lines go on to where an undisturbed run ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import command, lit
from helpers.launch import ROOT, _free_port
from helpers.states import assert_equal
from lit_vlaa.checkpoints import WholeCheckpointIO, newest

STEPS = 8
PATIENCE = 240.0
CALLBACKS = "--trainer.callbacks"
SCRIPT = ROOT / "configs" / "cluster" / "torchrun.sh"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    counts = ["--sft-count=16", "--grpo-count=64", "--test-count=8", "--progress=false"]
    assert lit("data", "synthetic", f"--output-dir={root}", *counts) == 0
    return root


def words(data: Path, root: Path) -> list[str]:
    """GRPO under FSDP2: four rollouts of two steps, with a checkpoint after each."""
    options: dict[str, Any] = {
        "trainer__strategy": "fsdp2",
        "trainer__max_steps": STEPS,
        "trainer__max_epochs": 5,
        "trainer__limit_val_batches": 0,
        "model__sampling__max_new_tokens": 16,
        "model__optim__lr": 1e-3,
    }
    saving = [
        f"{CALLBACKS}=lightning.pytorch.callbacks.ModelCheckpoint",
        f"{CALLBACKS}.filename=last",
        f"{CALLBACKS}.every_n_train_steps=2",
        f"{CALLBACKS}.enable_version_counter=false",
    ]
    return [*command("fit", "grpo", data, root, **options), *saving]


class Host:
    """torchrun's agent and its worker, which has a session of its own."""

    def __init__(self, number: int, port: int, arguments: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"host{number}-{time.monotonic_ns()}.log"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "NODES": "2",
            "DEVICES": "1",
            "HEAD": "127.0.0.2",
            "PORT": str(port),
            "NODE": str(number - 1),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(SCRIPT), *arguments],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def power_off(self) -> None:
        """Kills everything at once."""
        pids = [self.process.pid]
        for pid in pids:  # grows by each one's children
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def ended(*hosts: Host) -> None:
    """Waits for both hosts to end well."""
    end = time.monotonic() + PATIENCE
    while any(host.process.poll() is None for host in hosts):
        if time.monotonic() > end or any(host.process.poll() for host in hosts):
            for host in hosts:
                if host.process.poll() is None:
                    host.power_off()
            pytest.fail("\n".join(f"{host.log}\n{host.log.read_text(errors='replace')[-3000:]}" for host in hosts))
        time.sleep(0.05)
    assert [host.process.returncode for host in hosts] == [0, 0]


def last(root: Path) -> dict[str, Any]:
    path, _ = newest([root], "GRPOModule")
    assert path is not None
    return WholeCheckpointIO().load_checkpoint(path)


@pytest.mark.timeout(900)
def test_a_host_that_dies_and_comes_back(rows: Path, tmp_path: Path) -> None:
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    port = _free_port()
    ended(*(Host(number, port, words(rows, straight), straight) for number in (1, 2)))
    expected = last(straight)
    assert expected["global_step"] == STEPS

    first, second = (Host(number, port, words(rows, disturbed), disturbed) for number in (1, 2))
    end = time.monotonic() + PATIENCE
    while not list(disturbed.rglob("*.ckpt")):
        assert time.monotonic() < end, first.log.read_text()
        assert second.process.poll() is None, second.log.read_text()
        time.sleep(0.01)
    second.power_off()
    assert first.process.wait(PATIENCE) != 0
    assert last(disturbed)["global_step"] < STEPS
    port = _free_port()
    first, second = (Host(number, port, words(rows, disturbed), disturbed) for number in (1, 2))
    ended(first, second)
    resumed = last(disturbed)
    assert "checkpoints/last.ckpt" in first.log.read_text()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(expected[part], resumed[part])
