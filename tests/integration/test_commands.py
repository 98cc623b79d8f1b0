"""fit, validate, test and predict on generated rows, on one process and on two, under every strategy."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import checkpoint, column, command, lit, lit_in_ranks, logged, version
from integration.conftest import TEST_ROWS

ROLLOUTS = ["--trainer.callbacks=callbacks.RolloutLogger", "--trainer.callbacks.every_n_rollouts=1"]
SHORT: dict[str, Any] = {"trainer__max_steps": 2, "trainer__limit_val_batches": 1, "model__optim__lr": 1e-4}
STRATEGIES = ("ddp", "fsdp", "fsdp2")
# Metrics that two ranks must give like one: sums over ranks in another order, through two optimiser steps.
RELATIVE, ABSOLUTE = 2e-3, 2e-4


def grpo(name: str, dataset: Path, root: Path, start: Path, **options: Any) -> list[str]:
    """A GRPO command of one rollout that starts from the SFT checkpoint and ends with some validation."""
    flags = {"model__init_from": start, "trainer__check_val_every_n_epoch": "null", "trainer__val_check_interval": 1}
    return [*command(name, "grpo", dataset, root, **{**flags, **SHORT, **options})]


@pytest.fixture(scope="module")
def one(dataset: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO with rollout logs, test and predict on one process."""
    root = tmp_path_factory.mktemp("one")
    assert lit(*grpo("fit", dataset, root / "fit", sft_checkpoint), *ROLLOUTS) == 0
    for name in ("test", "predict"):
        assert lit(*grpo(name, dataset, root / name, sft_checkpoint)) == 0
    return root


