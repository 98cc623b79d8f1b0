"""GRPO runs whose open-ended answers are judged by each scorer that the configs offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import checkpoint, command, lit, logged
from helpers.reward_models import save_reward_model


def fit(dataset: Path, root: Path, start: Path, *words: str, **options: Any) -> list[str]:
    options = {
        "model__init_from": start,
        "data__kinds": "[open_ended]",
        "data__batch_size": 8,
        "trainer__max_epochs": 2,
        **options,
    }
    return [*(w for w in command("fit", "grpo", dataset, root, **options) if "val_file" not in w), *words]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = save_reward_model(tmp_path_factory.mktemp("reward_model"))
    return [
        "--model.scorer=lit_vlaa.rewards.scorers.RewardModelScorer",
        f"--model.scorer.path={path}",
        "--model.scorer.dtype=float32",
        "--model.scorer.max_pixels=7056",
    ]


def test_a_reward_model_judges_a_run_and_resumes_exactly(
    dataset: Path, sft_checkpoint: Path, reward_model: list[str], tmp_path: Path
) -> None:
    saving = [
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.filename={step}",
        "--trainer.callbacks.every_n_train_steps=1",
        "--trainer.callbacks.save_top_k=-1",
    ]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    words = [*reward_model, *saving]
    assert lit(*fit(dataset, whole, sft_checkpoint, *words)) == 0
    rows = logged(whole)
    assert [row["failed/open_ended"] for row in rows] == [0, 0]
    assert any(row["reward/open_ended"] > 0 for row in rows)
    # The second rollout meets rows of the first again, whose references were scored in other batches then.
    middle = checkpoint(whole, "step=1.ckpt")
    assert len(torch.load(middle, weights_only=True)["reference_scores"]["references"]) > 0
    assert lit(*fit(dataset, rest, sft_checkpoint, *words), f"--ckpt_path={middle}") == 0
    assert logged(rest) == rows[1:]
    ends = [torch.load(checkpoint(root, "step=2.ckpt"), weights_only=True)["state_dict"] for root in (whole, rest)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_path_without_a_value_head_is_refused_before_training(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.scorer=lit_vlaa.rewards.scorers.RewardModelScorer", f"--model.scorer.path={tmp_path / 'none'}"]
    assert lit(*fit(dataset, tmp_path, sft_checkpoint, *words)) == 2
    assert "--model.scorer.init_args.path" in capsys.readouterr().err
