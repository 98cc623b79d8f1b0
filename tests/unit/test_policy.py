"""What both modules share: every option does something, evaluation leaves no trace, the schedule ends with the run."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers.modules import (
    EvaluatedData,
    FixedGenerator,
    InMemoryData,
    fit,
    make_module,
    quiet_trainer,
    train,
    training_samples,
)
from helpers.samples import tiny_backbone
from lit_vlaa.backbone import Backbone, BackboneConfig
from lit_vlaa.checks import RunStoppedError
from lit_vlaa.optim import OptimConfig
from lit_vlaa.parallel import clip_gradients
from lit_vlaa.policy import PolicyModule
from lit_vlaa.sft import SFTModule
from lit_vlaa.types import PromptBatch

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
OPTIM_CHANGES: dict[str, Any] = {
    "lr": 2e-3,
    "merger_lr": 1e-3,
    "vision_lr": 1e-3,
    "betas": (0.5, 0.9),
    "eps": 0.1,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "min_lr": 0.0,
}
KINDS = pytest.mark.parametrize("kind", ["sft", "grpo"])


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """Three steps of SFT with the helper's settings."""
    return train("sft")


def part_of(name: str) -> str:
    return "merger" if "visual.merger" in name else "vision" if "visual" in name else "language"


def start() -> dict[str, Any]:
    """The weights before training, in the form in which `fit` reports them."""
    weights = {name: p.detach().double() for name, p in tiny_backbone().named_parameters()}
    return {"weights": {name: [float(value.sum()), float(value.norm())] for name, value in weights.items()}}


def changed_parts(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {part_of(name) for name in one["weights"] if one["weights"][name] != other["weights"][name]}


def count_calls(module: PolicyModule, find: str) -> list[int]:
    """Counts calls of a submodule of every backbone that `module` builds; the list's one number goes up."""
    calls = [0]
    build = module.build

    def counted(config: BackboneConfig, **options: Any) -> Backbone:
        backbone = build(config, **options)

        def count(*_: Any) -> None:
            calls[0] += 1

        backbone.get_submodule(find).register_forward_pre_hook(count)
        return backbone

    module.build = counted  # type: ignore[method-assign]
    return calls


def answers(kind: str, **options: Any) -> list[str]:
    """What `predict` answers to four prompts."""
    module = make_module(kind, **options, **({"kl": {"coefficient": 0.0}} if kind == "grpo" else {}))
    module.configure_model()
    batch = PromptBatch(tuple(module.processor.encode(item) for item in training_samples()[:4]))
    return [row["response"] for row in module.predict_step(batch, 0)]


def test_no_option_is_left_untested() -> None:
    assert set(inspect.signature(SFTModule).parameters) == SHARED
    assert {field.name for field in dataclasses.fields(OptimConfig)} == {*OPTIM_CHANGES, "optimizer"}
    below = {"dtype", "freeze", "gradient_checkpointing", "min_pixels", "max_pixels", "logprob_chunk"}
    elsewhere = {"path", "revision", "trust_remote_code", "attention", "lora", "quantize", "cache_vision", "compile"}
    assert {field.name for field in dataclasses.fields(BackboneConfig)} == below | elsewhere


@pytest.mark.parametrize("name", OPTIM_CHANGES)
def test_optimiser_settings_change_the_weights(name: str, plain: dict[str, Any]) -> None:
    assert changed_parts(train("sft", optim={name: OPTIM_CHANGES[name]}), plain)


@pytest.mark.parametrize("part", ["merger", "vision"])
def test_a_parts_learning_rate_moves_that_part(part: str) -> None:
    one_step = train("sft", limit_batches=1)
    other = train("sft", limit_batches=1, optim={f"{part}_lr": 2e-3})
    assert changed_parts(one_step, other) == {part}


def test_the_8_bit_optimiser_names_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ModuleNotFoundError, match=r"--model\.optim\.optimizer adamw_8bit needs bitsandbytes"):
        train("sft", optim={"optimizer": "adamw_8bit"})


@KINDS
@pytest.mark.parametrize("freeze", [("vision",), ("merger",), ("language",), ("vision", "merger")])
def test_frozen_parts_stay_as_they_were_and_the_others_move(kind: str, freeze: tuple[str, ...]) -> None:
    outcome = train(kind, backbone={"freeze": freeze}, limit_batches=1, max_grad_norm=0.0)
    moved = changed_parts(outcome, start())
    assert moved == {"vision", "merger", "language"} - set(freeze)


