"""Guards in real runs: what they say, log, stop and keep."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import TrainingGuards
from helpers.modules import FixedReward, InMemoryData, fit, make_module, quiet_trainer
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.training_guards import (
    EntropyCollapse,
    FlatGroups,
    KLBlowUp,
    LossSpike,
    NotFinite,
    RewardCollapse,
    Truncation,
)
from lit_vlaa.types import RewardRequest, RewardResult

NONE: dict[str, None] = dict.fromkeys(
    (
        "not_finite",
        "loss_spike",
        "reward_collapse",
        "flat_groups",
        "entropy_collapse",
        "kl_blow_up",
        "truncation",
    )
)


class Falling(FixedReward):
    """Halves at random, less with every rollout; all alike with `flat`."""

    def __init__(self, *, flat: bool = False) -> None:
        self.flat = flat
        self.calls = 0

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        self.calls += 1
        return [
            RewardResult(0.5 if self.flat else (1.0 if index % 2 else 0.5) / 4**self.calls, "digit", None, "ok")
            for index, _ in enumerate(requests)
        ]


@contextmanager
def guards_said() -> Iterator[list[str]]:
    """Collects the warnings that come from guards."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said.extend(str(entry.message) for entry in caught if "Likely" in str(entry.message))


def grpo(reward: FixedReward, **options: Any) -> GRPOModule:
    module = make_module("grpo", **options)
    assert isinstance(module, GRPOModule)
    module.reward = reward  # type: ignore[assignment]
    return module


def only(**guards: Any) -> TrainingGuards:
    """No guards but these."""
    return TrainingGuards(**{**NONE, **guards})


@pytest.mark.parametrize(
    ("guard", "options", "flat", "said"),
    [
        (FlatGroups(patience=2), {}, True, "step 4: flat_groups: 100% of the groups"),
        (RewardCollapse(window=2, patience=1), {}, False, "step 6: reward_collapse: the mean reward of 2 rollouts"),
        (EntropyCollapse(least=100.0, patience=3), {}, False, "step 6: entropy_collapse: the entropy is"),
        (KLBlowUp(most=1e-4, patience=1), {}, False, "step 2: kl_blow_up: the divergence is"),
        (LossSpike(window=2, deviations=1e-9), {}, False, "loss_spike: policy/grad_norm is"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_guard_reads_what_the_module_logs(guard: Any, options: dict[str, Any], flat: bool, said: str) -> None:
    with guards_said() as told:
        fit(grpo(Falling(flat=flat), **options), InMemoryData("grpo"), callbacks=[only(**{guard.name: guard})])
    assert len(told) == 1
    assert said in told[0]
    with guards_said() as told:
        fit(grpo(Falling(flat=flat), **options), InMemoryData("grpo"), callbacks=[only()])
    assert told == []


def test_a_sound_run_is_told_nothing() -> None:
    with guards_said() as told:
        fit(make_module("grpo"), InMemoryData("grpo"), callbacks=[TrainingGuards()])
        fit(make_module("sft"), InMemoryData("sft"), callbacks=[TrainingGuards()])
    assert told == []


def test_counts_go_to_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="v")
    module = grpo(Falling(flat=True))
    fit(
        module,
        InMemoryData("grpo"),
        callbacks=[TrainingGuards(flat_groups=FlatGroups(patience=2))],
        logger=logger,
        log_every_n_steps=1,
    )
    events = EventAccumulator(logger.log_dir).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("guards/flat_groups")]
    assert shown == [(2, 0.0), (4, 1.0), (6, 1.0)]
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("guards/")} == {f"guards/{name}" for name in NONE}


def test_a_stop_saves_logs_and_can_be_resumed(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="v")
    guards = only(flat_groups=FlatGroups(patience=2, action="stop"))
    with pytest.raises(RunStoppedError, match=r"step 4: flat_groups: .*--model\..*--ckpt_path .*stopped\.ckpt, or"):
        fit(grpo(Falling(flat=True)), InMemoryData("grpo"), callbacks=[guards], logger=logger, log_every_n_steps=1)
    shown = EventAccumulator(logger.log_dir).Reload().Scalars("guards/flat_groups")
    assert [(event.step, event.value) for event in shown] == [(2, 0.0), (4, 1.0)]
    again = only(flat_groups=FlatGroups(patience=2, action="stop"))
    trainer = quiet_trainer(callbacks=[again])
    path = Path(logger.log_dir) / "checkpoints" / "stopped.ckpt"
    trainer.fit(grpo(Falling(flat=True)), datamodule=InMemoryData("grpo"), ckpt_path=path, weights_only=True)
    # One more flat rollout, and patience for two.
    assert trainer.global_step == 6
    watch = again.watches["flat_groups"]
    assert (watch.count, watch.streak) == (1, 1)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_numbers_that_are_none_stop_the_run_before_the_module_gives_up(kind: str, tmp_path: Path) -> None:
    # The first step throws the weights far out; from then on everything is NaN and the module leaves its steps out.
    options: dict[str, Any] = {"optim": {"lr": 1e30, "vision_lr": None, "merger_lr": None}}
    with pytest.raises(RunStoppedError, match=r"not_finite: .*(nan|inf).*\(2 times in a row\)"):
        fit(
            make_module(kind, **options),
            InMemoryData(kind),
            callbacks=[only(not_finite=NotFinite(patience=2))],
            default_root_dir=tmp_path,
        )
    assert (tmp_path / "checkpoints" / "stopped.ckpt").is_file()
    with guards_said() as told:
        guards = only(not_finite=NotFinite(patience=2, action="warn"))
        steps = fit(make_module(kind, **options), InMemoryData(kind), callbacks=[guards])["steps"]
    # Steps that are left out count: three batches, of which a rollout gives two steps.
    assert steps == {"sft": 3, "grpo": 6}[kind]
    assert len(told) == 1


def test_a_module_without_numbers_of_its_own_is_read_from_the_trainer() -> None:
    with guards_said() as told:
        guards = only(loss_spike=LossSpike(window=2, deviations=1e-9, metrics=("train/token_accuracy",)))
        fit(make_module("sft", optim={"lr": 1e-2}), InMemoryData("sft"), callbacks=[guards])
    assert len(told) == 1
    assert "train/token_accuracy" in told[0]


def test_guards_that_a_checkpoint_does_not_know_start_anew() -> None:
    guards = TrainingGuards()
    state = only(truncation=Truncation()).state_dict()
    state["truncation"]["count"] = 3
    guards.load_state_dict(state)
    assert {name: watch.count for name, watch in guards.watches.items() if watch.count} == {"truncation": 3}
