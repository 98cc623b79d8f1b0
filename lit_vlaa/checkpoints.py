"""Checkpoints on disk: written whole or not at all, checked before they are read, and found again after a crash.

A checkpoint is a file, or a folder where `fsdp2_sharded` wrote it. Either is written beside its place under a hidden
name (`.NAME.part`), brought to the disk and renamed; what a killed run leaves of one is never taken for a checkpoint. A
folder cannot take another's place in one step: for an instant the old one is called `NAME.replaced.ckpt`.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from lit_vlaa.optimizer_states import numbered

SHARDED_METADATA = "meta.pt"
"""The file that marks a folder as a sharded checkpoint of Lightning's."""

MODULE = "module"
"""Key of the name of the module that wrote a checkpoint."""

_PARTS = "parts"
"""Key of a sharded folder's files in its metadata: for each name its bytes and their CRC-32."""

_CHUNK = 2**22


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes files that are whole or not there, and reads nothing that is cut off or corrupt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a file; one of that name stays until the new one is on the disk.

        Args:
            checkpoint: Tensors and primitives.
            path: A local path, or an address that fsspec knows, whose store then sees to wholeness.
            storage_options: Refused, as by Lightning.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(Path(path)) as part:
            _write(checkpoint, part)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file or a sharded folder, as tensors and primitives alone unless `weights_only` is False.

        The index of a sharded folder is a pickle of PyTorch's: read only folders that you trust.

        Raises:
            ValueError: If the checkpoint is not there, cut off or corrupt.
        """
        if not _is_local_file_protocol(path):
            return super().load_checkpoint(path, map_location, weights_only)
        path = Path(path)
        if fault := problem(path):
            raise ValueError(f"{path} {fault}")
        if is_sharded_checkpoint(path):
            return _read_sharded(path)
        return super().load_checkpoint(path, map_location, True if weights_only is None else weights_only)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a hidden path beside `path` to write to, and puts what is there at the end in the place of `path`.

    After an error `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    _remove(part)
    try:
        yield part
    except BaseException:
        _remove(part)
        raise
    _put_in_place(part, path)


def is_sharded_checkpoint(path: Path) -> bool:
    """Tells whether `path` is a folder that FSDP2 saved with one file per rank."""
    return (path / SHARDED_METADATA).is_file()


def save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a folder with a file per rank; every rank must call it.

    Args:
        checkpoint: With sharded `state_dict` and `optimizer_states`; all else is taken from rank 0.
        path: The same on every rank, in a file system that all of them see.
    """
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415  # slow to import

    rank, part = distributed.get_rank(), _part(path)
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        part.mkdir()
    states = {"state_dict": checkpoint.pop("state_dict")}
    states |= {f"optimizer_{index}": state for index, state in enumerate(checkpoint.pop("optimizer_states", []))}
    save(states, checkpoint_id=part)  # the ranks agree on a plan first, so that rank 0 has made the folder
    own = [*part.glob(f"__{rank}_*"), *([part / ".metadata"] if rank == 0 else [])]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, {file.name: [file.stat().st_size, _crc(file)] for file in own})
    if rank == 0:
        _write(
            {**checkpoint, _PARTS: {name: value for some in parts for name, value in some.items()}}, part / "meta.pt"
        )
        _put_in_place(part, path)


def problem(path: Path) -> str:
    """Says what is wrong with a checkpoint, having read all of it.

    Args:
        path: A file, or a folder that `save_sharded` wrote.

    Returns:
        The end of a sentence on the path; empty when all is well.
    """
    if not path.exists():
        return "does not exist"
    if path.is_dir() and not is_sharded_checkpoint(path):
        return "is a folder but no checkpoint"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _problem(path, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache
def _problem(path: Path, _state: tuple[Any, ...]) -> str:
    """Reads a checkpoint once as long as its files stay as they are."""
    try:
        fault = _archive_problem(path / SHARDED_METADATA if path.is_dir() else path)
        return fault or (_parts_problem(path) if path.is_dir() else "")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return f"cannot be read: {' '.join(str(error).split())[:200]}"


def _parts_problem(path: Path) -> str:
    for name, (size, crc) in header(path).get(_PARTS, {}).items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return f"is incomplete: {name} is missing or cut off"
        if _crc(path / name) != crc:
            return f"is corrupt: {name} has changed since it was written"
    return ""


def header(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, with tensors that stay on the disk until they are looked at; no shards."""
    file = path / SHARDED_METADATA if path.is_dir() else path
    stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(stored, dict):
        raise ValueError("it holds no training run")  # noqa: TRY004  # a fault of the file, not of the caller
    return stored


def newest(folders: Iterable[Path], module: str) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint to go on from.

    Args:
        folders: Where to look, at any depth.
        module: Name of the module's class.

    Returns:
        The checkpoint that was written last among those that a run of `module` can resume from, None without one; and a
        line on each newer one that cannot be read.
    """
    found = {
        path.resolve(): path
        for folder in folders
        for path in folder.rglob("*.ckpt")
        if path.is_file() or is_sharded_checkpoint(path)
    }
    passed_over = []
    for path in sorted(found.values(), key=_written, reverse=True):
        if fault := problem(path):
            passed_over.append(f"{path} {fault}")
            continue
        stored = header(path)
        whole = path.is_dir() or "optimizer_states" in stored
        if whole and "loops" in stored and stored.get(MODULE, module) == module:
            return path, passed_over
    return None, passed_over


def _written(path: Path) -> int:
    return (path / SHARDED_METADATA if path.is_dir() else path).stat().st_mtime_ns


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _put_in_place(part: Path, path: Path) -> None:
    aside = path.with_name(f"{path.stem}.replaced{path.suffix}")
    if path.exists() and (path.is_dir() or part.is_dir()):
        _remove(aside)
        path.rename(aside)
    part.replace(path)
    _sync_folder(path.parent)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Brings a folder's entries to the disk, where its file system can be asked to."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _archive_problem(path: Path) -> str:
    """Reads a file of `torch.save`; PyTorch itself does not look at the checksums."""
    if not zipfile.is_zipfile(path):
        return "is not a checkpoint written by this program, or it is cut off"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return f"is corrupt: {error}"
    return f"is corrupt: {bad} has changed since it was written" if bad else ""


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _read_sharded(path: Path) -> dict[str, Any]:
    """A sharded folder in the form of a file, for strategies without shards; all of it in main memory."""
    from torch.distributed.checkpoint._nested_dict import unflatten_state_dict  # noqa: PLC0415  # slow to import
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    reader = FileSystemReader(path)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {
        name: torch.empty(item.size, dtype=item.properties.dtype) if isinstance(item, TensorStorageMetadata) else None
        for name, item in metadata.state_dict_metadata.items()
    }
    load(flat, storage_reader=reader, no_dist=True)
    nested: dict[str, Any] = unflatten_state_dict(flat, metadata.planner_data)
    rest = torch.load(path / SHARDED_METADATA, map_location="cpu", weights_only=True)
    rest.pop(_PARTS, None)
    optimizers = [numbered(nested[f"optimizer_{index}"]) for index in range(len(nested) - 1)]
    return {**rest, "state_dict": nested["state_dict"], "optimizer_states": optimizers}
