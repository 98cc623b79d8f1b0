"""`--ckpt_path last` goes on from the newest checkpoint that can be read; all ranks stop where one was told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import launch
from helpers.commands import checkpoint, command, lit, version
from lit_vlaa.checkpoints import WholeCheckpointIO, problem
from lit_vlaa.checks import last_checkpoint

CALLBACKS = "--trainer.callbacks"


def words(kind: str, data: Path, root: Path, *extra: str, **options: Any) -> list[str]:
    flags = {"trainer__max_steps": 2, "trainer__max_epochs": 5, "trainer__limit_val_batches": 0, "data__batch_size": 4}
    flags |= {"model__train_batch_size": 2} if kind == "grpo" else {}
    flags |= options
    saving = [
        f"{CALLBACKS}=lightning.pytorch.callbacks.ModelCheckpoint",
        f"{CALLBACKS}.filename=last",
        f"{CALLBACKS}.save_on_train_epoch_end=true",
        f"{CALLBACKS}.enable_version_counter=false",
    ]
    return [*command("fit", kind, data, root, **flags), *saving, *extra]


def steps(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [message for message in caplog.messages if "--ckpt_path" in message]
    caplog.clear()
    return lines


@pytest.fixture
def root(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """Two runs, the second from the first's checkpoint."""
    assert lit(*words("sft", dataset, tmp_path), "--ckpt_path=last") == 0
    assert said(caplog) == [f"--ckpt_path last: none below {tmp_path} yet, the run starts at its beginning"]
    assert lit(*words("sft", dataset, tmp_path, trainer__max_steps=3), "--ckpt_path=last") == 0
    assert said(caplog) == [f"--ckpt_path last: {checkpoint(tmp_path, 'last.ckpt')}"]
    assert steps(checkpoint(tmp_path, "last.ckpt", 1)) == 3
    return tmp_path


def test_a_cut_off_checkpoint_is_passed_over(
    root: Path, dataset: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (checkpoint(root, "last.ckpt", number) for number in range(2))
    os.truncate(second, second.stat().st_size // 2)
    assert lit(*words("sft", dataset, root, trainer__max_steps=4), f"--ckpt_path={second}") == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(
        f"lit-vlaa: error: --ckpt_path {second} is not a checkpoint written by this program, or it is"
    )
    assert lit(*words("sft", dataset, root, trainer__max_steps=4), "--ckpt_path=last") == 0
    passed_over, chosen = said(caplog)
    assert passed_over.startswith(f"--ckpt_path last: passed over, since {second} is not a checkpoint")
    assert chosen == f"--ckpt_path last: {first}"
    os.truncate(first, 1000)
    os.truncate(checkpoint(root, "last.ckpt", 2), 1000)
    assert lit(*words("sft", dataset, root), "--ckpt_path=last") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("lit-vlaa: error: --ckpt_path last: ")]) == 3


def test_a_corrupt_checkpoint_is_named(root: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(root, "last.ckpt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert lit(*words("sft", dataset, root), f"--ckpt_path={path}") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-vlaa: error: ")]
    assert line.startswith(f"lit-vlaa: error: {path} is corrupt: ")


def test_a_folder_of_its_own_is_looked_at_too(dataset: Path, tmp_path: Path) -> None:
    own = f"{CALLBACKS}.dirpath={tmp_path / 'elsewhere'}"
    assert lit(*words("sft", dataset, tmp_path / "runs", own)) == 0
    left = tmp_path / "runs" / "version_0" / "checkpoints" / ".step=3.ckpt.part"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert lit(*words("sft", dataset, tmp_path / "runs", own, trainer__max_steps=3), "--ckpt_path=last") == 0
    assert steps(tmp_path / "elsewhere" / "last.ckpt") == 3
    assert not left.exists(), "a run that was killed left it"


