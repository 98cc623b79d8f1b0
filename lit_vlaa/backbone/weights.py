"""Weights of an earlier run as the start of a new one (`--model.init_from`), whichever strategy wrote them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_vlaa.backbone.adapter_state import NOTE, AdapterNote, fingerprint, merge_stored

if TYPE_CHECKING:
    from lit_vlaa.backbone.model import Backbone

_PREFIX = "backbone."


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Loads the policy's weights from a checkpoint file (single device, DDP), or a sharded FSDP2 checkpoint folder.

    A file is read as tensors and primitives alone. A sharded folder's index is a pickle of PyTorch's, which can run
    code: take folders only from sources that you trust. Call it before sharding. A directory in the Hub's layout is no
    checkpoint: give it as the backbone's path.

    A checkpoint of adapters holds no other weights: they are added to those of the backbone. Where its run had started
    from a checkpoint in its turn, that one is loaded first.

    Args:
        backbone: An unsharded backbone of the same architecture, without adapters.
        path: `*.ckpt` file or folder.

    Raises:
        ValueError: If there is no such checkpoint, or its weights do not fit the backbone.
    """
    path = Path(path)
    flag = f"--model.init_from {path}"
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{flag}: not a checkpoint, or an incomplete one; give a .ckpt file of an earlier run")
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if "state_dict" not in stored:
            raise ValueError(f"{flag}: not a Lightning checkpoint (no state_dict in it)")
        weights = {key.removeprefix(_PREFIX): v for key, v in stored["state_dict"].items() if key.startswith(_PREFIX)}
    elif (path / ".metadata").is_file():
        weights = _read_sharded(path)
    elif (path / "config.json").is_file():
        raise ValueError(f"{flag}: this is a model in the Hub's layout; give it as --model.backbone.path instead")
    else:
        raise ValueError(f"{flag}: no checkpoint file and no sharded checkpoint folder")
    if NOTE in weights:
        _load_adapters(backbone, weights, flag)
        return
    try:
        result = backbone.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{flag}: made with another backbone than {backbone.config.path}: {error}") from error
    tied = {name for name in result.missing_keys if name.endswith("lm_head.weight")}
    if set(result.missing_keys) - tied or result.unexpected_keys:
        odd = sorted([*(set(result.missing_keys) - tied), *result.unexpected_keys])
        raise ValueError(f"{flag}: made with another backbone than {backbone.config.path}; first odd key: {odd[0]}")


def _load_adapters(backbone: Backbone, weights: dict[str, Tensor], flag: str) -> None:
    note = AdapterNote.decode(weights.pop(NOTE))
    model = backbone.model
    if note.base != fingerprint(model) and note.init_from is not None:
        try:
            load_weights(backbone, note.init_from)
        except ValueError as error:
            raise ValueError(
                f"{flag}: its adapters were trained beside the weights of {note.init_from}: {error}"
            ) from error
    if note.base != fingerprint(model):
        raise ValueError(
            f"{flag}: its adapters were trained beside other weights than those of {backbone.config.path}; "
            f"give --model.backbone.path {note.path}"
        )
    merge_stored(model, {name.removeprefix("model."): value for name, value in weights.items()}, note)


def _read_sharded(path: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader  # noqa: PLC0415  # rarely needed
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    reader = FileSystemReader(path)
    prefix = f"state_dict.{_PREFIX}"
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in weights.items()}
