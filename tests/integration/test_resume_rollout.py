"""A GRPO run that is interrupted between two optimiser steps of one rollout ends bit by bit where a whole one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import checkpoint, command, lit, logged
from helpers.states import assert_equal
from lit_vlaa.generation import CachedGenerator

# 3 rollouts of 8 prompts an epoch, of 4 steps each: two passes over two halves. The run ends within the second epoch.
STEPS = 4
END = 16
CALLBACKS = "--trainer.callbacks"


class Runs:
    """Runs that differ in how they come to their end."""

    def __init__(self, data: Path, root: Path, start: Path) -> None:
        self.data, self.root, self.start = data, root, start

    def words(self, name: str, *extra: str, **options: Any) -> list[str]:
        flags = {
            "trainer__max_steps": END,
            "trainer__max_epochs": 5,
            "trainer__val_check_interval": 2,
            "trainer__check_val_every_n_epoch": "null",
            "trainer__limit_val_batches": 1,
            "model__optim__lr": 2e-4,
            "model__init_from": self.start,
            "model__num_iterations": 2,
            # In the reward, where the coefficient shows in the advantages, which a checkpoint must therefore hold.
            "model__kl": "{coefficient: 0.05, target: 0.001, horizon: 100, place: reward, estimator: k1}",
            "model__advantage__scale": "batch",
            "model__train_batch_size": 4,
            "data__max_samples": 24,
            "data__batch_size": 8,
            "data__eval_batch_size": 8,
            **options,
        }
        saving = [
            f"{CALLBACKS}=lightning.pytorch.callbacks.ModelCheckpoint",
            f"{CALLBACKS}.filename=last",
            f"{CALLBACKS}.save_on_train_epoch_end=true",
            f"{CALLBACKS}.enable_version_counter=false",
            f"{CALLBACKS}+=callbacks.RolloutLogger",
            f"{CALLBACKS}.every_n_rollouts=2",
        ]
        return [*command("fit", "grpo", self.data, self.root / name, **flags), *saving, *extra]

    def run(self, name: str, *extra: str, code: int = 0, **options: Any) -> Path:
        """Trains to `END` unless `extra` says otherwise; returns the folder with the logs."""
        assert lit(*self.words(name, *extra, **options)) == code
        return self.root / name


@pytest.fixture(scope="module")
def runs(dataset: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(dataset, tmp_path_factory.mktemp("resume-rollout"), sft_checkpoint)


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Path:
    """The run without interruption, which saves wherever it lies between two steps of a rollout."""
    folder = runs.root / "straight"
    return runs.run("straight", f"{CALLBACKS}+=helpers.interruptions.SaveBetweenSteps", f"{CALLBACKS}.folder={folder}")


def assert_same_end(straight: Path, resumed: Path, number: int = 0) -> None:
    """All that decides what a run would do next is equal; only the names of folders differ."""
    paths = checkpoint(straight, "last.ckpt"), checkpoint(resumed, "last.ckpt", number)
    one, other = (torch.load(path, weights_only=True) for path in paths)
    for ckpt in (one, other):
        ckpt["callbacks"] = {name: state for name, state in ckpt["callbacks"].items() if "ModelCheckpoint" not in name}
    assert one["global_step"] == END
    assert one["callbacks"]["RolloutLogger"]
    assert_equal(one, other)


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of the steps at which completions are drawn from now on."""
    steps: list[int] = []
    original = CachedGenerator.generate

    def generate(self: Any, backbone: Any, prompts: Any, **options: Any) -> Any:
        if options["group_size"] > 1:
            steps.append(options["key"].step)
        return original(self, backbone, prompts, **options)

    monkeypatch.setattr(CachedGenerator, "generate", generate)
    return steps


