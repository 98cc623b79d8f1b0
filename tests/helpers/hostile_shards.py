"""Sharded checkpoint folders as an attacker would change them, checksums included."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_vlaa.checkpoints import problem

SHARD = "__0_0.distcp"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _touch, (str(self.path),)


def _touch(path: str) -> None:
    Path(path).touch()


def index(folder: Path) -> Any:
    """The index as PyTorch itself reads it."""
    return pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301  # our own


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Puts what `change` makes of the index in its place; bytes are written as they are."""
    content = change(index(folder))
    (folder / ".metadata").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
    vouch(folder)


def replace_item(folder: Path, name: str, content: bytes) -> None:
    """Gives an item other bytes, behind those that the shard has."""
    shard = folder / SHARD
    start = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(content)

    def change(found: Any) -> Any:
        for key, place in found.storage_data.items():
            if key.fqn == name:
                place.offset, place.length = start, len(content)
        return found

    rewrite(folder, change)


def vouch(folder: Path) -> None:
    """Writes checksums of what the folder holds now, so that nothing but the content is at fault."""
    header = torch.load(folder / "meta.pt", weights_only=True)
    files = [path for path in folder.iterdir() if path.name != "meta.pt"]
    header["parts"] = {path.name: [path.stat().st_size, zlib.crc32(path.read_bytes())] for path in files}
    torch.save(header, folder / "meta.pt")
    os.utime(folder / "meta.pt")
    assert problem(folder) == ""
