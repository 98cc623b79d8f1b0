"""Weights of an earlier run as the start of a new one (`--model.init_from`), whichever strategy wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lit_vlaa.backbone.adapter_state import NOTE, SEPARATOR, AdapterNote, fingerprint, merge_stored, starting_points
from lit_vlaa.checkpoints import header, problem

if TYPE_CHECKING:
    from lit_vlaa.backbone.model import Backbone

_PREFIX = "backbone."


def load_weights(backbone: Backbone, init_from: str | Path) -> None:
    """Loads the policy's weights from a checkpoint file (single device, DDP), or a sharded FSDP2 checkpoint folder.

    Tensors and primitives alone are read. Call it before sharding. A directory in the Hub's layout is no checkpoint:
    give it as the backbone's path.

    A checkpoint of adapters holds no other weights: they are added to those of the backbone. Where its run had started
    from a checkpoint in its turn, that one is loaded first; if it lies elsewhere now, name it before, as in
    `BASE::ADAPTERS.ckpt`.

    Args:
        backbone: An unsharded backbone of the same architecture, without adapters.
        init_from: `*.ckpt` file or folder; several, with `::` between them, where each holds adapters that were trained
            beside what is before it.

    Raises:
        ValueError: If there is no such checkpoint, it is cut off or corrupt, or its weights do not fit the backbone.
    """
    for path in starting_points(init_from):
        _load(backbone, path, ())


def _load(backbone: Backbone, path: Path, after: tuple[Path, ...]) -> None:
    """Loads one checkpoint; those of `after` name it as what their adapters were trained beside, the last one first."""
    flag = f"--model.init_from {path}"
    if (path / "config.json").is_file():
        raise ValueError(f"{flag}: this is a model in the Hub's layout; give it as --model.backbone.path instead")
    if fault := problem(path):
        raise ValueError(f"{flag} {fault}")
    weights = _read(path, flag)
    if NOTE in weights:
        _load_adapters(backbone, weights, (path, *after))
        return
    try:
        result = backbone.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{flag}: made with another backbone than {backbone.config.path}: {error}") from error
    tied = {name for name in result.missing_keys if name.endswith("lm_head.weight")}
    if set(result.missing_keys) - tied or result.unexpected_keys:
        odd = sorted([*(set(result.missing_keys) - tied), *result.unexpected_keys])
        raise ValueError(f"{flag}: made with another backbone than {backbone.config.path}; first odd key: {odd[0]}")


def _read(path: Path, flag: str) -> dict[str, Tensor]:
    """The policy's weights, without the module's prefix."""
    if path.is_dir():
        from lit_vlaa.shards import read_shards  # noqa: PLC0415  # slow to import

        try:
            stored = read_shards(path, lambda name: name.startswith(f"state_dict.{_PREFIX}"))
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from error
    else:
        try:
            stored = header(path)
        except ValueError as error:
            raise ValueError(f"{flag} {error}") from error
    if "state_dict" not in stored:
        raise ValueError(f"{flag}: not a checkpoint of this program (no state_dict in it)")
    return {key.removeprefix(_PREFIX): v for key, v in stored["state_dict"].items() if key.startswith(_PREFIX)}


def _load_adapters(backbone: Backbone, weights: dict[str, Tensor], chain: tuple[Path, ...]) -> None:
    """Adds adapters to the weights that they were trained beside, loading these first where a note says which.

    Args:
        backbone: As for `load_weights`.
        weights: The adapters and their note.
        chain: Their checkpoint, then the one that names it as its base, and so on.
    """
    flag = f"--model.init_from {chain[0]}"
    own_place = SEPARATOR.join(map(str, chain))
    note = AdapterNote.decode(weights.pop(NOTE))
    model = backbone.model
    if note.base != fingerprint(model) and note.init_from is not None:
        base = f"{flag}: its adapters were trained beside the weights of {note.init_from}"
        remedy = f"--model.init_from BASE{SEPARATOR}{own_place}"
        bases = starting_points(note.init_from)
        if {path.resolve() for path in bases} & {path.resolve() for path in chain}:
            raise ValueError(f"{base}, which need it in their turn; give the weights themselves: {remedy}")
        if not all(path.exists() for path in bases):
            raise ValueError(f"{base}, of which there is no checkpoint any more; if it lies elsewhere, give {remedy}")
        try:
            for path in bases:
                _load(backbone, path, chain)
        except ValueError as error:
            raise ValueError(f"{base}: {error}") from error
    if note.base != fingerprint(model):
        given = [("path", note.path, backbone.config.path), ("dtype", note.dtype, backbone.config.dtype)]
        flags = "".join(f" --model.backbone.{name} {theirs}" for name, theirs, ours in given if theirs != ours)
        raise ValueError(
            f"{flag}: its adapters were trained beside other weights than those of "
            f"{note.init_from or backbone.config.path}; give{f'{flags}, or' if flags else ''} a checkpoint of those "
            f"weights as --model.init_from BASE{SEPARATOR}{own_place}"
        )
    merge_stored(model, {name.removeprefix("model."): value for name, value in weights.items()}, note)
