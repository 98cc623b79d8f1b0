"""GRPO: every option does something, and rollouts of every unlucky kind leave sound numbers."""

from __future__ import annotations

import dataclasses
import inspect
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import TrainingGuards
from helpers.modules import (
    BATCH,
    BATCHES,
    EvaluatedData,
    FixedGenerator,
    FixedReward,
    InMemoryData,
    fit,
    make_module,
    quiet_trainer,
    train,
)
from helpers.samples import tiny_backbone
from lit_vlaa.algorithm import AdvantageConfig, KLConfig, LossConfig
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.grpo import GRPOModule
from lit_vlaa.rewards.config import RewardConfig
from lit_vlaa.training_guards import RewardCollapse
from lit_vlaa.types import Completion, RewardRequest, RewardResult

PATIENCE = 120.0
"""Seconds for what happens at once, or never."""

SHARED = {
    "backbone",
    "optim",
    "init_from",
    "max_grad_norm",
    "batching",
    "max_tokens_per_micro_batch",
    "max_skipped_steps",
    "sampling",
    "generator",
    "seed",
}
"""Options that `test_policy.py` covers for both modules."""

CHANGES: dict[str, Any] = {
    "reward": RewardConfig(format_weight=0.5),
    "group_size": 3,
    "train_batch_size": 4,
    "num_iterations": 2,
    "loss": {"clip_low": 0.01},
    "kl": {"coefficient": 0.5},
    "advantage": {"scale": "none"},
    "old_logprobs": "sampler",
}


