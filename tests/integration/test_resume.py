"""A run that is interrupted and resumed ends bit by bit where the uninterrupted one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import checkpoint, command, lit, logged
from helpers.states import assert_equal

# 6 batches of 8 an epoch in SFT and 3 rollouts of 8 with two steps each in GRPO: the run passes the end of an epoch.
END = {"sft": 10, "grpo": 10}
MIDDLE = 4
EPOCH = 6
LOST = 5  # Where the machine goes away; the checkpoint before it is that of step 4.

SAVING = [
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.filename={step}",
    "--trainer.callbacks.every_n_train_steps=2",
    "--trainer.callbacks.save_top_k=-1",
]


class Runs:
    """Runs of one stage that differ in how they come to their end.

    The cosine schedule needs the length of the whole run, so an early end is brought about from outside, as by a job's
    time limit; a smaller `max_steps` would be another run with another schedule.
    """

    def __init__(self, stage: str, data: Path, root: Path, start: Path) -> None:
        self.stage, self.data, self.root, self.start = stage, data, root, start

    def run(self, name: str, *extra: str, **options: Any) -> Path:
        """Trains to `END` unless `extra` says otherwise; returns the folder with the logs."""
        flags = {
            "trainer__max_steps": END[self.stage],
            "trainer__max_epochs": 5,
            "trainer__val_check_interval": 3,
            "trainer__check_val_every_n_epoch": "null",
            "trainer__limit_val_batches": 1,
            "model__optim__lr": 2e-4,
            "model__optim__warmup_ratio": 0.2,
            "model__init_from": self.start,
            "data__max_samples": 50 if self.stage == "sft" else 24,
            "data__batch_size": 8,
            "data__eval_batch_size": 8,
            **({"model__train_batch_size": 4} if self.stage == "grpo" else {}),
            **options,
        }
        words = command("fit", self.stage, self.data, self.root / name, **flags)
        assert lit(*words, *SAVING, *extra) == 0
        return self.root / name

    def resume(self, name: str, stopped: Path, step: int, **options: Any) -> Path:
        """Goes on from a checkpoint of another run."""
        path = checkpoint(stopped, f"step={step}.ckpt")
        return self.run(name, ckpt_path=path, **options)


@pytest.fixture(scope="module", params=["sft", "grpo"])
def runs(
    request: pytest.FixtureRequest, dataset: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    return Runs(request.param, dataset, tmp_path_factory.mktemp(f"resume-{request.param}"), sft_checkpoint)


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Path:
    """The run without interruption."""
    return runs.run("straight")


def stop_at(step: int, *, error: bool = False) -> list[str]:
    flag = "--trainer.callbacks"
    return [f"{flag}+=helpers.commands.StopAt", f"{flag}.step={step}", f"{flag}.error={str(error).lower()}"]


def assert_same_end(straight: Path, resumed: Path, stage: str, after: int) -> None:
    """Weights, optimiser and schedule are equal, and so is all that was logged after step `after`."""
    one, other = (
        torch.load(checkpoint(root, f"step={END[stage]}.ckpt"), weights_only=True) for root in (straight, resumed)
    )
    assert one["global_step"] == other["global_step"] == END[stage]
    assert_equal(one["state_dict"], other["state_dict"])
    assert_equal(one["optimizer_states"], other["optimizer_states"])
    assert_equal(one["lr_schedulers"], other["lr_schedulers"])
    assert_equal(one["loops"], other["loops"])
    expected = [row for row in logged(straight) if row["step"] > after]
    assert expected
    assert logged(resumed) == expected


def test_training_moves_the_weights(runs: Runs, straight: Path) -> None:
    """Else equality would say little."""
    one, other = (
        torch.load(checkpoint(straight, f"step={step}.ckpt"), weights_only=True)["state_dict"]
        for step in (MIDDLE, END[runs.stage])
    )
    assert not torch.equal(one["backbone.model.lm_head.weight"], other["backbone.model.lm_head.weight"])


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_in_the_middle_of_an_epoch(runs: Runs, straight: Path, workers: int) -> None:
    stopped = runs.run(f"stopped-{workers}", *stop_at(MIDDLE), data__num_workers=workers)
    resumed = runs.resume(f"resumed-{workers}", stopped, MIDDLE, data__num_workers=workers)
    assert_same_end(straight, resumed, runs.stage, MIDDLE)


def test_resumed_at_the_end_of_an_epoch(runs: Runs, straight: Path) -> None:
    resumed = runs.resume("from-epoch", straight, EPOCH)
    assert_same_end(straight, resumed, runs.stage, EPOCH)
    again = runs.resume("from-epoch-again", resumed, EPOCH + 2)
    assert_same_end(straight, again, runs.stage, EPOCH + 2)


def test_resumed_after_a_crash(runs: Runs, straight: Path) -> None:
    with pytest.raises(RuntimeError, match="the machine went away"):
        runs.run("crashed", *stop_at(LOST, error=True))
    assert_same_end(straight, runs.resume("from-crash", runs.root / "crashed", MIDDLE), runs.stage, MIDDLE)


def test_extended_from_the_last_checkpoint_of_a_shorter_run(runs: Runs) -> None:
    """The configs save `last.ckpt` when training ends, which may be in the middle of an epoch."""
    last = "--trainer.callbacks"
    saving = [f"{last}+=lightning.pytorch.callbacks.ModelCheckpoint", f"{last}.filename=last"]
    saving += [f"{last}.save_on_train_epoch_end=true", f"{last}.enable_version_counter=false"]
    constant = {"model__optim__schedule": "constant", "model__optim__warmup_ratio": 0.0}
    straight = runs.run("constant", *saving, **constant)
    short = runs.run("short", *saving, **constant, trainer__max_steps=MIDDLE)
    resumed = runs.run("extended", *saving, **constant, ckpt_path=checkpoint(short, "last.ckpt"))
    assert_same_end(straight, resumed, runs.stage, MIDDLE)
