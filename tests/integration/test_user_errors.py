"""What users get wrong ends in one line that names the place and the remedy; bugs keep their traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from helpers.commands import checkpoint, command, lit, lit_in_ranks
from helpers.launch import ROOT
from helpers.samples import tiny_backbone
from lit_vlaa.checks import UsageError

Case = Callable[[Path, Path, Path], tuple[str, dict[str, Any], list[str]]]
SMALL = {"trainer__max_steps": 2, "trainer__logger": False, "trainer__enable_checkpointing": False}


def rows_with(dataset: Path, folder: Path, change: dict[int, dict[str, Any]]) -> Path:
    """A copy of the GRPO rows with some keys of some rows (from 1) changed."""
    rows = json.loads((dataset / "VLAA-Thinking-GRPO.json").read_text())
    for number, keys in change.items():
        rows[number - 1] |= keys
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def missing_file(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"data__data_file": folder / "none.json"}, ["none.json"]


def image_root(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"data__image_root": folder / "none"}, ["image_root", "none"]


def other_image_root(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"data__image_root": folder}, ["VLAA-Thinking-SFT.json:1", "image", "image root"]


def uneven_rollout(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "grpo", {"model__train_batch_size": 5}, ["--model.train_batch_size 5", "--data.batch_size 16"]


def large_batch(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "grpo", {"data__batch_size": 64}, ["48 training row(s)", "batch_size=64", "lower it"]


def no_start(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "grpo", {"model__init_from": folder / "none.ckpt"}, ["--model.init_from", "none.ckpt", "does not exist"]


def hub_folder(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    tiny_backbone().save_pretrained(folder / "hub")
    return "grpo", {"model__init_from": folder / "hub"}, ["--model.init_from", "--model.backbone.path instead"]


def no_checkpoint(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    (folder / "text.ckpt").write_text("weights")
    return "grpo", {"model__init_from": folder / "text.ckpt"}, ["--model.init_from", "text.ckpt"]


def other_backbone(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    backbone = tiny_backbone()
    backbone.save_pretrained(folder / "hub")
    settings = json.loads((folder / "hub" / "config.json").read_text())
    settings["text_config"] |= {"num_hidden_layers": 1}
    settings["text_config"].pop("layer_types", None)
    (folder / "hub" / "config.json").write_text(json.dumps(settings))
    options = {"model__backbone__path": folder / "hub", "model__init_from": start}
    return "grpo", options, ["--model.init_from", "another backbone", "hub"]


def backbone_path(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"model__backbone__path": folder / "model"}, ["--model.backbone.path", "model"]


def backbone_id(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"model__backbone__path": "nobody/no-such-model"}, ["--model.backbone.path nobody/no-such-model"]


def backbone_kind(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    tiny_backbone().save_pretrained(folder / "hub")
    (folder / "hub" / "config.json").write_text('{"model_type": "bert"}')
    return "sft", {"model__backbone__path": folder / "hub"}, ["--model.backbone.path", "bert"]


def bad_row(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    path = rows_with(dataset, folder, {3: {"question": ""}})
    return "grpo", {"data__data_file": path}, ["rows.json:3: question: missing or empty"]


def bad_image(dataset: Path, folder: Path, start: Path, **options: Any) -> tuple[str, dict[str, Any], list[str]]:
    shutil.copytree(dataset / "images", folder / "images")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG no picture")
    path = rows_with(dataset, folder, {5: {"image": "broken.png"}})
    flags = {"data__data_file": path, "data__image_root": folder / "images", "data__shuffle": False}
    return "grpo", flags | options, ["rows.json:5: image: ", "broken.png"]


def bad_image_in_a_worker(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return bad_image(dataset, folder, start, data__num_workers=1)


def no_end(dataset: Path, folder: Path, start: Path) -> tuple[str, dict[str, Any], list[str]]:
    return "sft", {"trainer__max_steps": -1, "trainer__max_epochs": -1}, ["--trainer.max_steps or max_epochs"]


CASES: list[Case] = [
    missing_file,
    image_root,
    other_image_root,
    uneven_rollout,
    large_batch,
    no_start,
    hub_folder,
    no_checkpoint,
    other_backbone,
    backbone_path,
    backbone_id,
    backbone_kind,
    bad_row,
    bad_image,
    bad_image_in_a_worker,
    no_end,
]


def problems(text: str) -> list[str]:
    """What the command complains of, in a text without traceback."""
    assert "Traceback" not in text, text
    prefix = "lit-vlaa: error: "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_line(
    case: Case, dataset: Path, sft_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, options, expected = case(dataset, tmp_path, sft_checkpoint)
    capsys.readouterr()
    assert lit(*command("fit", stage, dataset, tmp_path / "run", **{**SMALL, **options})) == 2
    (line,) = problems(capsys.readouterr().err)
    for part in expected:
        assert part in line, line


def test_a_test_without_rows(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command("test", "grpo", dataset, tmp_path, trainer__logger=False, data__test_file="null")
    assert lit(*words) == 2
    (line,) = problems(capsys.readouterr().err)
    assert "no test rows: give --data.test_file" in line


def test_a_checkpoint_of_other_data(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("fit", "sft", dataset, tmp_path, trainer__max_steps=99, data__max_samples=100)
    assert lit(*words, f"--ckpt_path={sft_checkpoint}") == 2
    (line,) = problems(capsys.readouterr().err)
    assert "rows=480" in line
    assert "this run has 100" in line


def test_a_checkpoint_with_another_reference(
    dataset: Path, sft_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"trainer__max_steps": 2, "model__sampling__max_new_tokens": 4}
    words = command("fit", "grpo", dataset, tmp_path, **options)
    assert lit(*words, f"--model.init_from={sft_checkpoint}") == 0
    capsys.readouterr()
    assert lit(*words, f"--ckpt_path={checkpoint(tmp_path)}") == 2
    (line,) = problems(capsys.readouterr().err)
    assert f"--model.init_from {sft_checkpoint}" in line


class Buggy(Callback):
    """Fails in the middle of training as a mistake in the code would."""

    def on_train_batch_end(self, *_: Any) -> None:
        int("no number")


def test_bugs_in_training_keep_their_traceback(dataset: Path, tmp_path: Path) -> None:
    words = command("fit", "sft", dataset, tmp_path, **SMALL)
    with pytest.raises(ValueError, match="invalid literal"):
        lit(*words, f"--trainer.callbacks={__name__}.Buggy")


def test_debugging_keeps_every_traceback(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_VLAA_DEBUG", "1")
    words = command("fit", "sft", dataset, tmp_path, **SMALL, data__data_file=tmp_path / "none.json")
    with pytest.raises(UsageError) as caught:
        lit(*words)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_batch_that_two_ranks_cannot_share(dataset: Path, tmp_path: Path) -> None:
    flags = {**SMALL, "trainer__devices": 2, "trainer__strategy": "ddp"}
    sft = command("fit", "sft", dataset, tmp_path, **flags, data__batch_size=15)
    grpo = command("fit", "grpo", dataset, tmp_path, **{**flags, "data__batch_size": 6, "model__train_batch_size": 3})
    lit_in_ranks(sft, grpo, code=2)


def test_two_processes_tell_once(dataset: Path, tmp_path: Path) -> None:
    """The first rank alone prepares the data; the second must neither hang nor complain."""
    flags = {**SMALL, "trainer__devices": 2, "trainer__strategy": "ddp", "data__data_file": "none.json"}
    done = subprocess.run(
        [sys.executable, "-m", "lit_vlaa", *command("fit", "sft", dataset, tmp_path, **flags)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = problems(done.stderr)
    assert line == f"data_file=none.json does not exist; seen from {tmp_path}"
