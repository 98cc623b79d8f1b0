"""When each guard speaks, by numbers made up for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from lit_vlaa.training_guards import (
    EntropyCollapse,
    FlatGroups,
    Guard,
    KLBlowUp,
    LossSpike,
    NotFinite,
    RewardCollapse,
    Truncation,
    Watch,
)

GUARDS: tuple[type[Guard], ...] = (
    NotFinite,
    LossSpike,
    RewardCollapse,
    FlatGroups,
    EntropyCollapse,
    KLBlowUp,
    Truncation,
)
THRESHOLDS: list[Any] = [
    # Guard, the number that it reads, a bad value and one that is just good enough.
    (NotFinite, "train/loss", math.nan, 1e30),
    (NotFinite, "train/grad_norm", math.inf, 0.0),
    (NotFinite, "policy/loss", math.nan, -1.0),
    (NotFinite, "policy/grad_norm", math.nan, 5.0),
    (FlatGroups, "rollout/zero_variance", 1.0, 0.99),
    (EntropyCollapse, "policy/entropy", 0.0199, 0.02),
    (KLBlowUp, "policy/kl", 1.01, 1.0),
    (Truncation, "rollout/truncated", 1.0, 0.99),
]


def spoken(guard: Guard, name: str, values: list[float]) -> list[int]:
    """At which values the guard speaks."""
    watch = Watch(guard)
    places = [place for place, value in enumerate(values) if watch.update({name: value}) is not None]
    assert watch.count == len(places)
    return places


@pytest.mark.parametrize(("kind", "name", "bad", "good"), THRESHOLDS)
def test_a_guard_speaks_once_a_streak(kind: type[Guard], name: str, bad: float, good: float) -> None:
    values = [good, bad, bad, bad, bad, good, bad, good, bad, bad]
    assert spoken(kind(patience=1, action="warn"), name, values) == [1, 6, 8]
    assert spoken(kind(patience=2, action="warn"), name, values) == [2, 9]
    assert spoken(kind(patience=4, action="warn"), name, values) == [4]
    assert spoken(kind(), "another/number", values) == []


@pytest.mark.parametrize(("kind", "name", "bad", "good"), THRESHOLDS)
def test_after_a_stop_it_has_patience_anew(kind: type[Guard], name: str, bad: float, good: float) -> None:
    assert spoken(kind(patience=2, action="stop"), name, [bad] * 5 + [good, bad, bad]) == [1, 3, 7]


@pytest.mark.parametrize(
    ("strict", "lenient", "name", "value"),
    [
        (FlatGroups(share=0.5, patience=1), FlatGroups(patience=1), "rollout/zero_variance", 0.6),
        (Truncation(share=0.5, patience=1), Truncation(patience=1), "rollout/truncated", 0.6),
        (EntropyCollapse(least=0.5, patience=1), EntropyCollapse(patience=1), "policy/entropy", 0.4),
        (KLBlowUp(most=0.1, patience=1), KLBlowUp(patience=1), "policy/kl", 0.5),
    ],
    ids=lambda value: value.name if isinstance(value, Guard) else "",
)
def test_limits(strict: Guard, lenient: Guard, name: str, value: float) -> None:
    assert spoken(strict, name, [value]) == [0]
    assert spoken(lenient, name, [value]) == []


def test_a_spike_is_measured_by_median_and_median_deviation() -> None:
    # 1.0, 1.2, 0.8, 1.1, 0.9: median 1; deviations 0, 0.2, 0.2, 0.1, 0.1: median 0.1. Ten of 0.14826 above: 2.4826.
    calm = [1.0, 1.2, 0.8, 1.1, 0.9]
    assert spoken(LossSpike(window=10), "train/loss", [*calm, 2.48]) == []
    assert spoken(LossSpike(window=10), "train/loss", [*calm, 2.49]) == [5]
    assert spoken(LossSpike(window=10, deviations=20), "train/loss", [*calm, 2.49]) == []
    assert spoken(LossSpike(window=12), "train/loss", [*calm, 2.49]) == []  # half of the window is not there yet
    assert spoken(LossSpike(window=10), "train/loss", [*calm, -5.0]) == []  # falling is what it should do
    assert spoken(LossSpike(window=10), "policy/grad_norm", [*calm, 2.49]) == [5]
    assert spoken(LossSpike(window=10, metrics=("policy/kl",)), "train/loss", [*calm, 2.49]) == []
    assert spoken(LossSpike(window=10, metrics=("policy/kl",)), "policy/kl", [*calm, 2.49]) == [5]


def test_numbers_that_hardly_vary_do_not_spike_by_rounding() -> None:
    # One percent of the median counts as spread: ten of them above 2 make 2.2.
    assert spoken(LossSpike(window=4), "train/loss", [2.0] * 10 + [2.19]) == []
    assert spoken(LossSpike(window=4), "train/loss", [2.0] * 10 + [2.21]) == [10]


def test_a_new_level_is_a_spike_only_while_the_window_remembers_the_old_one() -> None:
    places = spoken(LossSpike(window=4), "train/loss", [1.0] * 6 + [9.0] * 6 + [20.0])
    # The median of four values is halfway at two and two, and 9 is within ten times their deviation from then on.
    assert places == [6, 12]
    assert spoken(LossSpike(window=4), "train/loss", [1.0] * 6 + [math.nan, 1.0, 9.0]) == [8]


def test_a_collapse_is_a_running_mean_far_below_its_best() -> None:
    options: dict[str, Any] = {"window": 2, "patience": 1}
    rewards = [0.4, 0.6, 0.5, 0.1, 0.1, 0.5, 0.0]
    # Means of two: 0.5, 0.55, 0.3, 0.1, 0.3, 0.25; half of the best is 0.275.
    assert spoken(RewardCollapse(**options), "reward/mean", rewards) == [4, 6]
    assert spoken(RewardCollapse(**options, share=0.3), "reward/mean", rewards) == [4]
    assert spoken(RewardCollapse(**options, share=0.1), "reward/mean", rewards) == []
    assert spoken(RewardCollapse(**options, least=0.56), "reward/mean", rewards) == []
    assert spoken(RewardCollapse(window=3, patience=1), "reward/mean", rewards) == [
        4
    ]  # 0.7 / 3 and less, below 0.25, from there on
    assert spoken(RewardCollapse(window=7, patience=1), "reward/mean", rewards) == []
    assert spoken(RewardCollapse(window=2, patience=2), "reward/mean", [*rewards, 0.0]) == [7]


def test_a_rollout_without_any_verdict_leaves_the_running_mean() -> None:
    watch = Watch(RewardCollapse(window=2, patience=2))
    for values in ({"reward/mean": 0.8}, {"reward/mean": 0.8}, {"reward/mean": 0.0}, {"reward/mean": 0.0}):
        assert watch.update(values) is None  # means 0.8, 0.4 (half is not below half), 0
    assert watch.update({}) is not None
    assert watch.memory["rewards"] == [0.0, 0.0]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_resumed_guard_goes_on_as_if_it_had_not_stopped(cut: int) -> None:
    values = [0.4, 0.6, 0.5, 0.1, 0.1, 0.5, 0.0, 0.0, 0.0]
    for guard in (RewardCollapse(window=2, patience=2), LossSpike(window=4, metrics=("reward/mean",))):
        whole, first, second = Watch(guard), Watch(guard), Watch(guard)
        expected = [whole.update({"reward/mean": value}) for value in values]
        got = [first.update({"reward/mean": value}) for value in values[:cut]]
        state = first.state()
        first.update({"reward/mean": 100.0})  # what happens after the checkpoint is nothing to it
        second.load_state(state)
        got += [second.update({"reward/mean": value}) for value in values[cut:]]
        assert got == expected
        assert second.state() == whole.state()


@pytest.mark.parametrize("kind", GUARDS, ids=lambda kind: kind.name)
def test_every_guard_names_a_flag_to_turn(kind: type[Guard]) -> None:
    assert "--model." in kind.advice
    watch = Watch(Truncation(patience=2))
    watch.update({"rollout/truncated": 1.0})
    message = watch.update({"rollout/truncated": 1.0})
    assert message is not None
    assert message.startswith("100% of the completions ran into the length limit (2 times in a row). Likely the limit")
    assert "--model.sampling.max_new_tokens" in message


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (NotFinite, {"patience": 0}),
        (LossSpike, {"metrics": ()}),
        (LossSpike, {"window": 1}),
        (LossSpike, {"deviations": 0.0}),
        (RewardCollapse, {"window": 0}),
        (RewardCollapse, {"share": 1.5}),
        (RewardCollapse, {"least": -1.0}),
        (FlatGroups, {"share": 0.0}),
        (EntropyCollapse, {"least": -0.1}),
        (KLBlowUp, {"most": 0.0}),
        (Truncation, {"share": 2.0}),
    ],
)
def test_options_out_of_range_are_named(kind: type[Guard], options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf"TrainingGuards: {kind.name}\.{name} must be"):
        kind(**options)


def test_no_option_is_left_untested() -> None:
    tested = {"patience", "action", "share", "least", "most", "metrics", "window", "deviations"}
    assert {field.name for kind in GUARDS for field in dataclasses.fields(kind)} == tested
