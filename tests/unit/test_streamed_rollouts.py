"""GRPO whose completions are scored while others are written: the same run, sooner."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback

from helpers.modules import FixedGenerator, FixedReward, InMemoryData, fit, make_module
from lit_vlaa.generation import CachedGenerator, TransformersGenerator
from lit_vlaa.generation.protocol import Generator, announces_groups
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.streamed_reward import can_stream
from lit_vlaa.types import Completion, RewardRequest, RewardResult

PATIENCE = 30.0
"""Seconds for what happens at once, or never."""


class Announcing(FixedGenerator):
    """Tells of the last prompt first, then does something, then tells of the others but one."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then
        self.writing = False

    def generate(self, *args: Any, on_group: Any = None, **kwargs: Any) -> list[list[Completion]]:
        made = super().generate(*args, **kwargs)
        self.writing = True
        if on_group is not None:
            on_group(len(made) - 1, made[-1])
        self.then()
        if on_group is not None:
            for index in range(1, len(made) - 1):
                on_group(index, made[index])
        self.writing = False
        return made


class Watched(FixedReward):
    """Notes what it is asked, and whether completions were still being written."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.asked: list[tuple[bool, list[str]]] = []
        self.engine: Announcing | None = None

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        assert self.engine is not None
        self.asked.append((self.engine.writing, sorted({request.id for request in requests})))
        self.called.set()
        return super().__call__(requests)


class Outputs(Callback):
    """Keeps what a rollout is made of."""

    def __init__(self) -> None:
        self.groups: list[Any] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.groups += arguments[2]["rollout"]


def train(engine: Any, reward: Any, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """One rollout of four prompts with four completions each; gives what came of it, and the groups."""
    module, outputs = make_module("grpo", generator=engine, **options), Outputs()
    module.reward = reward
    outcome = fit(module, InMemoryData("grpo"), limit_train_batches=1, callbacks=[outputs])
    return outcome, outputs.groups


@pytest.mark.parametrize("resample", [0, 1])
def test_groups_are_scored_while_others_are_written(resample: int) -> None:
    reward = Watched()

    def until_called() -> None:
        assert reward.called.wait(PATIENCE), "nothing is scored before the rollout is over"

    engine = reward.engine = Announcing(until_called)
    advantage = {"resample": resample}
    outcome, seen = train(engine, reward, advantage=advantage)
    assert reward.asked[0] == (True, ["row3"])
    assert sorted({row for _, rows in reward.asked for row in rows}) == ["row0", "row1", "row2", "row3"]
    expected, groups_at_once = train(FixedGenerator(), FixedReward(), advantage=advantage)
    assert seen == groups_at_once
    assert outcome == expected


class OnDevice:
    """A scorer that needs the device."""

    uses_accelerator = True

    def __call__(self, requests: Any, answers: Any) -> list[float | None]:  # noqa: ARG002
        return [0.0 for _ in answers]


def test_a_scorer_that_needs_the_device_waits_for_the_end_of_the_rollout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reward = Watched()
    reward.engine = Announcing(lambda: None)
    passes: list[int] = []
    original = GRPOModule._score_rows

    def watched(self: GRPOModule, *args: Any) -> Any:
        passes.append(len(reward.asked))
        return original(self, *args)

    monkeypatch.setattr(GRPOModule, "_score_rows", watched)
    with caplog.at_level(logging.INFO, logger="lit_vlaa.streamed_reward"):
        train(reward.engine, reward, scorer=OnDevice())
    assert reward.asked == [(False, ["row0", "row1", "row2", "row3"])]
    assert passes == [1, 1]  # the old policy's and the reference's, after the verdicts
    assert caplog.text.count("the scorer works on the training device") == 1


class Plain:
    """An engine of a user's that was written before there was `on_group`."""

    def generate(
        self, backbone: Any, prompts: Any, *, group_size: int, params: Any, key: Any
    ) -> list[list[Completion]]:
        return FixedGenerator().generate(backbone, prompts, group_size=group_size, params=params, key=key)


class PassesOn(CachedGenerator):
    """One that hands keywords on, and could change what comes back."""

    def generate(self, *args: Any, **options: Any) -> Any:
        return super().generate(*args, **options)


def test_an_engine_that_announces_nothing_still_works(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lit_vlaa.streamed_reward"):
        outcome, seen = train(Plain(), FixedReward())
    assert caplog.text.count("Plain.generate names no on_group") == 1
    assert (outcome, seen) == train(FixedGenerator(), FixedReward())


def test_which_engines_announce() -> None:
    engines: list[Generator] = [CachedGenerator(), TransformersGenerator(), Announcing(lambda: None)]
    assert all(announces_groups(engine) for engine in engines)
    others: list[Any] = [Plain(), PassesOn()]
    assert not any(announces_groups(engine) for engine in others)
    assert can_stream(CachedGenerator(), needs_device=False)
    assert not can_stream(CachedGenerator(), needs_device=True)


def test_the_cached_engine_learns_the_same_with_and_without() -> None:
    options: dict[str, Any] = {"seed": 1, "sampling": {"max_new_tokens": 12}}
    assert train(CachedGenerator(), FixedReward(), **options) == train(PassesOn(), FixedReward(), **options)


def test_what_the_reward_raises_amid_a_rollout_reaches_the_run() -> None:
    class Broken(FixedReward):
        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:  # noqa: ARG002
            raise LookupError("out of order")

    with pytest.raises(LookupError, match="out of order"):
        train(Announcing(lambda: None), Broken())


def test_what_the_engine_raises_reaches_the_run() -> None:
    release = threading.Event()

    class Stuck(FixedReward):
        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
            release.wait(PATIENCE)
            return super().__call__(requests)

    def broken() -> None:
        raise LookupError("no more tokens")

    with pytest.raises(LookupError, match="no more tokens"):
        train(Announcing(broken), Stuck())
    assert not release.is_set()
    release.set()
