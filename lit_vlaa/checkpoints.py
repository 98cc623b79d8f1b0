"""Checkpoints on disk: written whole or not at all, checked before they are read, and found again after a crash.

A checkpoint is a file, or a folder where `fsdp2_sharded` wrote it. What a killed run leaves of one has another name
(`whole_files`) and is never taken for a checkpoint.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import distributed

from lit_vlaa.checks import RunStoppedError
from lit_vlaa.optimizer_states import numbered
from lit_vlaa.parallel import gather_objects
from lit_vlaa.whole_files import hidden, put_in_place, remove, remove_leftovers, replacing, sync_folder

SHARDED_METADATA = "meta.pt"
"""The file that marks a folder as a sharded checkpoint of Lightning's."""

MODULE = "module"
"""Key of the name of the module that wrote a checkpoint."""

_PARTS = "parts"
"""Key of a sharded folder's files in its metadata: for each name its bytes and their CRC-32."""

_OPTIMIZERS = "optimizers"
"""Key of the number of optimisers whose states a sharded folder holds, in its metadata."""

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
        path = Path(path)
        remove_leftovers(path.parent)
        with telling(path), replacing(path) as part:
            _write(checkpoint, part)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file or a sharded folder, as tensors and primitives alone; of a file all, if `weights_only` is False.

        Raises:
            ValueError: If the checkpoint is not there, cut off or corrupt.
        """
        # Lightning would read an address that begins with http as a pickle that may hold anything.
        weights_only = True if weights_only is None else weights_only
        if not _is_local_file_protocol(path):
            return super().load_checkpoint(path, map_location, weights_only)
        path = Path(path)
        if fault := problem(path):
            raise ValueError(f"{path} {fault}")
        if is_sharded_checkpoint(path):
            return _as_file(path)
        return super().load_checkpoint(path.absolute(), map_location, weights_only)


def is_sharded_checkpoint(path: Path) -> bool:
    """Tells whether `path` is a folder that FSDP2 saved with one file per rank."""
    return (path / SHARDED_METADATA).is_file()


def save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a folder with a file per rank; every rank must call it.

    Args:
        checkpoint: With sharded `state_dict` and `optimizer_states`; all else is taken from rank 0.
        path: The same on every rank, in a file system that all of them see.
    """
    with telling(path):
        _save_sharded(checkpoint, path)


def _save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415  # slow to import

    rank, part = distributed.get_rank(), hidden(path)
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        remove(part)
        part.mkdir()
    states = {"state_dict": checkpoint.pop("state_dict")}
    optimizers = checkpoint.pop("optimizer_states", [])
    states |= {f"optimizer_{index}": state for index, state in enumerate(optimizers)}
    save(states, checkpoint_id=part)  # the ranks agree on a plan first, so that rank 0 has made the folder
    own = [*part.glob(f"__{rank}_*"), *([part / ".metadata"] if rank == 0 else [])]
    sums = gather_objects({file.name: [file.stat().st_size, _crc(file)] for file in own})
    if rank == 0:
        parts = {name: value for some in sums for name, value in some.items()}
        _write({**checkpoint, _PARTS: parts, _OPTIMIZERS: len(optimizers)}, part / SHARDED_METADATA)
        put_in_place(part, path)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Says in one line that a checkpoint could not be written, why, and how to go on.

    Raises:
        RunStoppedError: In place of what the disk, or PyTorch's writer, raised.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # PyTorch's writer reports a disk that is full as a position that it did not expect.
        cause = error if isinstance(error, OSError) or not isinstance(error.__context__, OSError) else error.__context__
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free / 2**30
        raise RunStoppedError(
            f"the checkpoint {path} could not be written ({_short(cause)}; {free:.3g} GiB are free there). Those that "
            "were written before are whole: make room, and go on from them with --ckpt_path last"
        ) from error


def newest_within(folder: Path) -> Path | None:
    """The checkpoint of a run's folder, or of a folder of runs, that was written last; None without one."""
    found = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


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
        inside = newest_within(path)
        return f"is a folder but no checkpoint{f'; did you mean {inside}?' if inside else ''}"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _problem(path, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache
def _problem(path: Path, _state: tuple[Any, ...]) -> str:
    """Reads a checkpoint once as long as its files stay as they are."""
    try:
        fault = _archive_problem(path / SHARDED_METADATA if path.is_dir() else path)
        return fault or (_parts_problem(path) if path.is_dir() else "")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return f"cannot be read: {_short(error)}"


def _parts_problem(path: Path) -> str:
    for name, (size, crc) in header(path).get(_PARTS, {}).items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            return f"is incomplete: {name} is missing or cut off"
        if _crc(path / name) != crc:
            return f"is corrupt: {name} has changed since it was written"
    return ""


def header(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, with tensors that stay on the disk until they are looked at; no shards.

    Raises:
        ValueError: If it holds something else; the message is the end of a sentence on the path.
    """
    file = path / SHARDED_METADATA if path.is_dir() else path
    try:
        stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # another program's file, of which PyTorch may say anything
        raise ValueError(f"cannot be read as tensors and plain values: {_short(error)}") from error
    if not isinstance(stored, dict):
        raise ValueError("holds no training run")  # noqa: TRY004  # a fault of the file, not of the caller
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
    passed_over, written = [], []
    for path in found.values():
        try:
            written.append(((path / SHARDED_METADATA if path.is_dir() else path).stat().st_mtime_ns, path))
        except OSError as error:
            passed_over.append(f"{path} {_vanished(error)}")
    for _, path in sorted(written, reverse=True):
        try:
            fault = problem(path)
            stored = {} if fault else header(path)
        except OSError as error:
            fault = _vanished(error)
        except ValueError as error:
            fault = str(error)
        if fault:
            passed_over.append(f"{path} {fault}")
        elif (
            (stored.get("optimizer_states") or stored.get(_OPTIMIZERS))
            and "loops" in stored
            and stored.get(MODULE, module) == module
        ):
            return path, passed_over
    return None, passed_over


def _vanished(error: OSError) -> str:
    return "was removed meanwhile" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _archive_problem(path: Path) -> str:
    """Reads a file of `torch.save`; PyTorch itself does not look at the checksums."""
    if not zipfile.is_zipfile(path):
        return "is not a checkpoint written by this program, or it is cut off"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # PyTorch compresses nothing; what would unpack to more than the file has is a bomb.
            if sum(member.file_size for member in members) > path.stat().st_size:
                return "is not a checkpoint written by this program: it would unpack to more than it holds"
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


def _as_file(path: Path) -> dict[str, Any]:
    """A sharded folder in the form of a file, for strategies without shards; all of it in main memory."""
    from lit_vlaa.shards import read_shards  # noqa: PLC0415  # slow to import

    content: dict[str, Any] = torch.load(path / SHARDED_METADATA, map_location="cpu", weights_only=True)
    content.pop(_PARTS, None)
    content.pop(_OPTIMIZERS, None)
    shards = read_shards(path, lambda _: True)
    content["state_dict"] = shards.pop("state_dict")
    if shards:
        content["optimizer_states"] = [numbered(shards[f"optimizer_{index}"]) for index in range(len(shards))]
    return content