def test_dtype_changes_the_rounding_and_little_else(plain: dict[str, Any]) -> None:
    half = train("sft", backbone={"dtype": "bfloat16"}, limit_batches=1)["logged"][0]["train/loss"]
    full = plain["logged"][0]["train/loss"]
    assert half != full
    assert half == pytest.approx(full, rel=0.01)


@pytest.mark.parametrize("limits", [{"min_pixels": 84 * 84}, {"max_pixels": 56 * 56}])
def test_pixel_limits_change_what_the_model_sees(limits: dict[str, int], plain: dict[str, Any]) -> None:
    outcome = train("sft", backbone=limits, limit_batches=1)
    assert outcome["logged"][0]["train/loss"] != plain["logged"][0]["train/loss"]


@pytest.mark.parametrize(
    ("backbone", "watched"),
    [
        ({"gradient_checkpointing": True}, "model.model.language_model.layers.0.mlp"),
        ({"logprob_chunk": 16}, "model.lm_head"),
    ],
)
def test_memory_savers_compute_more_often_and_change_no_number(
    backbone: dict[str, Any], watched: str, plain: dict[str, Any]
) -> None:
    runs = []
    for options in ({}, backbone):
        module = make_module("sft", backbone=options)
        calls = count_calls(module, watched)
        runs.append((fit(module, InMemoryData("sft"), limit_train_batches=1), calls[0]))
    (_, fewer), (outcome, more) = runs
    assert more >= 2 * fewer
    assert outcome["logged"][0] == pytest.approx(plain["logged"][0], rel=1e-4, abs=1e-6)


@KINDS
def test_a_smaller_token_budget_gives_more_micro_batches(kind: str) -> None:
    counts = []
    for budget in (100_000, 120, 1):
        module = make_module(kind, max_tokens_per_micro_batch=budget)
        calls = count_calls(module, "model.model.language_model")
        fit(module, InMemoryData(kind), limit_train_batches=1)
        counts.append(calls[0])
    assert counts[0] < counts[1] < counts[2]
    if kind == "sft":
        assert (counts[0], counts[2]) == (1, 4)  # All rows at once, and every row alone.


def test_clipping_bounds_the_step_and_zero_switches_it_off(plain: dict[str, Any]) -> None:
    assert plain["logged"][0]["train/grad_norm"] > 0.5
    off, out_of_reach = train("sft", max_grad_norm=0.0), train("sft", max_grad_norm=1e9)
    assert off["weights"] == out_of_reach["weights"]
    assert changed_parts(off, plain)
    assert off["logged"][0]["train/grad_norm"] == plain["logged"][0]["train/grad_norm"]


