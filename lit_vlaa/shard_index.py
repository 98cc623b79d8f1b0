"""The index of a sharded checkpoint folder, read without running what it says.

PyTorch stores it as a pickle, which can name any function to call. Here a pickle may name what PyTorch's own indexes
name and nothing else, and even those names stand for inert objects; what comes of it is checked field by field, and
only then made into PyTorch's classes. The names are those of PyTorch 2.11 to 2.13.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

INDEX = ".metadata"
"""The index's name in its folder."""

_SHARD = re.compile(r"__\d+_\d+\.distcp")


class _Part:
    """Stands for an object of an index: keeps what it is made with, and does nothing."""

    def __new__(cls, *args: Any) -> _Part:  # noqa: PYI034  # a subclass is made by name
        part = super().__new__(cls)
        part.args = args
        part.state = None
        return part

    args: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def fields(self) -> dict[str, Any]:
        """The fields of a data class.

        Raises:
            ValueError: If it was kept in another form.
        """
        if not isinstance(self.state, dict):
            raise ValueError(f"a {type(self).__name__} without fields")  # noqa: TRY004  # a fault of the file
        return self.state


_METADATA = "torch.distributed.checkpoint.metadata"

_NAMES: Mapping[tuple[str, str], type[_Part]] = {
    (module, name): type(name, (_Part,), {})
    for module, names in {
        _METADATA: (
            "Metadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch": ("Size",),
        "torch.serialization": ("_get_layout",),
        "pathlib": ("PosixPath", "WindowsPath"),
        "pathlib._local": ("PosixPath", "WindowsPath"),  # as Python 3.13 spells them
        "builtins": ("getattr",),  # by which early releases of Python 3.11 pickle members of enumerations
    }.items()
    for name in names
}
"""All that an index may name besides the types of numbers, and what it gets for it."""

_OPCODES = frozenset(
    (
        *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
        *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2),
        *(pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM),
        *(pickle.SETITEMS, pickle.STACK_GLOBAL, pickle.NEWOBJ, pickle.REDUCE, pickle.BUILD),
    )
)
"""The instructions of which indexes consist; others could ask for memory without end."""


# The one in C takes a memory slot for every number that a file names, up to 64 GiB of them.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    dispatch = {  # noqa: RUF012  # its class has it so
        code: load
        for code, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined,unused-ignore]
        if bytes([code]) in _OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        kind = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(kind, torch.dtype):
            return kind
        raise pickle.UnpicklingError(f"it names {module}.{name}, which can run code and has no place in an index")


def read_index(folder: Path) -> Metadata:
    """Reads and checks the index of a sharded folder.

    Args:
        folder: The folder.

    Raises:
        ValueError: If the index is no such thing, or claims what the folder's files cannot hold; the message is one
            line that names the file.
    """
    file = folder / INDEX
    try:
        root = _Unpickler(io.BytesIO(file.read_bytes())).load()
        return _metadata(root, {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()})
    except KeyError as error:
        raise ValueError(f"{file} is no index of PyTorch's: it holds or lacks {error}") from error
    except Exception as error:  # whatever a hostile pickle provokes
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is no index of PyTorch's: {why}") from error


def _metadata(root: Any, files: Mapping[str, int]) -> Metadata:
    """Makes PyTorch's object.

    Args:
        root: What the pickle held.
        files: Bytes of the folder's files by name.
    """
    fields = _part(root, "Metadata").fields()
    stored = dict(_stored(fields["storage_data"], files))
    items = _dict(fields["state_dict_metadata"])
    tensors = {name: _tensor(item) for name, item in items.items() if type(item).__name__ != "BytesStorageMetadata"}
    # One list of chunks can stand for many tensors, so that a small file could claim a product of its parts.
    if sum(len(tensor.chunks) for tensor in tensors.values()) > len(stored):
        raise ValueError("it has more chunks than places for them")
    claimed = sum(tensor.size.numel() * tensor.properties.dtype.itemsize for tensor in tensors.values())
    if claimed > sum(files.values()):
        raise ValueError(f"it claims {claimed} bytes of tensors, and the folder's files have {sum(files.values())}")
    paths = _dict(fields["planner_data"])
    return Metadata(
        state_dict_metadata={_text(name): tensors.get(name) or BytesStorageMetadata() for name in items},
        planner_data={name: _keys(paths[name], most=len(items)) for name in items},
        storage_data=stored,
        storage_meta=StorageMeta(),
    )


def _stored(data: Any, files: Mapping[str, int]) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    """Where each item lies."""
    for key, value in _dict(data).items():
        named, place = _part(key, "MetadataIndex").fields(), _part(value, "_StorageInfo").fields()
        offset = named.get("offset")
        path, start, length = _text(place["relative_path"]), _natural(place["offset"]), _natural(place["length"])
        if not _SHARD.fullmatch(path) or path not in files:
            raise ValueError(f"it points to {path!r}, which is none of the folder's shards")
        if start + length > files[path]:
            raise ValueError(f"it points beyond the end of {path}")
        if place.get("transform_descriptors"):
            raise ValueError("its shards are compressed or transformed, which this program never does")
        hint = named.get("index")
        index = MetadataIndex(
            _text(named["fqn"]), None if offset is None else _size(offset), None if hint is None else _natural(hint)
        )
        yield index, _StorageInfo(path, start, length)


def _tensor(item: Any) -> TensorStorageMetadata:
    fields = _part(item, "TensorStorageMetadata").fields()
    dtype = _part(fields["properties"], "TensorProperties").state[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a type of numbers")  # noqa: TRY004  # a fault of the file
    size = _size(fields["size"])
    chunks = []
    for chunk in _list(fields["chunks"]):
        inner = _part(chunk, "ChunkStorageMetadata").fields()
        offsets, sizes = _size(inner["offsets"]), _size(inner["sizes"])
        within = len(offsets) == len(sizes) == len(size)
        if not within or any(o + s > n for o, s, n in zip(offsets, sizes, size, strict=True)):
            raise ValueError("a chunk beyond its tensor")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
    if sum(chunk.sizes.numel() for chunk in chunks) != size.numel():
        raise ValueError("the chunks of a tensor do not make it up")
    return TensorStorageMetadata(TensorProperties(dtype), size, chunks)


def _part(value: Any, name: str) -> _Part:
    if not isinstance(value, _Part) or type(value).__name__ != name:
        raise ValueError(f"{type(value).__name__} where {name} belongs")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} where a dict belongs")  # noqa: TRY004  # a fault of the file
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} where a list belongs")  # noqa: TRY004  # a fault of the file
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a name belongs")  # noqa: TRY004  # a fault of the file
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]!r} where a count belongs")
    return value


def _size(value: Any) -> torch.Size:
    (numbers,) = _part(value, "Size").args
    size = torch.Size([_natural(number) for number in numbers])
    if math.prod(size) >= 2**63:
        raise ValueError("a tensor larger than any memory")
    return size


def _keys(value: Any, *, most: int) -> tuple[str | int, ...]:
    """The path to an item in nested dicts and lists; lists are made as long as their highest place asks for."""
    if not isinstance(value, tuple) or not value or not isinstance(value[0], str):
        raise ValueError("an item without a path")
    if not all(isinstance(key, str) or (type(key) is int and 0 <= key < most) for key in value):
        raise ValueError("a path that consists of something else than names and places")
    return value