class Verdicts(FixedReward):
    """Gives the statuses it is told to, one a response in turn; `ok` keeps the value."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = statuses
        self.closed = 0

    def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
        return [
            dataclasses.replace(result, status=self.statuses[index % len(self.statuses)])  # type: ignore[arg-type]
            for index, result in enumerate(super().__call__(requests))
        ]

    def close(self) -> None:
        self.closed += 1


class PredictedData(InMemoryData):
    """The training rows to answer."""

    predict_dataloader = InMemoryData.train_dataloader


class CutShort(FixedGenerator):
    """Completions that ran into the limit: no end token."""

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        return [
            [Completion(c.token_ids[:-1], c.logprobs[:-1], "length") for c in group]
            for group in super().generate(*args, **kwargs)
        ]


def run(*statuses: str, limit: int = 1, **options: Any) -> dict[str, Any]:
    """A short training with given verdicts."""
    module = make_module("grpo", **options)
    module.reward = Verdicts(*statuses)  # type: ignore[assignment]
    return fit(module, InMemoryData("grpo"), limit_train_batches=limit)


def start() -> dict[str, list[float]]:
    weights = {name: p.detach().double() for name, p in tiny_backbone().named_parameters()}
    return {name: [float(value.sum()), float(value.norm())] for name, value in weights.items()}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """One rollout, two optimiser steps."""
    return train("grpo", limit_batches=1)


def test_no_option_is_left_untested() -> None:
    assert set(inspect.signature(GRPOModule).parameters) == SHARED | set(CHANGES) | {"scorer", "verifiers", "reference"}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_weights(name: str, plain: dict[str, Any]) -> None:
    outcome = train("grpo", limit_batches=1, **{name: CHANGES[name]})
    assert outcome["weights"] != plain["weights"]


PARTS: dict[str, dict[str, Any]] = {
    "loss": {
        "clip_low": 0.01,
        "clip_high": 0.01,
        "dual_clip": 1.0001,
        "ratio": "sequence",
        "aggregation": "token_mean",
        "importance_cap": 1.01,
    },
    "kl": {"coefficient": 0.5, "estimator": "k2", "place": "reward", "target": 1e-9},
    "advantage": {"scale": "none", "weights": {"digit": 0.5}, "length_penalty": 1.0},
}
APART = {("loss", "mask_truncated"), ("kl", "horizon"), ("advantage", "resample"), ("advantage", "length_buffer")}
"""Options with a test of their own below."""


def test_no_part_of_the_algorithm_is_left_untested() -> None:
    configs = {"loss": LossConfig, "kl": KLConfig, "advantage": AdvantageConfig}
    known = {(part, field.name) for part, config in configs.items() for field in dataclasses.fields(config)}
    assert known == {(part, name) for part, names in PARTS.items() for name in names} | APART


@pytest.fixture(scope="module")
def several() -> dict[str, Any]:
    """Three rollouts with two passes each, so that ratios leave 1 and controllers have time to act."""
    return train("grpo", num_iterations=2, optim={"lr": 5e-3})


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in PARTS.items() for name in names])
def test_every_part_of_the_algorithm_changes_the_weights(part: str, name: str, several: dict[str, Any]) -> None:
    changed: dict[str, Any] = {part: {name: PARTS[part][name]}}
    outcome = train("grpo", num_iterations=2, optim={"lr": 5e-3}, **changed)
    assert outcome["weights"] != several["weights"]
    assert all(math.isfinite(value) for row in outcome["logged"] for value in row.values())


def test_constant_length_divides_by_the_limit() -> None:
    losses = [
        train(
            "grpo",
            limit_batches=1,
            kl={"coefficient": 0.0},
            loss={"aggregation": "constant_length"},
            sampling={"max_new_tokens": limit},
        )["logged"][0]["policy/grad_norm"]
        for limit in (32, 64)
    ]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-3)


def test_masked_truncated_completions_teach_nothing() -> None:
    outcomes = {}
    for masked in (False, True):
        module = make_module("grpo", generator=CutShort(), loss={"mask_truncated": masked}, optim={"weight_decay": 0.5})
        outcomes[masked] = fit(module, InMemoryData("grpo"), limit_train_batches=1)["weights"]
    assert outcomes[True] == start()
    assert outcomes[False] != start()


def test_an_adaptive_coefficient_moves_by_its_horizon_and_is_kept_in_checkpoints(tmp_path: Path) -> None:
    kl = {"coefficient": 0.1, "target": 1e-9, "horizon": 64}
    module = make_module("grpo", kl=kl)
    path = tmp_path / "kl.ckpt"
    logged = fit(module, InMemoryData("grpo"), save=str(path))["logged"]
    # Sixteen completions a rollout: the error is cut to 20%, a quarter of the horizon passes each time.
    expected = [0.1 * (1 + 0.2 * 16 / 64) ** turn for turn in range(len(logged) + 1)]
    assert [row["policy/kl_coefficient"] for row in logged] == [pytest.approx(value) for value in expected[:-1]]
    again = make_module("grpo", kl=kl)
    assert isinstance(again, GRPOModule)
    trainer = quiet_trainer(limit_train_batches=BATCHES)
    trainer.fit(again, datamodule=InMemoryData("grpo"), ckpt_path=path)
    assert again.kl_coefficient.value == pytest.approx(expected[-1])


def test_the_length_buffer_says_where_the_penalty_begins() -> None:
    def advantages(buffer: int) -> list[float]:
        seen: list[Any] = []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
                seen.extend(outputs["rollout"])

        module = make_module(
            "grpo", advantage={"length_penalty": 1.0, "length_buffer": buffer}, sampling={"max_new_tokens": 200}
        )
        fit(module, InMemoryData("grpo"), limit_train_batches=1, callbacks=[Watch()])
        return [advantage for group in seen for advantage in group.advantages]

    short, wide = advantages(1), advantages(200)
    assert short == advantages(10)  # no completion comes near the limit
    assert wide != short


def test_flat_groups_are_drawn_again() -> None:
    class Retry(FixedReward):
        """All alike at first, but for one prompt's; different when they are drawn again."""

        def __init__(self) -> None:
            self.asked: list[str] = []

        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
            first = len(self.asked) < 16
            self.asked += [request.id for request in requests]
            return [
                RewardResult(0.0 if first and r.id != "row0" else float(index % 2), r.kind, None, "ok")
                for index, r in enumerate(requests)
            ]

    module = make_module("grpo", advantage={"resample": 2}, generator=None, seed=3, sampling={"max_new_tokens": 8})
    reward = Retry()
    module.reward = reward  # type: ignore[assignment]
    logged = fit(module, InMemoryData("grpo"), limit_train_batches=1)["logged"][0]
    # Four prompts with four completions each: three groups are flat at first, none after the second drawing.
    assert sorted(reward.asked[:16]) == sorted(["row0", "row1", "row2", "row3"] * 4)
    assert reward.asked[16:] == [f"row{row}" for row in (1, 2, 3) for _ in range(4)]
    assert logged["rollout/resampled"] == 0.75
    assert logged["rollout/zero_variance"] == 0


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"train_batch_size": 4}, 1),
        ({"train_batch_size": 2}, 2),
        ({"train_batch_size": 1}, 4),
        ({"num_iterations": 3}, 6),
        ({"train_batch_size": 4, "num_iterations": 2}, 2),
    ],
)
def test_steps_a_rollout(options: dict[str, Any], steps: int) -> None:
    assert train("grpo", limit_batches=1, **options)["steps"] == steps


