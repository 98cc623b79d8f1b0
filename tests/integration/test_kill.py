"""Two ranks that are killed at any moment and start again from their last checkpoint end where an undisturbed run does.

`LIT_VLAA_KILLS=20` kills twenty times in all (the default is 1, of SFT under DDP; GRPO under FSDP2 is killed in
`tests/distributed/test_hosts.py`), `LIT_VLAA_KILL_SEED` chooses other moments.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import MODULES, command, logged, started, version
from helpers.launch import free_port
from helpers.states import assert_equal
from lit_vlaa.checkpoints import WholeCheckpointIO, newest

# The checkpoints of the last two are files and a folder.
CASES = [("sft", "ddp"), ("grpo", "fsdp2"), ("grpo", "ddp"), ("sft", "fsdp2"), ("sft", "fsdp2_sharded")]
KILLS = int(os.environ.get("LIT_VLAA_KILLS", "1"))
SEED = int(os.environ.get("LIT_VLAA_KILL_SEED", "1"))
SHARE = [(*case, len(range(place, KILLS, len(CASES)))) for place, case in enumerate(CASES) if place < KILLS]
PATIENCE = 240.0
STEPS = {"sft": 24, "grpo": 12}
CALLBACKS = "--trainer.callbacks"


def words(kind: str, strategy: str, data: Path, root: Path, start: Path, *extra: str) -> list[str]:
    """A run that saves after every batch, and between two steps of a rollout."""
    options: dict[str, Any] = {
        "trainer__devices": 2,
        "trainer__strategy": strategy,
        "trainer__max_steps": STEPS[kind],
        "trainer__max_epochs": 5,
        "trainer__limit_val_batches": 0,
        "model__optim__lr": 2e-4,
        "model__init_from": start,
        "data__max_samples": 50 if kind == "sft" else 24,
        "data__batch_size": 8,
        **({} if kind == "sft" else {"model__train_batch_size": 4}),
    }
    saving = [
        f"{CALLBACKS}=lightning.pytorch.callbacks.ModelCheckpoint",
        f"{CALLBACKS}.filename=last",
        f"{CALLBACKS}.every_n_train_steps={1 if kind == 'sft' else 2}",
        f"{CALLBACKS}.enable_version_counter=false",
        f"{CALLBACKS}+=helpers.interruptions.SaveBetweenSteps",
        f"{CALLBACKS}.folder={root}",
        f"{CALLBACKS}+=helpers.interruptions.Begun",
        f"{CALLBACKS}.path={root / 'begun'}",
    ]
    return [*command("fit", kind, data, root, **options), *saving, *extra]


class Ranks:
    """Two processes that run one command."""

    def __init__(self, arguments: list[str], root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.begun = root / "begun"
        self.begun.unlink(missing_ok=True)
        port = free_port()
        self.logs = [root / f"rank{rank}.log" for rank in range(2)]
        self.processes = []
        for rank, path in enumerate(self.logs):
            self.processes.append(started(arguments, path, cwd=root, rank=rank, port=port))

    def wait(self, seconds: float, *, begun: bool = False) -> bool:
        """Waits for the end, or for the beginning of training; tells whether it came in time.

        Raises:
            AssertionError: If a rank failed.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            codes = [process.poll() for process in self.processes]
            if any(codes):
                time.sleep(1.0)  # for the other rank's last words
                self.kill()
                pytest.fail("\n".join(f"{path}\n{path.read_text(errors='replace')[-3000:]}" for path in self.logs))
            if codes == [0, 0] or (begun and self.begun.exists()):
                return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """Kills what still runs."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "strategy", "kills"), SHARE)
def test_killed_at_any_moment(
    kind: str, strategy: str, kills: int, dataset: Path, sft_checkpoint: Path, tmp_path: Path
) -> None:
    straight = tmp_path / "straight"
    ranks = Ranks(words(kind, strategy, dataset, straight, sft_checkpoint), straight)
    assert ranks.wait(PATIENCE, begun=True)
    began = time.monotonic()
    assert ranks.wait(PATIENCE)
    lasts = time.monotonic() - began
    expected, rows = final(straight, kind), logged(straight)
    assert expected["global_step"] == STEPS[kind]

    moments = random.Random(f"{SEED} {kind} {strategy}")
    left, trial = kills, 0
    while left:
        trial += 1
        root = tmp_path / f"killed-{trial}"
        arguments = words(kind, strategy, dataset, root, sft_checkpoint, "--ckpt_path=last")
        number, ended = -1, False
        while not ended:
            number += 1
            ranks = Ranks(arguments, root)
            assert ranks.wait(PATIENCE, begun=True)
            # A part of the whole, so that there is something left to kill.
            ended = ranks.wait(moments.uniform(0, lasts / min(kills + 1, 3)) if left else PATIENCE)
            ranks.kill()
            left -= not ended
        resumed = final(root, kind)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert_equal(expected[part], resumed[part])
        # The last blow may have come when all was done.
        if (version(root, number) / "metrics.csv").exists():
            own = logged(root, number)
            assert own == rows[-len(own) :]


def final(root: Path, kind: str) -> dict[str, Any]:
    """The last checkpoint below `root`."""
    path, passed_over = newest([root], MODULES[kind].rpartition(".")[2])
    assert path is not None
    assert not passed_over
    return WholeCheckpointIO().load_checkpoint(path)