# Before the first step of the first rollout and of one after a validation, in the middle of the last one of an epoch,
# before the last step of the first one of the next epoch.
@pytest.mark.parametrize("step", [0, 8, 10, 15])
def test_resumed_between_two_steps_of_a_rollout(
    step: int, runs: Runs, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = drawn(monkeypatch)
    resumed = runs.run(f"from-{step}", ckpt_path=straight / f"between-{step}.ckpt")
    assert_same_end(straight, resumed)
    assert logged(resumed) == [row for row in logged(straight) if row["step"] > step]
    # The rollout that was left is not drawn again.
    begun = step - step % STEPS
    assert steps == list(range(begun + STEPS, END, STEPS))


def test_a_rollout_cut_short_by_max_steps_is_finished_by_a_longer_run(runs: Runs) -> None:
    constant: dict[str, Any] = {"model__optim__schedule": "constant"}
    whole = runs.run("whole", **constant)
    short = runs.run("short", **constant, trainer__max_steps=6)
    longer = runs.run("longer", **constant, ckpt_path=checkpoint(short, "last.ckpt"))
    one, other = (torch.load(checkpoint(root, "last.ckpt"), weights_only=True) for root in (whole, longer))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "kl_coefficient", "reference_scores"):
        assert_equal(one[part], other[part])
    # What was noted of the rollout that the first run left is noted once.
    assert one["callbacks"]["RolloutLogger"] == other["callbacks"]["RolloutLogger"]
    assert [row for row in logged(longer) if row["step"] > 8] == [row for row in logged(whole) if row["step"] > 8]


def test_the_checkpoint_is_small_and_holds_no_images(straight: Path) -> None:
    between, last = (
        torch.load(path, weights_only=True)
        for path in (straight / "between-10.ckpt", checkpoint(straight, "last.ckpt"))
    )
    assert last["unfinished_rollout"] is None
    rollout = between["unfinished_rollout"]
    assert len(rollout["ids"]) == 8
    tokens = int(rollout["lengths"].sum())
    tensors = sum(value.nbytes for value in rollout.values() if isinstance(value, torch.Tensor))
    # Four bytes for each token and its log-probability under sampler, old policy and reference; little besides.
    assert 4 * 4 * tokens <= tensors < 4 * 4 * tokens + 4096


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model__train_batch_size": 8}, "--model.train_batch_size 4, this run has 8"),
        ({"model__group_size": 2}, "--model.group_size 4, this run has 2"),
        ({"model__num_iterations": 3}, "--model.num_iterations 2, this run has 3"),
    ],
)
def test_another_cut_of_the_rollout_is_refused(
    options: dict[str, Any], expected: str, runs: Runs, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert lit(*runs.words("refused", ckpt_path=straight / "between-10.ckpt", **options)) == 2
    message = capsys.readouterr().err
    assert "in the midst of a rollout" in message
    assert expected in message


def test_a_run_of_another_module_is_refused(
    runs: Runs, sft_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lit(*runs.words("sft", ckpt_path=sft_checkpoint)) == 2
    assert "one of SFTModule; start this one from its weights with --model.init_from" in capsys.readouterr().err


def preempting(**options: Any) -> list[str]:
    flags = [f"{CALLBACKS}+=callbacks.Preemption", f"{CALLBACKS}+=helpers.interruptions.SignalAt"]
    return [*flags, *(f"{CALLBACKS}.{name}={value}" for name, value in options.items())]


# Within an optimiser step with others of the rollout left, within a rollout's last step, after a batch that a
# validation follows, within a validation, within one at the end of an epoch.
@pytest.mark.parametrize(
    ("step", "place", "stopped", "every"),
    [
        (5, "optimizer", 6, 2),
        (3, "optimizer", 4, 2),
        (8, "batch", 8, 2),
        (8, "validation", 8, 2),
        (12, "validation", 12, 3),
    ],
)
def test_preempted(
    step: int,
    place: str,
    stopped: int,
    every: int,
    runs: Runs,
    straight: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"preempted-{step}-{place}"
    options = {"trainer__limit_val_batches": 2, "trainer__val_check_interval": every} if place == "validation" else {}
    capsys.readouterr()
    root = runs.run(name, *preempting(step=step, place=place), code=143, **options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vlaa: ")]
    path = checkpoint(root, "preempted.ckpt")
    assert line.startswith(f"lit-vlaa: SIGTERM: stopped at step {stopped}; go on with: lit-vlaa fit --model ")
    assert line.endswith(f" --ckpt_path {path}")
    before = logged(root)
    assert lit(*runs.words(name, **options), "--ckpt_path=last") == 0
    expected = runs.run(f"{name}-straight", **options) if options else straight
    assert before + logged(root, 1) == logged(expected)
    assert_same_end(expected, root, 1)
