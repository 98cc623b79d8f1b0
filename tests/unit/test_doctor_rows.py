"""What `lit-vlaa doctor` says of a run's rows, devices and disk."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.synthetic import SyntheticPaths, write_dataset
from lit_vlaa.backbone import BackboneConfig
from lit_vlaa.backbone.config import LoRAConfig
from lit_vlaa.cli import main
from lit_vlaa.memory import Tensor
from lit_vlaa.placement import batch_problems, checkpoint_bytes, disk_lines, free_bytes, kept_checkpoints
from lit_vlaa.preflight import look_at_rows
from unit.test_memory import run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "quickstart"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticPaths:
    return write_dataset(
        tmp_path_factory.mktemp("data") / "set", sft_count=40, grpo_count=40, test_count=9, progress=False
    )


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit-vlaa"])


def doctor(split: Any, data: SyntheticPaths, *words: str) -> int:
    files = [f"--data.data_file={data.data_file(split)}", f"--data.val_file={data.data_file(split, 'val')}"]
    files += [f"--data.image_root={data.image_root}", "--data.test_file=null"]
    return main(["doctor", f"--config={CONFIGS / f'{split}.yaml'}", *files, *words])


def test_rows_are_looked_at(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("grpo", data, "--rows", "20") == 0
    printed = capsys.readouterr().out
    assert re.search(r"--data\.data_file \S+: 20 of 40 rows looked at\n", printed)
    assert re.search(r"--data\.val_file \S+: 9 rows looked at\n", printed)
    assert "without completions of up to 48: median" in printed
    assert re.search(r"tiny: 0\.\d\d M parameters, 0\.\d{3} M of them train; ", printed)
    assert re.search(r"truths scored against themselves, unparsable of all: .*digit 0 of \d", printed)
    assert re.search(r"checkpoints below runs/quickstart/grpo: [\d.]+ GiB each, 3 at one time", printed)


def test_a_row_that_stops_a_run_is_found(
    data: SyntheticPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.data_file("sft").read_text(encoding="utf-8").splitlines()
    broken = json.loads(lines[0])
    lines[0] = json.dumps({**broken, "image": f"{broken['image']}.gone"})
    file = tmp_path / "rows.json"
    file.write_text("\n".join(lines), encoding="utf-8")
    own = f"--data.data_file={file}"
    assert doctor("sft", data, own) == 1
    printed = capsys.readouterr().out
    assert "  error: images that are not there: 1 (row 1) -> see --data.image_root" in printed
    assert doctor("sft", data, own, "--data.on_bad_record=skip") == 0
    assert "  warning: images that are not there: 1 (row 1)" in capsys.readouterr().out
    assert doctor("sft", data, own, "--rows=0") == 0
    assert "rows were not looked at: --rows 0" in capsys.readouterr().out


def test_too_few_rows_for_a_batch(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("sft", data, "--data.batch_size=41", "--rows=1") == 1
    assert "error: 40 row(s) for training make no batch -> --data.batch_size 40 or less" in capsys.readouterr().out
    assert doctor("sft", data, "--data.batch_size=40", "--rows=1") == 0
    assert doctor("sft", data, "--data.val_count=40", "--data.val_file=null", "--rows=1") == 1
    assert "error: --data.val_count 40 leaves none of 40 row(s) for training -> lower it" in capsys.readouterr().out


def test_files_that_are_not_there_yet_are_named(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--data.data_file=/nowhere/a.json", "--data.val_file=/nowhere/b.json"]
    assert doctor("sft", data, *missing) == 0
    printed = capsys.readouterr().out
    assert "--data.data_file /nowhere/a.json does not exist yet" in printed
    assert doctor("sft", data, "--rows=-1") == 2
    assert "--rows must not be negative, got -1" in capsys.readouterr().err


def test_devices_that_cannot_share_a_batch(data: SyntheticPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("sft", data, "--trainer.devices=3", "--rows=0") == 1
    printed = capsys.readouterr().out
    assert (
        "as it stands, fit would refuse: --data.batch_size 32 must be a multiple of the 3 device(s); use 30" in printed
    )
    assert "strategy ddp on 3 device(s) of 1 node(s)" in printed


class Anything:
    """A data module that looks at its rows by itself."""

    preflight = "unit.test_doctor_rows:told"


def told(config: Any, *, rows: int) -> tuple[list[str], bool]:
    return [f"{rows} of {config['data']['init_args']['file']}"], True


def test_a_data_module_is_known_by_its_class_path_alone() -> None:
    own = {"data": {"class_path": "unit.test_doctor_rows.Anything", "init_args": {"file": "mine"}}}
    assert look_at_rows(own, 7) == (["7 of mine"], True)
    none = {"data": {"class_path": "pathlib.Path", "init_args": {}}}
    (line,), stops = look_at_rows(none, 7)
    assert not stops
    assert "pathlib.Path names no function" in line


@pytest.mark.parametrize(
    ("batch", "train", "ranks", "problems"),
    [
        (32, None, 4, 0),
        (32, None, 5, 1),
        (512, 256, 8, 0),
        (512, 100, 4, 1),  # 100 divides not 512
        (24, 12, 8, 1),  # 8 divides not 12
        (30, 30, 4, 2),
    ],
)
def test_batches_and_ranks(batch: int, train: int | None, ranks: int, problems: int) -> None:
    model = {} if train is None else {"group_size": 4, "train_batch_size": train}
    config = {"data": {"init_args": {"batch_size": batch}}, "model": {"init_args": model}}
    assert len(list(batch_problems(config, ranks))) == problems


TENSORS = [
    Tensor("a", (10, 10), 4, trains=True, four_bits=False),
    Tensor("b", (5,), 4, trains=False, four_bits=False),
]


def test_the_size_of_a_checkpoint() -> None:
    described = run(BackboneConfig())
    # Weights of 105 numbers; AdamW keeps two numbers of each that trains, and a step of four bytes.
    assert checkpoint_bytes(described, TENSORS) == 420 + 2 * 400 + 4
    assert checkpoint_bytes(described, TENSORS, weights_only=True) == 420
    # Adapters are stored without their base.
    adapted = replace(described, backbone=BackboneConfig(lora=LoRAConfig(rank=8)))
    assert checkpoint_bytes(adapted, TENSORS, weights_only=True) == 400


def saver(**options: Any) -> dict[str, Any]:
    given = {"dirpath": None, "filename": None, "save_top_k": 1, "save_last": None, "save_weights_only": False}
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {**given, **options}}


ONE = 1224
SAME = {"filename": "last", "enable_version_counter": False}


@pytest.mark.parametrize(
    ("callbacks", "files"),
    [
        (None, 2),  # Lightning's own, and the one being written
        ([saver(), saver()], 3),
        ([saver(**SAME), saver(**SAME)], 2),  # both write one file
        ([saver(save_top_k=3, save_last=True)], 5),
        ([saver(save_top_k=0)], 1),
        ([saver(), {"class_path": "callbacks.Preemption"}], 3),
    ],
    ids=["default", "two", "same", "several", "none", "preemption"],
)
def test_checkpoints_that_are_kept(callbacks: Any, files: int) -> None:
    trainer = {"callbacks": callbacks, "enable_checkpointing": None, "default_root_dir": "here"}
    (kept,) = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    assert (kept.folder, kept.files, kept.size, kept.needed) == (Path("here"), files, ONE, files * ONE)
    assert not kept.grows


def test_checkpoints_that_are_all_kept_or_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = saver(dirpath=str(tmp_path), save_top_k=-1, save_weights_only=True)
    trainer = {"callbacks": [saver(), elsewhere], "enable_checkpointing": True, "default_root_dir": None}
    here, there = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    assert (here.folder, here.size, here.grows) == (Path(), ONE, False)
    assert (there.folder, there.size, there.grows) == (tmp_path, 420, True)
    off = {"callbacks": None, "enable_checkpointing": False, "default_root_dir": None}
    assert kept_checkpoints(off, run(BackboneConfig()), TENSORS) == []


def test_too_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"callbacks": [saver(save_top_k=-1)], "enable_checkpointing": None, "default_root_dir": "/"}
    kept = kept_checkpoints(trainer, run(BackboneConfig()), TENSORS)
    monkeypatch.setattr("lit_vlaa.placement.free_bytes", lambda _: 2 * ONE)
    (line,) = disk_lines(kept)
    assert "too little" not in line
    assert line.endswith("all are kept, so that there is room for 2")
    monkeypatch.setattr("lit_vlaa.placement.free_bytes", lambda _: 2 * ONE - 1)
    (line,) = disk_lines(kept)
    assert "<- too little: give another --trainer.default_root_dir" in line


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") > 0
