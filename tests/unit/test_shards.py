"""Sharded folders are read as tensors and plain values: nothing that an index or a shard says is run, or believed."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from helpers.hostile_shards import SHARD, Trap, index, replace_item, rewrite
from helpers.launch import alone
from lit_vlaa.checkpoints import WholeCheckpointIO, save_sharded
from lit_vlaa.shard_index import read_index
from lit_vlaa.shards import load_into, read_shards

WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.bfloat16), "empty": torch.zeros(0, 5)}
GROUP = {"params": ["a"], "lr": 0.5, "betas": (0.9, 0.99), "fused": None, "amsgrad": False}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with alone(tmp_path_factory.mktemp("group")):
        yield


@pytest.fixture
def folder(group: None, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "a.ckpt"
    states = [
        {"state": {"a": {"step": torch.tensor(3.0), "exp_avg": torch.arange(4.0)}}, "param_groups": [dict(GROUP)]}
    ]
    save_sharded({"loops": {}, "state_dict": dict(WEIGHTS), "optimizer_states": states}, path)
    return path


def everything(folder: Path) -> dict[str, Any]:
    return read_shards(folder, lambda _: True)


def refusal(folder: Path, file: str) -> str:
    """What every way into a folder says, in one line that names the file, and having run nothing."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: everything(folder),
        lambda: WholeCheckpointIO().load_checkpoint(folder),
        lambda: WholeCheckpointIO().load_checkpoint(folder, weights_only=False),
        lambda: load_into(
            {"state_dict": {"a": torch.zeros(4)}, "optimizer_0": {"param_groups": [dict(GROUP)]}}, folder
        ),
    )
    said = set()
    for way in ways:
        with pytest.raises(ValueError, match=r"a\.ckpt") as caught:
            way()
        said.add(str(caught.value))
    assert not (folder.parent / "sprung").exists()
    (line,) = said
    assert "\n" not in line
    assert line.startswith(str(folder / file) if file else str(folder))
    return line


def test_honest_folders_give_what_was_saved(folder: Path) -> None:
    found = everything(folder)
    assert found.keys() == {"state_dict", "optimizer_0"}
    for name, value in WEIGHTS.items():
        assert found["state_dict"][name].dtype == value.dtype
        assert torch.equal(found["state_dict"][name], value)
    assert found["optimizer_0"]["param_groups"] == [GROUP]
    assert found["optimizer_0"]["state"]["a"]["step"] == 3
    state = {"state_dict": {"a": torch.zeros(4)}}
    load_into(state, folder)
    assert torch.equal(state["state_dict"]["a"], WEIGHTS["a"])


def test_the_index_is_as_pytorch_reads_it(folder: Path) -> None:
    ours, theirs = read_index(folder), index(folder)
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data


def test_names_that_other_releases_write(folder: Path) -> None:
    """Python 3.13 keeps paths in another module; early 3.11 pickles members of enumerations by `getattr`."""
    raw = (folder / ".metadata").read_bytes()
    module, newer = b"\x8c\x07pathlib", b"\x8c\x0epathlib._local"
    assert raw.count(module) == 1
    rewrite(folder, lambda found: pickle.dumps(found, protocol=5))
    everything(folder)
    without_frames = pickle.dumps(index(folder), protocol=4)
    start = without_frames.index(b"\x95")
    rewrite(folder, lambda _: (without_frames[:start] + without_frames[start + 9 :]).replace(module, newer))
    everything(folder)


def test_a_callable_in_the_index_is_not_run(folder: Path) -> None:
    trap = Trap(folder.parent / "sprung")
    honest = index(folder)
    rewrite(folder, lambda _: trap)
    assert "it names helpers.hostile_shards._touch, which can run code" in refusal(folder, ".metadata")
    rewrite_at = {"planner_data": trap, "storage_meta": trap, "state_dict_metadata": {"state_dict.a": trap}}
    for name, value in rewrite_at.items():
        before = getattr(honest, name)
        setattr(honest, name, value)
        (folder / ".metadata").write_bytes(pickle.dumps(honest))
        setattr(honest, name, before)
        with pytest.raises(ValueError, match="which can run code"):
            everything(folder)
    assert not (folder.parent / "sprung").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"cos\nsystem\n(S'touch sprung'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x0dserialization\x93.",
        b"\x80\x04\x8c\x05torch\x8c\x13distributed.__dict__\x93.",
        b"\x80\x04\x82\x01.",  # an extension by number
        b"\x80\x04r\xff\xff\xff\xff.",  # a memory slot of a number that the one in C would make room for
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",  # as many bytes
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x05torch\x8c\x04Size\x93\x8c\x07__new__\x86R.",
        b"\x80\x04\x8c\x05torch\x8c\x04Size\x93}\x8c\x04args\x8c\x01xs\x86b.",  # changes a class for all to come
        b"\x80\x04}.",
        b"\x80\x04]\x85.",
        b"\x80\x04",
        b"",
        b"\xff" * 64,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_hostile_pickles(line: bytes, folder: Path) -> None:
    rewrite(folder, lambda _: line)
    assert "is no index of PyTorch's" in refusal(folder, ".metadata")


