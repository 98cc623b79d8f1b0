from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from helpers.hostile_shards import Trap
from helpers.launch import alone as process_group
from helpers.modules import InMemoryData, make_module, quiet_trainer
from helpers.scripted_http import Reply, in_turn, scripted
from lit_vlaa.checkpoints import (
    WholeCheckpointIO,
    is_sharded_checkpoint,
    newest,
    problem,
    save_sharded,
)
from lit_vlaa.whole_files import replacing

CONTENT: dict[str, Any] = {"loops": {}, "optimizer_states": [{}], "state_dict": {"weight": torch.arange(5000.0)}}


def write(path: Path, age: int = 0, **content: Any) -> Path:
    """A whole checkpoint that was written `age` seconds ago."""
    WholeCheckpointIO().save_checkpoint({**CONTENT, **content}, path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    with process_group(tmp_path):
        yield


def sharded(path: Path) -> dict[str, Any]:
    """Writes a folder; returns what its run had, in the form of a file."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0)}
    groups = [{"params": ["b"], "lr": 0.5, "betas": (0.9, 0.99)}, {"params": ["a"], "lr": 0.25, "betas": (0.9, 0.99)}]
    weights = {"a": torch.arange(4.0), "b": torch.ones(2, 3)}
    states = [{"state": {"a": moments, "b": dict(moments)}, "param_groups": groups}]
    save_sharded({"global_step": 7, "loops": {}, "state_dict": dict(weights), "optimizer_states": states}, path)
    numbers = [{**group, "params": [place]} for place, group in enumerate(groups)]
    return {
        "global_step": 7,
        "loops": {},
        "state_dict": weights,
        # Numbers follow the groups: b comes first.
        "optimizer_states": [{"state": {1: moments, 0: moments}, "param_groups": numbers}],
    }


def test_a_whole_file_has_no_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "run" / "a.ckpt", module="M")
    assert problem(path) == ""
    loaded = WholeCheckpointIO().load_checkpoint(path)
    assert loaded["module"] == "M"
    assert torch.equal(loaded["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert names(path.parent) == ["a.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97, 0.999])
def test_a_file_cut_off_anywhere_is_found_out(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    os.truncate(path, int(path.stat().st_size * share))
    assert "cut off" in problem(path)
    with pytest.raises(ValueError, match=r"a\.ckpt is not a checkpoint written by this program, or it is cut off"):
        WholeCheckpointIO().load_checkpoint(path)


def test_a_changed_byte_is_found_out(tmp_path: Path) -> None:
    """PyTorch itself would load it."""
    path = write(tmp_path / "a.ckpt")
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(2000.0, 2100.0).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["state_dict"]["weight"][2000] != 2000
    with pytest.raises(ValueError, match=r"a\.ckpt is corrupt: .*data.* has changed since it was written"):
        WholeCheckpointIO().load_checkpoint(path)


def test_what_is_no_checkpoint_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "text.ckpt").write_text("weights")
    assert problem(tmp_path / "none.ckpt") == "does not exist"
    assert problem(tmp_path / "folder.ckpt") == "is a folder but no checkpoint"
    inside = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert problem(tmp_path / "run") == f"is a folder but no checkpoint; did you mean {inside}?"
    assert "is not a checkpoint" in problem(tmp_path / "text.ckpt")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state": Path("x")}, path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        WholeCheckpointIO().load_checkpoint(path)
    assert WholeCheckpointIO().load_checkpoint(path, weights_only=False) == {"state": Path("x")}


def test_code_behind_an_address_is_not_run_either(tmp_path: Path) -> None:
    """Of those that begin with http Lightning would read anything, unless it is told not to."""
    content = io.BytesIO()
    torch.save({"state": Trap(tmp_path / "sprung")}, content)
    with scripted(in_turn(Reply(content.getvalue()))) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path / "home"))
        there = SimpleNamespace(exists=lambda _: True)
        patch.setattr("lightning.fabric.plugins.io.torch_io.get_filesystem", lambda _: there)
        with pytest.raises(Exception, match="Weights only load failed"):
            WholeCheckpointIO().load_checkpoint(f"{server.url}/a.ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("form", ["compressed", "overlapping"])
def test_a_file_that_would_unpack_to_more_than_it_holds(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    data = next(name for name in members if name.endswith("data/0"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED) as archive:
        for name, content in (members | {data: bytes(len(members[data]))}).items():
            archive.writestr(name, content)
        if form == "overlapping":
            twin = copy(archive.getinfo(data))
            twin.filename = twin.orig_filename = data.replace("data/0", "data/1")
            archive.filelist.append(twin)
    assert "would unpack to more than it holds" in problem(path)
    with pytest.raises(ValueError, match=r"a\.ckpt is not a checkpoint written by this program: it would unpack"):
        WholeCheckpointIO().load_checkpoint(path)


def test_an_error_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", step=1)

    def full(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"), replacing(path) as part:
        full(part)
    assert names(tmp_path) == ["a.ckpt"]
    assert WholeCheckpointIO().load_checkpoint(path)["step"] == 1


def test_nothing_under_a_name_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with replacing(path) as part:
        part.write_bytes(b"whole")
        assert not path.exists()
        assert newest([tmp_path], "M") == (None, [])
    assert path.read_bytes() == b"whole"


def test_what_a_killed_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.ckpt.part").write_bytes(b"half")
    write(tmp_path / "a.ckpt")
    assert names(tmp_path) == ["a.ckpt"]


@pytest.mark.usefixtures("alone")
class TestFolders:
    def test_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "runs" / "a.ckpt"
        assert not is_sharded_checkpoint(path)
        sharded(path)
        assert is_sharded_checkpoint(path)
        assert problem(path) == ""
        assert names(path.parent) == ["a.ckpt"]

    def test_reads_as_a_file(self, tmp_path: Path) -> None:
        expected = sharded(tmp_path / "a.ckpt")
        loaded = WholeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
        assert {name: loaded[name] for name in ("global_step", "loops")} == {"global_step": 7, "loops": {}}
        assert loaded.keys() == expected.keys()
        torch.testing.assert_close(loaded["state_dict"], expected["state_dict"], rtol=0, atol=0)
        (state,), (wanted,) = loaded["optimizer_states"], expected["optimizer_states"]
        assert state["param_groups"] == wanted["param_groups"]
        torch.testing.assert_close(state["state"], wanted["state"], rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.pt"])
    @pytest.mark.parametrize("harm", ["missing", "cut off", "changed"])
    def test_harm_is_found_out(self, name: str, harm: str, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        sharded(path)
        file = path / name
        if harm == "missing":
            file.unlink()
        elif harm == "cut off":
            os.truncate(file, file.stat().st_size - 1)
        else:
            data = bytearray(file.read_bytes())
            data[data.index(b"global_step") if name == "meta.pt" else len(data) // 2] ^= 1
            file.write_bytes(data)
        fault = problem(path)
        assert fault
        if name != "meta.pt":
            assert name in fault
        with pytest.raises(ValueError, match=r"a\.ckpt "):
            WholeCheckpointIO().load_checkpoint(path)

    def test_take_each_others_place(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ckpt"
        for _ in range(2):
            sharded(path)
            assert problem(path) == ""
        write(path)
        assert path.is_file()
        sharded(path)
        assert path.is_dir()
        assert names(tmp_path) == ["a.ckpt", "group"]

    def test_one_is_there_when_the_run_dies_between_two_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.ckpt"
        sharded(path)
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sharded(path)
        monkeypatch.undo()
        assert newest([tmp_path], "M") == (tmp_path / "a.replaced.ckpt", [])
        sharded(path)
        assert names(tmp_path) == ["a.ckpt", "group"]

    def test_weights_alone_are_no_run_to_go_on_from(self, tmp_path: Path) -> None:
        whole, weights = tmp_path / "whole.ckpt", tmp_path / "weights.ckpt"
        sharded(whole)
        os.utime(whole / "meta.pt", (0, 0))
        save_sharded({"loops": {}, "state_dict": {"a": torch.arange(4.0)}}, weights)
        assert newest([tmp_path], "M") == (whole, [])
        loaded = WholeCheckpointIO().load_checkpoint(weights)
        # A strategy without shards would otherwise go on with an optimiser that knows nothing.
        assert loaded.keys() == {"loops", "state_dict"}

    def test_what_killed_runs_left_is_removed(self, tmp_path: Path) -> None:
        part = tmp_path / ".step=3.ckpt.part"
        part.mkdir()
        (part / "__0_0.distcp").write_bytes(b"half")
        for path in (part / "__0_0.distcp", part):
            os.utime(path, (0, 0))
        sharded(tmp_path / "step=4.ckpt")
        assert names(tmp_path) == ["group", "step=4.ckpt"]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    for name in (".step=3.ckpt.part", ".step=2.ckpt.part", "step=1.ckpt", ".other.part"):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".step=2.ckpt.part").write_bytes(b"another process writes this")
    write(tmp_path / "step=4.ckpt")
    assert names(tmp_path) == [".other.part", ".step=2.ckpt.part", "step=1.ckpt", "step=4.ckpt"]


def test_the_newest_is_found_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "version_0" / "checkpoints" / "last.ckpt", age=20)
    latest = write(tmp_path / "version_1" / "checkpoints" / "preempted.ckpt", age=10)
    write(tmp_path / "hpc_ckpt_1.ckpt", age=15)
    assert newest([tmp_path, tmp_path / "version_0"], "M") == (latest, [])


def test_what_no_run_can_go_on_from_is_passed_over(tmp_path: Path) -> None:
    good = write(tmp_path / "good.ckpt", age=30, module="Mine")
    write(tmp_path / "other.ckpt", age=20, module="Other")
    weights = tmp_path / "weights.ckpt"
    WholeCheckpointIO().save_checkpoint({"loops": {}, "state_dict": {}}, weights)
    torch.save({"optimizer_states": [{}]}, tmp_path / "no_run.ckpt")
    assert newest([tmp_path], "Mine") == (good, [])
    torn = write(tmp_path / "torn.ckpt", age=-20)
    os.truncate(torn, 100)
    found, passed_over = newest([tmp_path], "Mine")
    assert found == good
    (line,) = passed_over
    assert line.startswith(f"{torn} is not a checkpoint")


@pytest.mark.parametrize(
    ("content", "line"),
    [(Path("x"), "cannot be read as tensors and plain values: .*"), ([1.0], "holds no training run")],
)
def test_other_programs_files_are_passed_over(content: Any, line: str, tmp_path: Path) -> None:
    good = write(tmp_path / "good.ckpt", age=20)
    torch.save(content, tmp_path / "other.ckpt")
    found, (said,) = newest([tmp_path], "M")
    assert found == good
    assert re.fullmatch(f"{tmp_path}/other.ckpt {line}", said)


@pytest.mark.parametrize("look", ["pathlib.Path.resolve", "lit_vlaa.checkpoints.problem"])
def test_a_file_that_vanishes_is_passed_over(look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there when the search begins, and gone after one of the looks at it."""
    good, gone = write(tmp_path / "good.ckpt", age=20), write(tmp_path / "gone.ckpt")
    original = Path.resolve if look.endswith("resolve") else problem

    def and_gone(path: Path) -> Any:
        result = original(path)
        if path == gone:
            gone.unlink(missing_ok=True)
        return result

    monkeypatch.setattr(look, and_gone)
    found, (line,) = newest([tmp_path], "M")
    assert found == good
    assert line.startswith(f"{gone} ")


def test_older_ones_are_not_looked_at(tmp_path: Path) -> None:
    os.truncate(write(tmp_path / "torn.ckpt", age=20), 100)
    good = write(tmp_path / "good.ckpt")
    assert newest([tmp_path], "M") == (good, [])


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_runs_write_whole_checkpoints_unless_told_otherwise(kind: str) -> None:
    class Own(TorchCheckpointIO):
        pass

    for given, wanted in ((None, WholeCheckpointIO), (Own(), Own)):
        trainer = quiet_trainer(limit_train_batches=1, plugins=None if given is None else [given])
        trainer.fit(make_module(kind), datamodule=InMemoryData(kind))
        assert type(trainer.strategy.checkpoint_io) is wanted
