"""Reading what `fsdp2_sharded` saved: tensors and plain values alone, whatever the folder's files say."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from lit_vlaa.shard_index import read_index


class _Reader(FileSystemReader):
    """Takes an index that `read_index` has checked; of tensors PyTorch's own reader takes tensors alone."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self.index = index

    def read_metadata(self) -> Metadata:  # without the option of an index for each rank, as none is ever written
        return self.index


class _Planner(DefaultLoadPlanner):
    """Takes of what is no tensor only what can be read without running code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever hostile bytes provoke
            raise ValueError(f"{name} is more than tensors and plain values, which can run code") from error
        # What is written anew holds nothing that the original could hide from one reader and show to another.
        again = io.BytesIO()
        torch.save(plain, again)
        super().load_bytes(read_item, io.BytesIO(again.getvalue()))


def read_shards(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Reads from a sharded folder into main memory.

    Args:
        folder: The folder.
        wanted: Chooses by names such as `state_dict.a.weight` and `optimizer_0.state.a.weight.exp_avg`.

    Returns:
        What was chosen, nested as it was saved: `state_dict` and `optimizer_0`, `optimizer_1` and so on.

    Raises:
        ValueError: If the folder holds anything but tensors and plain values; one line that names the file.
    """
    metadata = read_index(folder)
    flat: dict[str, Any] = {
        name: torch.empty(item.size, dtype=item.properties.dtype) if isinstance(item, TensorStorageMetadata) else None
        for name, item in metadata.state_dict_metadata.items()
        if wanted(name)
    }
    if not flat:
        return {}
    _load(flat, folder, metadata, no_dist=True)
    nested: dict[str, Any] = unflatten_state_dict(flat, metadata.planner_data)
    return nested


def load_into(state: dict[str, Any], folder: Path) -> None:
    """Fills the tensors of a nested state, sharded or not, in place; every rank must call it.

    Args:
        state: With the names that the folder has.
        folder: A sharded folder.

    Raises:
        ValueError: As for `read_shards`, and if the folder lacks a name.
    """
    _load(state, folder, read_index(folder), no_dist=False)


def _load(state: dict[str, Any], folder: Path, index: Metadata, *, no_dist: bool) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=_Reader(folder, index), planner=_Planner(), no_dist=no_dist)
    except CheckpointException as error:  # no Exception to PyTorch, with the traceback of every rank as its text
        cause, _ = next(iter(error.failures.values()))
        why = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise ValueError(f"{folder} cannot be read: {why}") from error