@KINDS
def test_init_from_starts_where_the_checkpoint_ended(kind: str, plain: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "sft.ckpt"
    trained = train("sft", save=str(path))
    assert trained["weights"] == plain["weights"]
    standing = {"lr": 1e-12, "merger_lr": 1e-12, "vision_lr": 1e-12, "min_lr": 0.0}
    started = train(kind, init_from=str(path), limit_batches=1, optim=standing)
    for name, digest in started["weights"].items():
        assert digest == pytest.approx(trained["weights"][name], rel=1e-6, abs=1e-5), name
    if kind == "grpo":
        assert started["logged"][0]["policy/kl"] == pytest.approx(0, abs=1e-9), "the reference starts there too"


@KINDS
def test_sampling_settings_change_the_answers(kind: str) -> None:
    def run(**sampling: float) -> list[str]:
        return answers(kind, generator=None, seed=1, sampling={"max_new_tokens": 12, "temperature": 0.8, **sampling})

    base = run()
    assert base == run()
    assert run(temperature=0.4) != base
    assert run(top_p=0.5) != base
    greedy = run(top_k=1)
    assert greedy != base
    assert greedy == run(top_p=1e-6)
    assert run(top_k=5) not in (base, greedy)
    longer = run(max_new_tokens=16)
    assert longer != base
    for text, prefix in zip(longer, base, strict=True):
        assert text.startswith(prefix.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_greedy_answers_take_the_most_probable_token() -> None:
    limits = {"max_new_tokens": 12}
    assert answers("sft", sampling={**limits, "temperature": 0.0}) == answers("sft", sampling={**limits, "top_k": 1})


@KINDS
def test_the_generator_that_is_given_writes_the_answers(kind: str) -> None:
    expected = "<think> it is 0 </think><answer>0</answer>"
    assert answers(kind, generator=FixedGenerator()) == [expected] * 4


@KINDS
def test_seed_decides_the_answers_and_null_takes_the_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seed: int | None) -> list[str]:
        return answers(kind, generator=None, seed=seed, sampling={"max_new_tokens": 8})

    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    of_the_run = run(None)
    assert of_the_run == run(5)
    assert of_the_run != run(6)
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert run(None) == run(6)


def test_predictions_name_their_rows_and_leave_padding_out() -> None:
    module = make_module("sft", generator=FixedGenerator())
    module.configure_model()
    prompts = [module.processor.encode(item) for item in training_samples()[:3]]
    prompts[1] = dataclasses.replace(prompts[1], padding=True)
    rows = module.predict_step(PromptBatch(tuple(prompts)), 0)
    assert [(row["id"], row["truth"]) for row in rows] == [("row0", "0"), ("row2", "2")]
    assert rows[0]["question"] == "How many red circles?"


@KINDS
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_steps": 2}, {"limit_train_batches": 2}, {"limit_train_batches": 0.67}, {"max_epochs": 2}],
    ids=str,
)
def test_the_schedule_ends_with_the_run(kind: str, limits: dict[str, Any]) -> None:
    outcome = fit(make_module(kind, optim={"warmup_ratio": 0.0}), InMemoryData(kind), **limits)
    assert len(outcome["rates"]) == outcome["steps"]
    assert outcome["rates"][-1] == pytest.approx(1e-4)  # min_lr of the helper's settings
    assert outcome["rates"][-2] > 1.01e-4


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set --trainer\.max_steps or max_epochs"):
        fit(make_module("sft"), InMemoryData("sft"), max_epochs=-1)


@KINDS
def test_text_alone_trains_and_leaves_the_tower_to_weight_decay(kind: str) -> None:
    outcome = train(kind, text_only=True, limit_batches=1, optim={"weight_decay": 0.0})
    assert changed_parts(outcome, start()) == {"language"}
    assert all(np.isfinite(value) for value in outcome["logged"][0].values())


def random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  # the global state is what is looked at
    return torch.get_rng_state().tolist(), random.getstate(), kind, list(keys), rest


@KINDS
@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluation_leaves_weights_gradients_and_random_numbers_alone(kind: str, verb: str) -> None:
    options: dict[str, Any] = {"generator": None, "kl": {"coefficient": 0.0}} if kind == "grpo" else {}
    module = make_module(kind, **options)
    module.configure_model()
    module.train()
    parameters = list(module.backbone.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    left_alone: list[bool] = []
    for name in ("validation_step", "test_step"):
        step = getattr(module, name)

        def watched(*args: Any, step: Any = step) -> None:
            # Lightning itself drops all gradients ahead of an evaluation, so they are set here.
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.full_like(parameter, float(number))
            state = random_states()
            step(*args)
            left_alone.append(random_states() == state)
            left_alone.extend(
                p.grad is not None and bool(p.grad.eq(number).all()) for number, p in enumerate(parameters)
            )

        setattr(module, name, watched)
    getattr(quiet_trainer(), verb)(module, EvaluatedData(kind), verbose=False)
    assert left_alone == [True] * 3 * (1 + len(parameters))
    assert module.backbone.training
    assert all(parameter.equal(value) for parameter, value in zip(parameters, before, strict=True))


@KINDS
def test_training_is_the_same_with_evaluation_in_between(kind: str) -> None:
    options: dict[str, Any] = {"generator": None, "seed": 3} if kind == "grpo" else {}
    alone = fit(make_module(kind, **options), InMemoryData(kind))
    watched = fit(make_module(kind, **options), EvaluatedData(kind), val_check_interval=1)
    assert watched["weights"] == alone["weights"]
    assert watched["logged"] == alone["logged"]


@KINDS
@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"max_tokens_per_micro_batch": 0}, "max_tokens_per_micro_batch"),
        ({"sampling": {"max_new_tokens": 0}}, "sampling.max_new_tokens"),
        ({"sampling": {"temperature": -1.0}}, "sampling.temperature"),
        ({"sampling": {"top_p": 0.0}}, "sampling.top_p"),
        ({"sampling": {"top_k": -1}}, "sampling.top_k"),
        ({"backbone": {"min_pixels": 0}}, "backbone.min_pixels"),
        ({"backbone": {"min_pixels": 10**6}}, "backbone.max_pixels"),
        ({"backbone": {"logprob_chunk": 0}}, "backbone.logprob_chunk"),
        ({"backbone": {"freeze": ("vision", "merger", "language")}}, "backbone.freeze"),
        ({"optim": {"lr": 0.0}}, "optim.lr"),
        ({"optim": {"merger_lr": -1.0}}, "optim.merger_lr"),
        ({"optim": {"vision_lr": float("inf")}}, "optim.vision_lr"),
        ({"optim": {"betas": (0.9, 1.0)}}, "optim.betas"),
        ({"optim": {"eps": 0.0}}, "optim.eps"),
        ({"optim": {"weight_decay": -0.1}}, "optim.weight_decay"),
        ({"optim": {"warmup_ratio": 3.0}}, "optim.warmup_ratio"),
        ({"optim": {"min_lr": 1.0}}, "optim.min_lr"),
    ],
    ids=str,
)
def test_settings_out_of_range_name_their_flag(kind: str, options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"--model\.{flag}"):
        make_module(kind, **options)


