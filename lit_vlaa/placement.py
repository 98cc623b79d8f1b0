"""How a run's batches fall on its devices, and the room that its checkpoints take."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_vlaa.memory import Run, Tensor, state_bytes

CHECKPOINT = "ModelCheckpoint"


def batch_problems(config: Mapping[str, Any], ranks: int) -> Iterator[str]:
    """What `fit` would say of batches that the ranks cannot share; one line each.

    Args:
        config: A parsed configuration with `model` and `data`.
        ranks: Number of devices, all nodes together.
    """
    batch = config["data"]["init_args"].get("batch_size")
    model = config["model"]["init_args"]
    if not isinstance(batch, int):
        return
    if batch % ranks:
        yield (
            f"--data.batch_size {batch} must be a multiple of the {ranks} device(s); use "
            f"{max(ranks, batch // ranks * ranks)}, or --trainer.devices {math.gcd(batch, ranks)}"
        )
    train = model.get("train_batch_size")
    if model.get("group_size") is not None and (batch % train or train % ranks):
        yield (
            f"--model.train_batch_size {train} must divide --data.batch_size {batch} and be a multiple of the {ranks} "
            f"device(s); use {batch}" + ("" if batch % ranks == 0 else " once that is one")
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """Checkpoints that one folder comes to hold."""

    folder: Path
    files: int
    """At one time, that which is being written included."""
    size: int
    """Bytes of the largest."""
    grows: bool
    """Whether more are kept with every save."""

    @property
    def needed(self) -> int:
        """Bytes of all."""
        return self.files * self.size


def checkpoint_bytes(described: Run, tensors: Sequence[Tensor], *, weights_only: bool = False) -> int:
    """Size of a checkpoint: the weights (of adapters those alone) and, unless left out, the optimiser's states."""
    stored = [tensor for tensor in tensors if described.backbone.adapters is None or tensor.trains]
    weights = sum(tensor.numbers * tensor.itemsize for tensor in stored)
    if weights_only:
        return weights
    return weights + sum(state_bytes(tensor, 1, described.optimizer) for tensor in tensors if tensor.trains)


def kept_checkpoints(trainer: Mapping[str, Any], described: Run, tensors: Sequence[Tensor]) -> list[Kept]:
    """The checkpoints that a run's callbacks keep, by folder.

    Args:
        trainer: The parsed settings of the Trainer.
        described: The run.
        tensors: Its parameters.
    """
    callbacks = trainer["callbacks"] or []
    entries: list[Mapping[str, Any]] = list(callbacks if isinstance(callbacks, list) else [callbacks])
    savers = [entry.get("init_args") or {} for entry in entries if entry["class_path"].endswith(CHECKPOINT)]
    if not savers and trainer["enable_checkpointing"] is not False:
        savers = [{}]  # Lightning's own
    root = Path(trainer["default_root_dir"] or ".")
    files: dict[Path, dict[str, int]] = {}
    sizes: dict[Path, int] = {}
    grows: set[Path] = set()
    for number, saver in enumerate(savers):
        folder = Path(saver.get("dirpath") or root)
        name = saver.get("filename")
        # Two callbacks that write one name keep one file.
        same = str(name) if name and "{" not in name and saver.get("enable_version_counter") is False else f"#{number}"
        most = saver.get("save_top_k", 1)
        counts = files.setdefault(folder, {})
        counts[same] = max(counts.get(same, 0), abs(most))
        counts[f"last {number}"] = int(saver.get("save_last") is True)
        if most < 0:
            grows.add(folder)
        size = checkpoint_bytes(described, tensors, weights_only=bool(saver.get("save_weights_only")))
        sizes[folder] = max(sizes.get(folder, 0), size)
    if any(entry["class_path"].endswith(".Preemption") for entry in entries):
        files.setdefault(root, {})["preempted"] = 1
        sizes[root] = max(sizes.get(root, 0), checkpoint_bytes(described, tensors))
    return [Kept(folder, sum(counts.values()) + 1, sizes[folder], folder in grows) for folder, counts in files.items()]


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder is or will be on."""
    place = folder.absolute()
    return shutil.disk_usage(next(part for part in (place, *place.parents) if part.exists())).free


def disk_lines(kept: Iterable[Kept]) -> Iterator[str]:
    """What checkpoints take of the free room, and what to do where there is too little."""
    for each in kept:
        free = free_bytes(each.folder)
        line = (
            f"checkpoints below {each.folder}: {each.size / 2**30:.2f} GiB each, {each.files} at one time with the one "
            f"being written: {each.needed / 2**30:.2f} of {free / 2**30:.1f} GiB free"
        )
        if each.grows:
            line += f"; all are kept, so that there is room for {free // max(1, each.size)}"
        if each.needed > free:
            line += (
                "  <- too little: give another --trainer.default_root_dir, keep fewer, or train adapters with "
                "--model.backbone.lora.rank 16, whose checkpoints hold them alone"
            )
        yield line