@pytest.fixture(scope="module")
def two(dataset: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two processes, in a folder for each strategy, with one flag as the only difference; and SFT."""
    root = tmp_path_factory.mktemp("two")
    commands = []
    for strategy in STRATEGIES:
        flags = {"trainer__strategy": strategy, "trainer__devices": 2, "data__eval_batch_size": 8}
        folder = root / strategy
        commands.append([*grpo("fit", dataset, folder / "fit", sft_checkpoint, **flags), *ROLLOUTS])
        commands.append(command("fit", "sft", dataset, folder / "sft", **SHORT, **flags))
        commands.extend(grpo(name, dataset, folder / name, sft_checkpoint, **flags) for name in ("test", "predict"))
    lit_in_ranks(*commands, timeout=240)
    return root


def events(root: Path) -> EventAccumulator:
    """TensorBoard's own reading of a run."""
    accumulator = EventAccumulator(str(version(root)), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def predictions(root: Path) -> list[dict[str, str]]:
    lines = (version(root) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_sft_learns_and_validates(sft_root: Path) -> None:
    rows = logged(sft_root)
    losses = column(rows, "train/loss")
    assert len(losses) == 40
    # A uniform guess over the tiny model's vocabulary of some 700 tokens costs ln(700) = 6.6 nats.
    assert losses[0] > 5
    assert losses[-1] < 1.5
    # 480 rows are 30 batches; an epoch ends with validation.
    assert [row["step"] for row in rows if "val/loss" in row] == [30.0]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_grpo_logs_every_area(one: Path) -> None:
    rows = logged(one / "fit")
    names = {name for row in rows for name in row}
    assert {"reward/mean", "rollout/length", "policy/loss", "policy/kl", "optim/lr", "val/reward", "val/n"} <= names
    assert column(rows, "reward/mean")[0] > 0
    assert [row["step"] for row in rows if "policy/loss" in row] == [2.0]


def test_tensorboard_shows_scalars_images_and_text(one: Path, sft_root: Path) -> None:
    seen = events(one / "fit")
    tags = seen.Tags()
    areas = {tag.partition("/")[0] for tag in tags["scalars"]}
    assert {"reward", "rollout", "policy", "time", "optim", "val"} <= areas
    assert {"time/generate", "time/reward", "time/update", "time/step"} <= set(tags["scalars"])
    # Steps count optimiser steps, two for the one rollout here.
    assert [event.step for event in seen.Scalars("policy/loss")] == [2]
    assert "rollouts/0" in tags["images"]
    assert "rollouts/0/text_summary" in tags["tensors"]
    assert {"train", "val", "time", "optim"} <= {tag.partition("/")[0] for tag in events(sft_root).Tags()["scalars"]}


def test_shown_rollouts_are_kept_as_lines(one: Path) -> None:
    rows = [json.loads(line) for line in (version(one / "fit") / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2]
    assert all(len(row["completions"]) == 4 for row in rows)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["fit", "sft"])
def test_two_processes_train_like_one(stage: str, strategy: str, one: Path, two: Path, sft_like: Path) -> None:
    expected = logged(one / "fit" if stage == "fit" else sft_like)
    found = logged(two / strategy / stage)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=RELATIVE, abs=ABSOLUTE), name


@pytest.fixture(scope="module")
def sft_like(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SFT run of `two` on one process."""
    root = tmp_path_factory.mktemp("sft-one")
    assert lit(*command("fit", "sft", dataset, root, **SHORT)) == 0
    return root


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rollouts_of_two_processes_are_shown_by_one(strategy: str, two: Path) -> None:
    rows = (version(two / strategy / "fit") / "rollouts.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert "rollouts/0" in events(two / strategy / "fit").Tags()["images"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_test_counts_each_row_once_on_any_number_of_processes(strategy: str, one: Path, two: Path) -> None:
    (expected,) = logged(one / "test")
    (found,) = logged(two / strategy / "test")
    assert expected["test/n"] + expected["test/failed"] == TEST_ROWS
    counts = [name for name in expected if name.startswith(("test/n", "test/failed"))]
    assert {name: found[name] for name in counts} == {name: expected[name] for name in counts}
    assert sum(value for name, value in expected.items() if name.startswith("test/n/")) == expected["test/n"]
    assert found["test/reward"] == pytest.approx(expected["test/reward"], rel=1e-5)
    assert found["test/stderr"] == pytest.approx(expected["test/stderr"], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_predictions_have_a_row_for_each_test_row_in_order(strategy: str, dataset: Path, one: Path, two: Path) -> None:
    rows = json.loads((dataset / "VLAA-Thinking-GRPO-test.json").read_text())
    expected = predictions(one / "predict")
    assert [row["id"] for row in expected] == [row["id"] for row in rows]
    assert [row["question"] for row in expected] == [row["question"] for row in rows]
    assert any("<answer>" in row["response"] for row in expected)
    assert predictions(two / strategy / "predict") == expected
    assert not list(version(two / strategy / "predict").glob(".predictions*"))


def test_both_generators_sample_the_same(one: Path, dataset: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    generator = "lit_vlaa.generation.TransformersGenerator"
    assert lit(*grpo("fit", dataset, tmp_path, sft_checkpoint, model__generator=generator)) == 0
    ours, theirs = logged(one / "fit"), logged(tmp_path)
    for name in ("reward/mean", "rollout/length", "policy/kl", "policy/loss", "val/reward"):
        assert column(theirs, name) == pytest.approx(column(ours, name), rel=1e-3, abs=1e-5), name


def test_cached_generator_takes_its_flags(one: Path, dataset: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    flags = {"model__generator": "lit_vlaa.generation.CachedGenerator", "model__generator__max_rows": 8}
    assert lit(*grpo("fit", dataset, tmp_path, sft_checkpoint, **flags)) == 0
    assert column(logged(tmp_path), "rollout/length") == column(logged(one / "fit"), "rollout/length")


def test_validate_gives_what_training_logged(one: Path, dataset: Path, tmp_path: Path) -> None:
    path = checkpoint(one / "fit")
    assert lit(*command("validate", "grpo", dataset, tmp_path, **SHORT), f"--ckpt_path={path}") == 0
    (found,) = logged(tmp_path)
    assert found["val/reward"] == column(logged(one / "fit"), "val/reward")[-1]


def test_test_reads_the_checkpoint(one: Path, dataset: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    # The same weights give the same completions, whether they come by --ckpt_path or by --model.init_from.
    path = tmp_path / "weights.ckpt"
    stored = torch.load(sft_checkpoint, weights_only=True)
    for folder, flag in ((tmp_path / "a", f"--ckpt_path={path}"), (tmp_path / "b", f"--model.init_from={path}")):
        torch.save({**stored, "callbacks": {}}, path)
        words = command("test", "grpo", dataset, folder)
        assert lit(*words, flag) == 0
        assert logged(folder)[0]["test/reward"] == logged(one / "test")[0]["test/reward"]


def test_sft_tests_and_predicts_too(sft_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    for name in ("test", "predict"):
        assert lit(*command(name, "sft", dataset, tmp_path / name), f"--ckpt_path={sft_checkpoint}") == 0
    (found,) = logged(tmp_path / "test")
    assert 0 < found["test/loss"] < 1.5
    assert found["test/perplexity"] == pytest.approx(math.exp(found["test/loss"]), rel=1e-6)
    assert len(predictions(tmp_path / "predict")) == TEST_ROWS


def test_auto_strategy_takes_one_device(dataset: Path, tmp_path: Path, sft_like: Path) -> None:
    assert lit(*command("fit", "sft", dataset, tmp_path, **SHORT, trainer__strategy="auto")) == 0
    assert logged(tmp_path) == logged(sft_like)


def test_ctrl_c_in_training_says_how_to_go_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_vlaa.sft.SFTModule.training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert lit(*command("fit", "sft", dataset, tmp_path)) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
    assert capsys.readouterr().err.splitlines()[-1].startswith("lit-vlaa: interrupted; with --ckpt_path last the same")