@KINDS
def test_gradients_that_stay_infinite_end_the_run_with_a_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(make_module(kind), InMemoryData(kind))
    with monkeypatch.context() as patch:
        patch.setattr("lit_vlaa.policy.clip_gradients", lambda *_: math.inf)
        path = tmp_path / "checkpoints" / "stopped.ckpt"
        with pytest.raises(RunStoppedError, match=rf"step 1: 2 gradients in a row .*--ckpt_path {path}"):
            fit(make_module(kind, max_skipped_steps=2), InMemoryData(kind), default_root_dir=tmp_path)
    # Two batches of SFT were begun, the two steps of one rollout; what is left is done as it would have been.
    trainer = quiet_trainer()
    trainer.fit(make_module(kind), datamodule=InMemoryData(kind), ckpt_path=path)
    stored = torch.load(path, weights_only=True)
    assert stored["global_step"] == 1  # the second is taken again
    assert stored["skipped_in_a_row"] == 0
    assert trainer.global_step == whole["steps"]


@KINDS
def test_a_skipped_step_moves_nothing_but_the_count_and_the_schedule(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = iter([math.nan])  # the first step; the others are clipped as ever
    monkeypatch.setattr("lit_vlaa.policy.clip_gradients", lambda *args: next(norms, None) or clip_gradients(*args))
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    skipped = fit(make_module(kind), InMemoryData(kind), callbacks=[saver], enable_checkpointing=True)
    plain = fit(make_module(kind), InMemoryData(kind))
    assert skipped["steps"] == plain["steps"] == {"sft": 3, "grpo": 6}[kind]
    assert skipped["rates"] == plain["rates"]
    # Rollouts of two steps would otherwise all end at odd numbers from there on, and none be saved.
    saved = {"sft": ["step=2.ckpt"], "grpo": ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == saved[kind]
    monkeypatch.setattr("lit_vlaa.policy.clip_gradients", lambda *_: math.nan)
    still = fit(make_module(kind, optim={"weight_decay": 0.5}), InMemoryData(kind))
    begin = {name: value.detach().double() for name, value in tiny_backbone().named_parameters()}
    assert still["weights"] == {name: [float(value.sum()), float(value.norm())] for name, value in begin.items()}


@KINDS
def test_skipped_steps_are_counted_across_an_interruption(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_vlaa.policy.clip_gradients", lambda *_: math.nan)
    path = tmp_path / "run.ckpt"
    fit(make_module(kind), InMemoryData(kind), limit_train_batches=1, save=str(path))
    before = torch.load(path, weights_only=True)["skipped_in_a_row"]
    assert before == {"sft": 1, "grpo": 2}[kind]
    with pytest.raises(RunStoppedError, match=f"{before + 1} gradients in a row"):
        quiet_trainer(max_epochs=2, default_root_dir=tmp_path).fit(
            make_module(kind, max_skipped_steps=before + 1), datamodule=InMemoryData(kind), ckpt_path=path
        )
