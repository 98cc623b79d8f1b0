"""One process, two DDP ranks and two FSDP2 ranks take the same path, and so do one batch and its micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.launch import run_ranks
from helpers.modules import InMemoryData, make_module, quiet_trainer, train

# Rows with one image, two images and none, in uneven lengths: the ranks' micro-batches differ in number and kind.
SMALL: dict[str, Any] = {"max_tokens_per_micro_batch": 120}


def assert_same_path(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Both runs agree up to float32 rounding, which Adam carries from step to step.

    Measured over both modules and all strategies: logged values differ by at most 5e-6 of themselves, the sum of a
    weight by 4e-5. The bounds leave a factor of ten for other processors.
    """
    assert one["steps"] == other["steps"]
    for ours, theirs in zip(one["logged"], other["logged"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=5e-5, abs=1e-6), name
    for name, (total, norm) in one["weights"].items():
        name = name.replace("_orig_mod.", "")  # noqa: PLW2901
        assert other["weights"][name][1] == pytest.approx(norm, rel=1e-5, abs=4e-5), name
        assert other["weights"][name][0] == pytest.approx(total, abs=4e-4), name


@pytest.fixture(scope="module", params=["sft", "grpo"])
def single(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, train(request.param)


def test_micro_batches_equal_one_batch(single: tuple[str, dict[str, Any]]) -> None:
    kind, expected = single
    assert_same_path(expected, train(kind, **SMALL))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_equal_one(single: tuple[str, dict[str, Any]], strategy: str) -> None:
    kind, expected = single
    outcomes = run_ranks("helpers.modules:train", kind=kind, strategy=strategy, devices=2, **SMALL)
    for outcome in outcomes:
        assert_same_path(expected, outcome)


def test_every_layout_of_a_pass_gives_the_same_path_on_two_ranks(single: tuple[str, dict[str, Any]]) -> None:
    """One rank packs or, in GRPO, shares prompts; two ranks do so too above, and here the other layouts."""
    kind, expected = single
    runs = {
        f"{strategy} {batching}": {"kind": kind, "strategy": strategy, "devices": 2, "batching": batching, **SMALL}
        for strategy in ("ddp", "fsdp2")
        for batching in ("padded", *(["packed"] if kind == "grpo" else []))
    }
    whole = {name: {**run, "lora": None} for name, run in runs.items()}
    for outcome in run_ranks("helpers.adapted:run_all", runs=whole):
        for name in runs:
            assert_same_path(expected, outcome[name])


@pytest.mark.parametrize("freeze", [["vision"], ["vision", "merger"]])
def test_frozen_towers_shard_too(freeze: list[str]) -> None:
    options: dict[str, Any] = {"backbone": {"freeze": freeze}, "kind": "grpo"}
    expected = train(**options)
    outcomes = run_ranks("helpers.modules:train", strategy="fsdp2", devices=2, **options, **SMALL)
    assert_same_path(expected, outcomes[0])


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_mixed_precision_stays_near_float32(kind: str, strategy: str) -> None:
    expected = train(kind)
    options: dict[str, Any] = {"precision": "bf16-mixed", "devices": 2, **SMALL}
    for outcome in run_ranks("helpers.modules:train", kind=kind, strategy=strategy, **options):
        # bfloat16 keeps 8 bits: each product is off by up to 0.4%.
        for name in ("train/loss",) if kind == "sft" else ("policy/entropy", "policy/sampler_gap"):
            ours, theirs = (run["logged"][0][name] for run in (outcome, expected))
            assert ours == pytest.approx(theirs, rel=0.02)
            assert ours != theirs


def test_a_guard_stops_all_ranks_with_one_checkpoint(tmp_path: Path) -> None:
    strategies = ["ddp", "fsdp2"]
    first, second = run_ranks("helpers.matrix:stopped", strategies=strategies, folder=str(tmp_path))
    for strategy in strategies:
        assert first[strategy] == second[strategy]
        assert first[strategy].startswith("step 4: truncation: ")
        path = tmp_path / strategy / "checkpoints" / "stopped.ckpt"
        assert str(path) in first[strategy]
        trainer = quiet_trainer()
        trainer.fit(make_module("grpo"), datamodule=InMemoryData("grpo"), ckpt_path=path, weights_only=True)
        assert trainer.global_step == 6