def test_reward_settings_reach_the_reward() -> None:
    means = [
        train("grpo", limit_batches=1, reward=RewardConfig(format_weight=weight))["logged"][0]["reward/mean"]
        for weight in (0.0, 0.5)
    ]
    # Truths 0 to 3, answers 0 to 3 for each: one in four is right; half of the reward for the format alone.
    assert means == [pytest.approx(0.25), pytest.approx(0.5 * 0.25 + 0.5)]


def test_the_scorer_judges_open_ended_answers() -> None:
    def scorer(requests: Any, answers: Any) -> list[float | None]:
        return [3.0 if answer == "good" else 1.0 for answer in answers]

    module = make_module("grpo", scorer=scorer)
    assert isinstance(module, GRPOModule)
    asked = [RewardRequest(f"<answer>{text}</answer>", "open_ended", "other") for text in ("good", "bad")]
    good, bad = module.reward(asked)
    assert good.value > bad.value


def test_a_verifier_of_ones_own_judges_its_kind() -> None:
    module = make_module("grpo", verifiers={"words": lambda answer, request: float(answer == request.truth)})
    assert isinstance(module, GRPOModule)
    good, bad = module.reward([RewardRequest(f"<answer>{text}</answer>", "words", "red") for text in ("red", "blue")])
    assert (good.value, bad.value) == (1.0, 0.0)


def test_a_kind_that_nothing_scores_is_refused_before_any_work() -> None:
    data = InMemoryData("grpo")
    data.kinds_in_use = {"words": "rows.json:7"}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"rows.json:7: nothing scores verifier_type 'words'.*--model.verifiers"):
        fit(make_module("grpo"), data)


def test_a_scorer_that_cannot_work_is_refused_before_any_work() -> None:
    class Unreachable:
        def __call__(self, requests: Any, answers: Any) -> list[float | None]:  # noqa: ARG002
            return [None for _ in answers]

        def prepare(self) -> None:
            raise ValueError("no answer from the judge")

    with pytest.raises(ValueError, match="no answer from the judge"):
        fit(make_module("grpo", scorer=Unreachable()), InMemoryData("grpo"))
    data = InMemoryData("grpo")
    data.kinds_in_use = {"digit": "rows.json:1"}  # type: ignore[attr-defined]  # no row needs the scorer
    fit(make_module("grpo", scorer=Unreachable()), data, limit_train_batches=1)
    module = make_module("grpo", scorer=Unreachable())
    quiet_trainer().predict(module, PredictedData("grpo"))  # answers are written, not judged


def test_a_scorer_that_uses_the_device_has_it_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    forward = threading.Event()

    class OnDevice:
        uses_accelerator = True

        def __call__(self, requests: Any, answers: Any) -> list[float | None]:  # noqa: ARG002
            return [0.0 for _ in answers]

    class Slow(FixedReward):
        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
            forward.wait(0.5 if on_device else PATIENCE)  # time for a pass to begin, if one may
            events.append("reward")
            return super().__call__(requests)

    original = GRPOModule._score_rows

    def watched(self: GRPOModule, *args: Any) -> Any:
        events.append("forward")
        forward.set()
        return original(self, *args)

    monkeypatch.setattr(GRPOModule, "_score_rows", watched)
    # Completions of an engine that announces none are scored beside the passes, unless the scorer needs the device.
    for on_device in (True, False):
        events.clear()
        forward.clear()
        module = make_module("grpo", scorer=OnDevice() if on_device else None)
        module.reward = Slow()  # type: ignore[assignment]
        fit(module, InMemoryData("grpo"), limit_train_batches=1)
        assert events[0] == ("reward" if on_device else "forward")


