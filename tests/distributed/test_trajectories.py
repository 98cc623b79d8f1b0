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


STRATEGIES = ("ddp", "fsdp2")
FROZEN = (("vision",), ("vision", "merger"))
# One rank packs or, in GRPO, shares prompts; two ranks do so too, and take the other layouts as well.
LAYOUTS = {"sft": ("packed", "padded"), "grpo": ("shared", "padded", "packed")}


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    """What two ranks end with, by the run's name; all in one pair of processes, whose start costs most."""
    runs: dict[str, dict[str, Any]] = {
        f"{kind} {strategy} {layout}": {"kind": kind, "strategy": strategy, "batching": layout}
        for kind, layouts in LAYOUTS.items()
        for strategy in STRATEGIES
        for layout in layouts
    }
    for freeze in FROZEN:
        runs[f"frozen {freeze}"] = {"kind": "grpo", "strategy": "fsdp2", "backbone": {"freeze": list(freeze)}}
    for kind in LAYOUTS:
        for strategy in STRATEGIES:
            runs[f"mixed {kind} {strategy}"] = {"kind": kind, "strategy": strategy, "precision": "bf16-mixed"}
    whole = {name: {"devices": 2, **SMALL, **run} for name, run in runs.items()}
    return run_ranks("helpers.modules:train_all", runs=whole, timeout=290)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one(single: tuple[str, dict[str, Any]], strategy: str, pairs: list[dict[str, Any]]) -> None:
    kind, expected = single
    for rank in pairs:
        for layout in LAYOUTS[kind]:
            assert_same_path(expected, rank[f"{kind} {strategy} {layout}"])


@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_towers_shard_too(freeze: tuple[str, ...], pairs: list[dict[str, Any]]) -> None:
    options: dict[str, Any] = {"backbone": {"freeze": list(freeze)}, "kind": "grpo"}
    assert_same_path(train(**options), pairs[0][f"frozen {freeze}"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixed_precision_stays_near_float32(
    single: tuple[str, dict[str, Any]], strategy: str, pairs: list[dict[str, Any]]
) -> None:
    kind, expected = single
    for rank in pairs:
        # bfloat16 keeps 8 bits: each product is off by up to 0.4%.
        for name in ("train/loss",) if kind == "sft" else ("policy/entropy", "policy/sampler_gap"):
            ours, theirs = (run["logged"][0][name] for run in (rank[f"mixed {kind} {strategy}"], expected))
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
