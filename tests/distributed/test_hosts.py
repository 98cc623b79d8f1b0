"""Two hosts, with nothing but TCP between them, under FSDP2 GRPO: each of them dies once and comes back.

The hosts are network namespaces; a host that dies falls silent, as its cable is out before its processes are killed.
Where namespaces cannot be made they are addresses of this machine, whose peers learn of their end at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import command, lit, lit_in_ranks
from helpers.hosts import Host, Network, namespaces, why_no_namespaces
from helpers.patience import Patience
from helpers.states import assert_equal
from lit_vlaa.checkpoints import WholeCheckpointIO, newest

STEPS = 8
PATIENCE = 240.0
CALLBACKS = "--trainer.callbacks"


@pytest.fixture(params=["namespaces", "loopback"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    why = why_no_namespaces()
    if request.param == "namespaces":
        if why:
            pytest.skip(why)
        with namespaces(2) as network:
            yield network
    else:
        if not why:
            pytest.skip("network namespaces can be made here, and show more")
        network = Network(2, None)
        yield network
        network.close()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    counts = ["--sft-count=16", "--grpo-count=64", "--test-count=8", "--progress=false"]
    assert lit("data", "synthetic", f"--output-dir={root}", *counts) == 0
    return root


def words(data: Path, root: Path, **more: Any) -> list[str]:
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
    return [*command("fit", "grpo", data, root, **options, **more), *saving]


def wait(done: Callable[[], bool], *hosts: Host) -> None:
    """Waits until something has happened."""
    patience = Patience(PATIENCE)
    while not done():
        if patience.lost(pid for host in hosts for pid in host.pids()) or any(host.process.poll() for host in hosts):
            pytest.fail("\n".join(f"{host.log}\n{host.said()[-3000:]}" for host in hosts))
        time.sleep(0.05)


def restarts(host: Host) -> list[str]:
    """What it said of each restart, but for the reason."""
    return re.findall(r"lit-vlaa: .* (restart .*?): ", host.said())


def saved(root: Path) -> list[Path]:
    """The checkpoints; folders of other names come and go, also while they are looked at."""
    return list(root.glob("version_*/checkpoints/*.ckpt"))


def last(root: Path) -> dict[str, Any]:
    path, _ = newest([root], "GRPOModule")
    assert path is not None
    return WholeCheckpointIO().load_checkpoint(path)


@pytest.mark.timeout(900)
def test_each_host_dies_and_comes_back(network: Network, rows: Path, tmp_path: Path) -> None:
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    lit_in_ranks(words(rows, straight, trainer__devices=2))  # one host of two processes
    expected = last(straight)
    assert expected["global_step"] == STEPS

    arguments = words(rows, disturbed)
    first, second = (Host(network, number, arguments, disturbed) for number in (1, 2))
    wait(lambda: bool(saved(disturbed)), first, second)
    second.power_off()
    (path,) = saved(disturbed)
    back = Host(network, 2, arguments, disturbed)
    wait(lambda: len(saved(disturbed)) > 1, first, back)
    assert restarts(first) == ["restart 1 of at most 3 after starting at the beginning"]

    first.power_off()  # all meet there
    assert last(disturbed)["global_step"] < STEPS
    head = Host(network, 1, arguments, disturbed)
    wait(lambda: head.process.poll() == back.process.poll() == 0, head, back)
    assert restarts(back) == [f"restart 1 of at most 3 after starting at {path}"]
    resumed = last(disturbed)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert_equal(expected[part], resumed[part])
