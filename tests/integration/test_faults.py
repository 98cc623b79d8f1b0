"""What can go wrong around a run: each fault ends in one clear line, and what was saved before is whole.

`docs/faults.md` has the table; faults with suites of their own are named there.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch
from lightning.pytorch.loggers.csv_logs import ExperimentWriter as CSVExperimentWriter

from helpers.commands import StopAt, command, lit, logged, started, version
from lit_vlaa import run_logs
from lit_vlaa.checkpoints import newest, problem
from lit_vlaa.run_folder import claim, going_on, release

SAVING = [
    "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.every_n_train_steps=2",
    "--trainer.callbacks.save_top_k=-1",
]


EVEN: dict[str, Any] = {"model__optim__schedule": "constant", "model__optim__warmup_ratio": 0.0}
"""A schedule that does not depend on the run's length."""


def words(data: Path, root: Path, *extra: str, steps: int = 6, kind: str = "sft", **options: Any) -> list[str]:
    short = {"trainer__max_steps": steps, "trainer__limit_val_batches": 0, "trainer__max_epochs": 100}
    short |= {"data__batch_size": 4, **({"model__train_batch_size": 2} if kind == "grpo" else {}), **options}
    return [*command("fit", kind, data, root, **short), *SAVING, *extra]


def whole(root: Path) -> list[Path]:
    """Checkpoints below `root`, each of them whole, and no other file that looks like one."""
    found = sorted(root.rglob("*.ckpt"))
    assert not [path for path in found if problem(path)]
    assert not list(root.rglob("*.part"))
    return found


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = torch.save, 0

    def full(content: Any, file: BinaryIO) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            save(content, file)
            return
        file.write(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("lit_vlaa.checkpoints.torch.save", full)
        assert lit(*words(dataset, tmp_path)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"lit-vlaa: stopped: the checkpoint {version(tmp_path)}")
    assert "No space left on device" in said
    assert "--ckpt_path last" in said
    assert [path.stem for path in whole(tmp_path)] == ["epoch=0-step=2", "epoch=0-step=4"]
    # Room was made: the same run ends as if nothing had been.
    assert lit(*words(dataset, tmp_path, "--ckpt_path=last")) == 0
    assert lit(*words(dataset, tmp_path / "straight")) == 0
    ours, straight = (newest([root], "SFTModule")[0] for root in (version(tmp_path, 1), tmp_path / "straight"))
    assert ours is not None
    assert straight is not None
    ours_state, expected = (torch.load(path, weights_only=True)["state_dict"] for path in (ours, straight))
    assert all(torch.equal(ours_state[name], value) for name, value in expected.items())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of a few megabytes")
def test_a_file_system_that_is_really_full(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", small], check=False).returncode:  # noqa: S607
        pytest.skip("no file system can be mounted here")
    try:
        assert lit(*words(dataset, small)) == 1
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        assert [path.stem for path in whole(small)] == ["epoch=0-step=2"]
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # noqa: S607  # a log may be closed later


@pytest.mark.parametrize("which", ["events", "rows", "header"])
def test_logs_that_cannot_be_written(
    which: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk takes a part of what is written and then no more, but for the checkpoint."""
    owner, name = {
        "events": (run_logs._EventFile, "write"),
        "rows": (CSVExperimentWriter, "save"),
        "header": (run_logs, "replacing"),
    }[which]
    original, calls = getattr(owner, name), 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < {"events": 40, "rows": 4, "header": 1}[which]:
            return original(*args, **kwargs)
        path = {"events": lambda: args[0].path, "rows": lambda: Path(args[0].metrics_file_path)}.get(which)
        if path is not None:
            with path().open("ab") as file:
                file.write(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    every = {"trainer__val_check_interval": 2, "trainer__limit_val_batches": 1} if which == "header" else {}
    options = {"model__optim__lr": 1e-3, "steps": 8, **EVEN, **every}
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert lit(*words(dataset, tmp_path, **options)) == 1
    captured = capfd.readouterr()
    said = captured.err.splitlines()[-1]
    file = "events.out.tfevents" if which == "events" else "metrics.csv"
    assert said.startswith(f"lit-vlaa: stopped: {version(tmp_path)}/{file}")
    assert "could not be written (No space left on device; " in said
    stopped = version(tmp_path) / "checkpoints" / "stopped.ckpt"
    assert f"make room. Go on with --ckpt_path {stopped}" in said
    assert "Traceback" not in captured.err
    assert stopped in whole(tmp_path)
    rows = logged(tmp_path)  # every cell is a number
    assert rows
    (events,) = version(tmp_path).glob("events.out*")
    assert b"a part" not in events.read_bytes() + (version(tmp_path) / "metrics.csv").read_bytes()
    if which != "events":
        return
    # Room was made.
    assert lit(*words(dataset, tmp_path, f"--ckpt_path={stopped}", **options)) == 0
    assert lit(*words(dataset, tmp_path / "straight", **options)) == 0
    name = "epoch=0-step=8.ckpt"
    ends = [version(*run) / "checkpoints" / name for run in ((tmp_path, 1), (tmp_path / "straight", 0))]
    ours, straight = (torch.load(path, weights_only=True)["state_dict"] for path in ends)
    assert all(torch.equal(ours[key], value) for key, value in straight.items())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of a few megabytes")
@pytest.mark.parametrize(("task", "size"), [("fit", 150), ("validate", 4)])
def test_a_file_system_that_logs_fill(
    task: str, size: int, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of kilobytes: amid training, and at the end of a validation."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        short = {"trainer__max_steps": 60, "trainer__limit_val_batches": 1, "data__batch_size": 4}
        assert lit(*command(task, "sft", dataset, small, **(short if task == "fit" else {}))) == 1
        said = capfd.readouterr().err
        assert "No space left on device" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert not whole(small)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # noqa: S607  # a log may be closed later


def test_a_folder_that_cannot_be_written_to(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert lit(*words(dataset, tmp_path / "file" / "runs")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    root = f"--trainer.default_root_dir {tmp_path / 'file' / 'runs'}"
    assert said == f"lit-vlaa: error: {root}: {tmp_path / 'file'} is a file; name a folder"


def test_a_run_that_fails_while_it_is_set_up_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()  # of another run
    faults: list[dict[str, Any]] = [{"data__data_file": "nowhere.json"}, {"model__init_from": "nowhere.ckpt"}]
    for fault in faults:
        assert lit(*words(dataset, tmp_path, **fault)) == 2
        assert list(tmp_path.rglob("*")) == [tmp_path / "version_0"]


def test_a_data_loaders_worker_that_is_killed(dataset: Path, tmp_path: Path) -> None:
    arguments = words(dataset, tmp_path, steps=5000, data__num_workers=1)
    log = tmp_path / "log"
    process = started(arguments, log, cwd=tmp_path)
    end = time.monotonic() + 240
    while not list(tmp_path.rglob("*.ckpt")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    while process.poll() is None:  # between two epochs there is no worker, and one that is done may be killed
        assert time.monotonic() < end, log.read_text()
        with suppress(FileNotFoundError, ProcessLookupError):
            for worker in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(worker), signal.SIGKILL)
        time.sleep(0.1)
    assert process.wait() == 1
    said = log.read_text().splitlines()[-1]
    assert said.startswith("lit-vlaa: stopped: DataLoader worker")
    assert "--data.num_workers" in said
    assert whole(tmp_path)


def test_an_image_that_is_unreadable_amid_an_epoch(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "VLAA-Thinking-SFT.json"
    data = tmp_path / "data"
    rows = [json.loads(line) for line in (dataset / name).read_text().splitlines()[:60]]
    for row in rows:
        target = data / "images" / row["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((dataset / "images" / row["image"]).read_bytes())
    (data / "images" / rows[59]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lit(*words(data, tmp_path / "runs", data__val_file="null", data__batch_size=16)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{name}:60" in said
    assert rows[59]["image"] in said
    whole(tmp_path / "runs")
    assert lit(*words(data, tmp_path / "skipping", data__on_bad_record="skip", data__val_file="null")) == 0


def test_a_clock_that_is_set_back(dataset: Path, tmp_path: Path) -> None:
    assert lit(*words(dataset, tmp_path, steps=4, **EVEN)) == 0
    # Written "in an hour": what comes after it has the earlier time, so that the run goes back to step 4, and repeats.
    for path in whole(tmp_path):
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert lit(*words(dataset, tmp_path, "--ckpt_path=last", steps=6, **EVEN)) == 0
    assert lit(*words(dataset, tmp_path, "--ckpt_path=last", steps=8, **EVEN)) == 0
    assert lit(*words(dataset, tmp_path / "straight", steps=8, **EVEN)) == 0
    states = [
        torch.load(version(root, number) / "checkpoints" / "epoch=0-step=8.ckpt", weights_only=True)["state_dict"]
        for root, number in ((tmp_path, 2), (tmp_path / "straight", 0))
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_two_runs_in_one_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(claim(tmp_path, 0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8))
    release()
    assert not list(tmp_path.iterdir())

    assert lit(*words(dataset, tmp_path, steps=2)) == 0
    (path,) = whole(tmp_path)
    assert going_on(path) is None
    # Another process goes on in that folder.
    lock = path.parents[1] / ".running"
    program = f"import fcntl,sys; f=open({str(lock)!r},'w'); fcntl.flock(f,fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert going_on(path) == path.parents[1]
        assert lit(*words(dataset, tmp_path, "--ckpt_path=last")) == 2
        assert "belongs to a run that is still going on" in capsys.readouterr().err
        assert lit(*words(dataset, tmp_path, f"--ckpt_path={path}", steps=4)) == 0
        # A host that has died loses its lock after a while; the run waits for that, not for a process of its own host.
        lock.write_text("another host")
        assert going_on(path, lease=0) == path.parents[1]
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                other.communicate(b"\n")

        monkeypatch.setattr("lit_vlaa.run_folder.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        assert going_on(path, lease=120) is None
        assert waits == [1.0, 1.0]
    assert lit(*words(dataset, tmp_path, "--ckpt_path=last", steps=4)) == 0


def test_a_run_that_was_refused_leaves_no_folder(dataset: Path, tmp_path: Path) -> None:
    assert lit(*words(dataset, tmp_path, "--data.data_file=missing.json")) == 2
    assert not list(tmp_path.rglob("version_*"))


def test_an_error_of_ones_own_leaves_the_checkpoints(dataset: Path, tmp_path: Path) -> None:
    stop = [
        f"--trainer.callbacks+={StopAt.__module__}.StopAt",
        "--trainer.callbacks.step=5",
        "--trainer.callbacks.error=true",
    ]
    with pytest.raises(RuntimeError, match="the machine went away"):
        lit(*words(dataset, tmp_path, *stop))
    assert len(whole(tmp_path)) == 2
    assert going_on(whole(tmp_path)[0]) is None