def _first(found: Any, name: str = "state_dict.a") -> Any:
    return next(place for key, place in found.storage_data.items() if key.fqn == name)


def _set(target: Callable[[Any], Any], **fields: Any) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        for name, value in fields.items():
            object.__setattr__(target(found), name, value)
        return found

    return change


def _tensor(found: Any) -> Any:
    return found.state_dict_metadata["state_dict.a"]


def _without_places(found: Any) -> Any:
    chunks = _tensor(found).chunks
    chunks[:] = chunks * 50
    return found


CLAIMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "file elsewhere": (_set(_first, relative_path="../../../etc/passwd"), "none of the folder's shards"),
    "another file": (_set(_first, relative_path="meta.pt"), "none of the folder's shards"),
    "no such shard": (_set(_first, relative_path="__7_0.distcp"), "none of the folder's shards"),
    "beyond the end": (_set(_first, offset=10**9), f"beyond the end of {SHARD}"),
    "ahead of the start": (_set(_first, offset=-5), "'-5' where a count belongs"),
    "compressed": (_set(_first, transform_descriptors=["zstd"]), "compressed or transformed"),
    "no number": (_set(_first, length="all"), "'all' where a count belongs"),
    "huge tensor": (_set(_tensor, size=torch.Size([2**40])), "do not make it up"),
    "huge chunk": (
        _set(lambda found: _tensor(found).chunks[0], sizes=torch.Size([2**40])),
        "a chunk beyond its tensor",
    ),
    "many chunks": (_without_places, "do not make it up|more chunks"),
    "no type": (_set(lambda found: _tensor(found).properties, dtype="float32"), "without a type of numbers"),
    "other things": (_set(lambda found: found, state_dict_metadata=[1]), "list where a dict belongs"),
    "a long list": (
        lambda found: found.planner_data.update({"state_dict.a": ("state_dict", 2**60)}) or found,
        "something else than names and places",
    ),
    "no path": (lambda found: found.planner_data.update({"state_dict.a": ()}) or found, "an item without a path"),
    "a path that is missing": (lambda found: found.planner_data.clear() or found, "holds or lacks 'state_dict"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_what_an_index_claims_is_checked(name: str, folder: Path) -> None:
    change, why = CLAIMS[name]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=why):
        everything(folder)
    refusal(folder, ".metadata")


def test_a_claim_of_more_than_the_files_hold(folder: Path) -> None:
    """Chunks that fit their tensor, in a folder of a few kilobytes."""

    def change(found: Any) -> Any:
        size = torch.Size([2**40])
        _tensor(found).size, _tensor(found).chunks[0].sizes = size, size
        return found

    rewrite(folder, change)
    assert "it claims 4398046511" in refusal(folder, ".metadata")


NAME = "optimizer_0.param_groups.0.lr"


def test_code_in_a_shard_is_not_run(folder: Path) -> None:
    """Where a plain value lay, and where a tensor did."""
    content = io.BytesIO()
    torch.save(Trap(folder.parent / "sprung"), content)
    replace_item(folder, NAME, content.getvalue())
    assert f"cannot be read: {NAME} is more than tensors and plain values" in refusal(folder, "")
    honest = io.BytesIO()
    torch.save(0.5, honest)
    replace_item(folder, NAME, honest.getvalue())
    everything(folder)
    replace_item(folder, "state_dict.a", content.getvalue())
    refusal(folder, "")


@pytest.mark.parametrize(
    "value",
    [{"a": torch.arange(4.0)}, torch.arange(3.0), torch.arange(5.0).reshape(1, 5)],
    ids=["dict", "short", "dims"],
)
def test_a_shard_that_holds_something_else(value: Any, folder: Path) -> None:
    content = io.BytesIO()
    torch.save(value, content)
    replace_item(folder, "state_dict.a", content.getvalue())
    refusal(folder, "")


def test_raw_pickles_in_shards_are_not_run(folder: Path) -> None:
    """The oldest form of PyTorch's files is a pickle from the first byte."""
    for name in (NAME, "state_dict.a"):
        replace_item(folder, name, pickle.dumps(Trap(folder.parent / "sprung")))
        refusal(folder, "")


def test_a_missing_item_is_named(folder: Path) -> None:
    def change(found: Any) -> Any:
        del found.storage_data[MetadataIndex(NAME)]
        return found

    rewrite(folder, change)
    assert NAME in refusal(folder, "")