def test_an_interrupt_does_not_wait_for_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    release, over = threading.Event(), threading.Event()

    class Stuck(FixedReward):
        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
            release.wait(2 * PATIENCE)
            over.set()
            return super().__call__(requests)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GRPOModule, "_score_rows", interrupted)
    module = make_module("grpo")
    module.reward = Stuck()  # type: ignore[assignment]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(module, InMemoryData("grpo"), limit_train_batches=1)
    assert not over.is_set()
    release.set()


def test_what_the_reward_raises_reaches_the_run() -> None:
    class Broken(FixedReward):
        def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:  # noqa: ARG002
            raise RuntimeError("out of order")

    module = make_module("grpo")
    module.reward = Broken()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="out of order"):
        fit(module, InMemoryData("grpo"), limit_train_batches=1)


def test_without_any_verdict_nothing_moves() -> None:
    outcome = run("timeout", optim={"lr": 1e-3, "weight_decay": 0.5}, reward=RewardConfig(max_failed=1.0))
    assert outcome["weights"] == start()
    assert outcome["logged"][0]["failed/digit"] == 1.0
    assert outcome["logged"][0]["failed/timeout"] == 1.0


def test_too_many_failures_save_a_checkpoint_and_stop(tmp_path: Path) -> None:
    # Four prompts with four completions each; every other one fails.
    reward = RewardConfig(max_failed=0.4, failed_window=20)
    module = make_module("grpo", reward=reward)
    module.reward = Verdicts("ok", "verifier_error")  # type: ignore[assignment]
    with pytest.raises(RunStoppedError, match=r"16 of the latest 32 digit answers .*stopped.ckpt"):
        fit(module, InMemoryData("grpo"), limit_train_batches=3, default_root_dir=tmp_path)
    assert module.trainer.global_step == 4  # two rollouts of two steps
    path = tmp_path / "checkpoints" / "stopped.ckpt"
    whole = fit(make_module("grpo"), InMemoryData("grpo"), limit_train_batches=3)
    assert whole["steps"] == 6
    mended = make_module("grpo")
    trainer = quiet_trainer(limit_train_batches=3)
    trainer.fit(mended, datamodule=InMemoryData("grpo"), ckpt_path=path)
    assert trainer.global_step == 6


def test_group_size_is_the_number_of_completions() -> None:
    for size in (2, 5):
        seen: list[int] = []

        class Watched(FixedReward):
            def __call__(self, requests: list[RewardRequest]) -> list[RewardResult]:
                seen.append(len(requests))  # noqa: B023  # used within the turn
                return super().__call__(requests)

        module = make_module("grpo", group_size=size)
        module.reward = Watched()  # type: ignore[assignment]
        fit(module, InMemoryData("grpo"), limit_train_batches=1)
        assert seen == [size * BATCH]