def test_a_loggers_folder_is_looked_at_too(dataset: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    own = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={logs}"]
    assert lit(*words("sft", dataset, tmp_path / "runs", *own)) == 0
    (first,) = logs.rglob("last.ckpt")
    assert lit(*words("sft", dataset, tmp_path / "runs", *own, trainer__max_steps=3), "--ckpt_path=last") == 0
    assert sorted(steps(path) for path in logs.rglob("last.ckpt")) == [2, 3]
    assert steps(first) == 2


@pytest.mark.parametrize(("rank", "taken"), [("1", True), ("0", False)])
def test_started_ranks_take_what_the_first_one_found(
    rank: str, taken: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "trainer": {"default_root_dir": str(root), "callbacks": None, "logger": None},
        "model": {"class_path": "lit_vlaa.sft.SFTModule"},
    }
    first, second = (str(checkpoint(root, "last.ckpt", number)) for number in range(2))
    monkeypatch.setenv("LIT_VLAA_LAST_CHECKPOINT", first)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert last_checkpoint(config, "fit") == (first if taken else second)


def test_the_launcher_is_told_unless_another_rank_has_ended(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "trainer": {"default_root_dir": str(root), "callbacks": None, "logger": None},
        "model": {"class_path": "lit_vlaa.sft.SFTModule"},
    }
    told = tmp_path / "origin"
    monkeypatch.setenv("LIT_VLAA_ORIGIN_FILE", str(told))
    monkeypatch.setenv("LIT_VLAA_LAST_CHECKPOINT", "")
    path = checkpoint(root, "last.ckpt", 1)
    assert last_checkpoint(config, "fit") == str(path)
    assert not told.exists()
    told.write_text("x" * 1000)
    last_checkpoint(config, "fit")
    assert told.read_text() == f"{path}\n{path.stat().st_mtime_ns}"


def test_there_must_be_one_to_evaluate(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lit(*command("validate", "sft", dataset, tmp_path), "--ckpt_path=last") == 2
    assert f"lit-vlaa: error: --ckpt_path last: none is below {tmp_path}" in capsys.readouterr().err


def test_all_ranks_stop_where_one_was_told(dataset: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    """Amid a rollout, with folders for checkpoints; then a run goes on bit by bit as if nothing had happened."""
    options: dict[str, Any] = {
        "trainer__devices": 2,
        "trainer__strategy": "fsdp2_sharded",
        "trainer__max_steps": 4,
        "model__init_from": sft_checkpoint,
    }
    told = [f"{CALLBACKS}+=callbacks.Preemption", f"{CALLBACKS}+=helpers.interruptions.SignalAt"]
    told += [f"{CALLBACKS}.step=2", f"{CALLBACKS}.rank=1"]
    commands = [
        words("grpo", dataset, tmp_path / "told", *told, **options),
        words("grpo", dataset, tmp_path / "told", "--ckpt_path=last", **options),
        words("grpo", dataset, tmp_path / "straight", **options),
    ]
    ports = [launch.free_port() for _ in commands]
    codes = launch.run_ranks("helpers.commands:run_all", timeout=240, commands=commands, ports=ports)
    assert codes == [[143, 0, 0]] * 2
    preempted = WholeCheckpointIO().load_checkpoint(checkpoint(tmp_path / "told", "preempted.ckpt"))
    assert preempted["global_step"] == 3
    assert len(preempted["unfinished_rollout"]["norms"]) == 1
    paths = checkpoint(tmp_path / "told", "last.ckpt", 1), checkpoint(tmp_path / "straight", "last.ckpt")
    one, other = map(WholeCheckpointIO().load_checkpoint, paths)
    assert one["global_step"] == other["global_step"] == 4
    for name, value in other["state_dict"].items():
        assert torch.equal(one["state_dict"][name], value)


def test_a_job_that_is_told_to_go_as_a_whole(dataset: Path, tmp_path: Path) -> None:
    """By Lightning's own launcher, with workers that load data: every process of the job gets the signal."""
    options: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp", "data__num_workers": 1}
    told = [f"{CALLBACKS}+=callbacks.Preemption", f"{CALLBACKS}+=helpers.interruptions.SignalAt"]
    told += [f"{CALLBACKS}.step=1", f"{CALLBACKS}.group=true"]
    environment = launch.environment_of_rank(0, 1, launch.free_port())
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK"):
        del environment[name]
    result = subprocess.run(
        [sys.executable, "-m", "lit_vlaa", *words("sft", dataset, tmp_path, *told, trainer__max_steps=6, **options)],
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 143, result.stderr[-3000:]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("lit-vlaa: ")]
    assert line.startswith("lit-vlaa: SIGTERM: stopped at step 2; go on with: lit-vlaa fit ")
    assert problem(checkpoint(tmp_path, "preempted.ckpt")) == ""
    assert not (version(tmp_path, 1)).exists()


def test_ranks_that_find_different_checkpoints_do_not_begin(root: Path, dataset: Path, tmp_path_factory: Any) -> None:
    own = [
        words("sft", dataset, folder, "--ckpt_path=last", trainer__devices=2, trainer__max_steps=4)
        for folder in (root, tmp_path_factory.mktemp("elsewhere"))
    ]
    path = checkpoint(root, "last.ckpt", 1)
    for told in launch.run_ranks("helpers.commands:run_own", commands=own):
        assert told.startswith(f"--ckpt_path last: rank 0 found {path}, rank 1 None; start again"), told
