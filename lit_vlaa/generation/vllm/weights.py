"""The learner's weights on their way to servers: a fingerprint that tells one step's from the next, and files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_vlaa.backbone.adapters import adapter_scales, each_merged_weight
from lit_vlaa.generation.protocol import EngineLostError
from lit_vlaa.generation.vllm.server import OURS
from lit_vlaa.whole_files import remove

OPTION = "--model.generator.weights_dir"

_AT_ONCE = 2**23
"""Numbers whose share of the fingerprint is computed together; they take some hundred MB."""

_FILE_BYTES = 2 * 10**9
_LOCK = "lock"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def version(model: nn.Module, dtype: torch.dtype | None) -> str:
    """A label of all weights: the same bits always have the same, others another one.

    Each number counts with an odd factor of its own, in arithmetic modulo 2**64: one that differs changes the sum for
    certain, several leave it as it was with a probability of about 2**-64. Sums of integers are the same in any order.

    Args:
        model: With whole parameters.
        dtype: Of the matrices that `write` would write.
    """
    digest = hashlib.blake2b(str(dtype).encode(), digest_size=16)
    names, sums = [f"{name} {scale}" for name, scale in adapter_scales(model)], []
    for name, parameter in model.named_parameters():
        names.append(f"{name} {tuple(parameter.shape)} {parameter.dtype}")
        sums.append(_sum(parameter.detach()))
    digest.update("\n".join(names).encode())
    digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return f"{OURS}{digest.hexdigest()}"


def write(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes weight files that vLLM reads, adapters added and 4 bits dequantised, one parameter after the other.

    The names are those that transformers 4.52 and later give the tensors; vLLM's classes of Qwen2(.5)-VL map them.

    Args:
        model: With whole parameters.
        folder: An empty one.
        dtype: The type of mixed precision, in which matrices compute; vectors stay as they are. None for neither.
    """
    head = getattr(model, "lm_head", None)
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    shard: dict[str, Tensor] = {}
    size = count = 0
    for name, value in each_merged_weight(model):
        if tied and name == "lm_head.weight":
            continue
        wanted = dtype if dtype is not None and value.ndim > 1 else value.dtype
        shard[name] = value.to(device="cpu", dtype=wanted).contiguous()
        size += shard[name].nbytes
        if size >= _FILE_BYTES:
            save_file(shard, folder / f"model-{count:05}.safetensors")
            shard, size, count = {}, 0, count + 1
    if shard:
        save_file(shard, folder / f"model-{count:05}.safetensors")


class WeightFolder:
    """A folder that this program and the servers see: weight files for as long as servers read them, and a lock."""

    def __init__(self, path: str | None) -> None:
        """Names it.

        Args:
            path: The folder; None for one below the system's folder of temporary files.
        """
        self.path = Path(path or Path(tempfile.gettempdir()) / f"lit-vlaa-vllm-{os.getuid()}").absolute()

    def make(self) -> None:
        """Makes the folder for its owner alone.

        Raises:
            ValueError: If it cannot be made, or belongs to somebody else, who could put other weights there.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _OTHERS_WRITE:
                raise ValueError(
                    f"{OPTION} {self.path} must be a folder of yours that others, your group too, cannot write to: "
                    "name another, or run chmod go-w on it"
                )
            (self.path / _LOCK).touch()
        except OSError as error:
            raise ValueError(f"{OPTION} {self.path}: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Waits until no other process pushes weights, and keeps all others waiting; removes what is left at the end.

        The lock is the operating system's, which takes it from a process that dies. Gives whether another had it.

        Raises:
            EngineLostError: If the folder cannot be locked.
        """
        try:
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EngineLostError(f"{OPTION} {self.path}: {error}") from error
        try:
            waited = self._lock(handle)
            try:
                self._clear()
                yield waited
            finally:
                self._clear()
                # Closing would not do: a process that was forked meanwhile holds the same lock.
                fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            os.close(handle)

    def put(self, label: str, model: nn.Module, dtype: torch.dtype | None) -> Path:
        """Gives the folder with this version's weight files, which are written unless they are there; under the lock.

        Raises:
            EngineLostError: If they cannot be written.
        """
        folder, part = self.path / label, self.path / f".{label}.part"
        if folder.is_dir():
            return folder
        try:
            part.mkdir()
            write(model, part, dtype)
            part.rename(folder)
        except (OSError, SafetensorError) as error:
            raise EngineLostError(f"{OPTION} {self.path}: the weights cannot be written: {error}") from error
        return folder

    def _lock(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_EX)
            return True
        except OSError as error:
            raise EngineLostError(f"{OPTION} {self.path} cannot be locked: {error}; name a local folder") from error
        return False

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.name.removeprefix(".").startswith(OURS):
                remove(entry)


def _sum(values: Tensor) -> Tensor:
    """`[]` int64, on the tensor's device."""
    flat = values.contiguous().flatten()
    bits = flat.view(_BITS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _AT_ONCE):
        part = bits[start : start + _AT_ONCE].long()
        factor = torch.arange(start + 1, start + 1 + part.numel(), device=part.device) * 0x1E3779B97F4A7C15
        factor = (factor ^ (factor >> 29)) * 0x3F58476D1CE4E5B9
        total += (part * ((factor ^ (factor >> 32)) | 1)).sum()
    return total