def test_sampling_settings_reach_training() -> None:
    def outcome(**sampling: float) -> dict[str, Any]:
        options = {"max_new_tokens": 12, **sampling}
        return train("grpo", limit_batches=1, generator=None, seed=1, sampling=options)

    base = outcome()
    assert base["weights"] == outcome()["weights"]
    assert base["logged"][0]["rollout/length"] <= 12
    assert outcome(max_new_tokens=3)["logged"][0]["rollout/length"] <= 3
    for sampling in ({"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 3}):
        assert outcome(**sampling)["weights"] != base["weights"], sampling
    assert train("grpo", limit_batches=1, generator=None, seed=2, sampling={"max_new_tokens": 12}) != base


def test_beta_of_zero_needs_no_reference(plain: dict[str, Any]) -> None:
    module = make_module("grpo", kl={"coefficient": 0.0})
    outcome = fit(module, InMemoryData("grpo"), limit_train_batches=1)
    assert "policy/kl" in plain["logged"][0]
    assert "policy/kl" not in outcome["logged"][0]
    assert isinstance(module, GRPOModule)
    assert not module.reference.made
    assert not any("reference" in name for name in module.state_dict())


def test_kl_is_zero_and_the_ratio_one_while_the_policy_has_not_moved() -> None:
    outcome = train("grpo", limit_batches=1, train_batch_size=BATCH)
    assert outcome["logged"][0]["policy/kl"] == pytest.approx(0, abs=1e-9)
    assert outcome["logged"][0]["policy/ratio"] == 1.0
    assert outcome["logged"][0]["policy/clipped"] == 0.0


def test_with_one_step_a_rollout_the_ratio_is_one_and_kl_grows() -> None:
    outcome = train("grpo", train_batch_size=BATCH, old_logprobs="sampler")
    assert [values["policy/ratio"] for values in outcome["logged"]] == [1.0, 1.0, 1.0]
    assert outcome["logged"][1]["policy/kl"] > 1e-4


def test_the_cached_generators_logprobs_are_the_learners() -> None:
    outcome = train("grpo", generator=None, seed=1, sampling={"max_new_tokens": 16}, train_batch_size=BATCH)
    for values in outcome["logged"]:
        assert 0 < values["policy/sampler_gap"] < 1e-4  # fp32 rounding of two summation orders


def test_completions_without_an_end_are_counted_and_learned_from(plain: dict[str, Any]) -> None:
    outcome = train("grpo", limit_batches=1, generator=CutShort())
    assert outcome["logged"][0]["rollout/truncated"] == 1.0
    assert plain["logged"][0]["rollout/truncated"] == 0.0
    assert outcome["logged"][0]["rollout/length"] == plain["logged"][0]["rollout/length"] - 1
    assert outcome["weights"] != plain["weights"]
    assert all(math.isfinite(value) for value in outcome["logged"][0].values())


def test_without_any_verdict_nothing_is_learned() -> None:
    outcome = run("timeout", limit=2, optim={"weight_decay": 0.0})
    for values in outcome["logged"]:
        assert values["reward/failed"] == 1.0
        assert values["policy/grad_norm"] == 0.0
        assert all(math.isfinite(value) for value in values.values())
        assert "reward/mean" not in values
    assert outcome["weights"] == start()


def test_steps_that_teach_nothing_count(plain: dict[str, Any]) -> None:
    outcome = run("timeout")
    assert outcome["steps"] == plain["steps"] == len(outcome["logged"]) * 2 == 2


def test_a_group_without_verdicts_leaves_the_others_alone() -> None:
    """The first prompt's four completions fail; the other three prompts are judged."""
    outcome = run(*["verifier_error"] * 4, *["ok"] * 12)
    values = outcome["logged"][0]
    assert values["reward/failed"] == 0.25
    # Truths 1, 2 and 3 are each hit by one answer in four.
    assert values["reward/mean"] == pytest.approx(0.25)
    assert values["rollout/zero_variance"] == 0.25
    assert all(math.isfinite(value) for value in values.values())
    assert outcome["weights"] != start()


def test_a_single_verdict_in_a_group_teaches_nothing_without_kl() -> None:
    outcome = run("ok", "timeout", "timeout", "timeout", kl={"coefficient": 0.0}, optim={"weight_decay": 0.0})
    assert outcome["logged"][0]["rollout/zero_variance"] == 1.0
    assert outcome["logged"][0]["policy/grad_norm"] == 0.0
    assert outcome["weights"] == start()


def test_no_answer_is_a_verdict() -> None:
    values = run(*["no_answer"] * 4, *["ok"] * 12)["logged"][0]
    assert values["rollout/no_answer"] == 0.25
    assert values["reward/failed"] == 0.0


@pytest.mark.parametrize("max_steps", [1, 3, 4])
def test_max_steps_ends_the_run_within_a_rollout(max_steps: int) -> None:
    outcome = train("grpo", max_steps=max_steps)
    assert outcome["steps"] == max_steps
    assert len(outcome["rates"]) == max_steps
    assert len(outcome["logged"]) == math.ceil(max_steps / 2)


@pytest.mark.parametrize(("verb", "stage"), [("validate", "val"), ("test", "test")])
def test_evaluation_counts_every_row_once(verb: str, stage: str) -> None:
    """Truths 0, 1, 2, 3, 4 and always the answer 0: one of five right, the repeated sixth row left out."""
    module, trainer = make_module("grpo"), quiet_trainer()
    for _ in range(2):
        (result,) = getattr(trainer, verb)(module, EvaluatedData("grpo"), verbose=False)
        assert result[f"{stage}/n"] == 5
        assert result[f"{stage}/reward"] == pytest.approx(0.2)
        # Variance over n - 1: (0.8**2 + 4 * 0.2**2) / 4 = 0.2; its fifth is 0.04.
        assert result[f"{stage}/stderr"] == pytest.approx(0.2)
        assert result[f"{stage}/reward/digit"] == pytest.approx(0.2)
        assert result[f"{stage}/failed"] == 0


def test_evaluation_counts_failures_apart() -> None:
    module = make_module("grpo")
    module.reward = Verdicts("ok", "timeout")  # type: ignore[assignment]
    (result,) = quiet_trainer().validate(module, EvaluatedData("grpo"), verbose=False)
    # Batches of two: rows 0, 2 and 4 are judged, 1 and 3 fail, the padding row is the sixth.
    assert (result["val/n"], result["val/failed"]) == (3, 2)
    assert result["val/reward"] == pytest.approx(1 / 3)


def test_teardown_closes_the_reward() -> None:
    module = make_module("grpo")
    verdicts = Verdicts("ok")
    module.reward = verdicts  # type: ignore[assignment]
    fit(module, InMemoryData("grpo"), limit_train_batches=1)
    assert verdicts.closed == 1


def test_training_hands_the_rollout_to_callbacks() -> None:
    seen: list[Any] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:  # noqa: ARG002
            seen.extend(outputs["rollout"])

    fit(make_module("grpo"), InMemoryData("grpo"), limit_train_batches=1, callbacks=[Watch()])
    assert [group.record.id for group in seen] == ["row0", "row1", "row2", "row3"]
    assert seen[1].texts[1].endswith("<answer>1</answer>")
    assert seen[1].results[1].value == 1.0


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"group_size": 1}, "group_size"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"loss": {"clip_low": -0.1}}, "loss.clip_low"),
        ({"loss": {"clip_high": float("nan")}}, "loss.clip_high"),
        ({"loss": {"dual_clip": 1.0}}, "loss.dual_clip"),
        ({"loss": {"importance_cap": 0.0}}, "loss.importance_cap"),
        ({"loss": {"importance_cap": 2.0}, "old_logprobs": "sampler"}, "loss.importance_cap"),
        ({"kl": {"coefficient": -1.0}}, "kl.coefficient"),
        ({"kl": {"coefficient": 0.0, "target": 0.1}}, "kl.coefficient"),
        ({"kl": {"target": 0.0}}, "kl.target"),
        ({"kl": {"horizon": 0}}, "kl.horizon"),
        ({"kl": {"estimator": "k1"}}, "kl.estimator"),
        ({"advantage": {"resample": -1}}, "advantage.resample"),
        ({"advantage": {"weights": {"math": -1.0}}}, "advantage.weights"),
        ({"advantage": {"length_penalty": -1.0}}, "advantage.length_penalty"),
        ({"advantage": {"length_buffer": 0}}, "advantage.length_buffer"),
        ({"sampling": {"temperature": 0.0}}, "sampling.temperature"),
    ],
    ids=str,
)
def test_settings_out_of_range_name_their_flag(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.{flag}"):
        make_module("grpo", **options)


@pytest.mark.parametrize("size", [3, 8])
def test_a_train_batch_that_does_not_divide_the_rollout_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"--model\.train_batch_size {size} must divide --data\.batch_size 4"):
        train("grpo", train_batch_size=size)


def test_a_step_that_ends_the_run_is_counted_by_the_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_vlaa.policy.clip_gradients", lambda *_: float("inf"))
    with pytest.raises(RunStoppedError):
        fit(make_module("grpo", max_skipped_steps=1), InMemoryData("grpo"), default_root_dir=tmp_path)
    left = torch.load(tmp_path / "checkpoints" / "stopped.ckpt", weights_only=True)["unfinished_rollout"]
    assert left["norms"] == []
    assert not left["means"].any()


def test_a_rollout_that_max_steps_cuts_short_is_looked_at_when_it_is_finished() -> None:
    seen: dict[int, list[Any]] = {}
    for steps in (1, 2):
        module, guards = make_module("grpo"), TrainingGuards(reward_collapse=RewardCollapse(window=2))
        assert isinstance(module, GRPOModule)
        quiet_trainer(max_steps=steps, callbacks=[guards]).fit(module, datamodule=InMemoryData("grpo"))
        failures = module.guard.state()["failures"]
        seen[steps] = [guards.state_dict()["reward_collapse"]["memory"], [kind for kind in failures if failures[kind]]]
    assert seen[1] == [{}, []]
    assert len(seen[2][0]["rewards"]) == 1
    assert seen[2][1] == ["digit"]
