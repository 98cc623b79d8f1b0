"""A scorer that is down: nothing is paid or punished, TensorBoard shows it, and the run stops with a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.commands import command, lit, lit_in_ranks, logged, version

STOP: dict[str, Any] = {"model__reward__failed_window": 8, "data__kinds": "[open_ended]", "trainer__max_epochs": 1}


def fit(dataset: Path, root: Path, start: Path, scorer: str, **options: Any) -> list[str]:
    options = {"model__init_from": start, "model__scorer": f"helpers.scorers.{scorer}", **STOP, **options}
    return [word for word in command("fit", "grpo", dataset, root, **options) if "val_file" not in word]


def test_a_scorer_that_is_down_stops_the_run_and_loses_nothing(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"data__batch_size": 4, "model__train_batch_size": 4, "model__reward__failed_window": 4}
    root = tmp_path / "down"
    assert lit(*fit(dataset, root, sft_checkpoint, "Down", **options)) == 1
    message = capsys.readouterr().err
    assert re.search(r"lit-vlaa: stopped: .* open_ended answers had no verdict \(verifier_error \d+\)", message)
    stopped = version(root) / "checkpoints" / "stopped.ckpt"
    assert f"--ckpt_path {stopped}" in message
    events = EventAccumulator(str(version(root)))
    events.Reload()
    assert events.Scalars("failed/open_ended")[0].value > 0
    assert events.Scalars("failed/verifier_error")[0].value > 0
    # 15 rows are open-ended: three rollouts of four, of which the first went without verdicts.
    mended = fit(dataset, tmp_path / "mended", sft_checkpoint, "Longer", **options)
    assert lit(*mended, f"--ckpt_path={stopped}") == 0
    rows = logged(tmp_path / "mended")
    assert [row["rollout/step"] for row in rows] == [2, 3]
    assert [row["failed/open_ended"] for row in rows] == [0, 0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_every_rank_stops(dataset: Path, sft_checkpoint: Path, tmp_path: Path, strategy: str) -> None:
    options = {"trainer__strategy": strategy, "trainer__devices": 2, "data__batch_size": 8}
    lit_in_ranks(fit(dataset, tmp_path, sft_checkpoint, "Down", **options), code=1)
    stored = torch.load(version(tmp_path) / "checkpoints" / "stopped.ckpt", weights_only=True)
    assert stored["global_step"] >= 0


def test_checkpoints_keep_the_reference_scores_of_all_ranks(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path
) -> None:
    kept = {}
    for ranks in (1, 2):
        root = tmp_path / str(ranks)
        options: dict[str, Any] = {"trainer__devices": ranks, "trainer__max_steps": 2, "data__batch_size": 8}
        words = fit(dataset, root, sft_checkpoint, "Longer", **options)
        if ranks == 1:
            assert lit(*words) == 0
        else:
            lit_in_ranks([*words, "--trainer.strategy=ddp"])
        (path,) = (version(root) / "checkpoints").iterdir()
        kept[ranks] = torch.load(path, weights_only=True)["reference_scores"]
    assert kept[1]["references"]
    assert kept[1] == kept[2]
