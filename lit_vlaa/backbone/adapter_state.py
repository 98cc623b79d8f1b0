"""What a checkpoint of adapters holds: the adapters, and a note of what they were put beside; no other weights.

The base can be loaded again at any time, and takes a hundred times the room. `resume` and `--model.init_from` need the
same base; the note tells it by a fingerprint, so that the model's folder may have moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_vlaa.backbone.adapters import is_adapter, linear_layers, plus_adapter, through_four_bits
from lit_vlaa.backbone.config import BackboneConfig

NOTE = "adapter_note"
"""Name of the note among a backbone's weights."""

_NOTE_BYTES = 4096
_SAMPLED = 64
"""Numbers of each tensor that the fingerprint looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterNote:
    """What a checkpoint says of its adapters."""

    rank: int
    alpha: float
    parts: list[str]
    targets: list[str]
    quantize: str | None
    path: str
    """`--model.backbone.path` of the run, for messages."""
    init_from: str | None
    """Checkpoint whose weights the base had, an absolute path; None where it was the model at `path` itself."""
    base: str
    """Fingerprint of the base before quantisation."""

    def encode(self) -> Tensor:
        """`[4096]` uint8; of one length, as some loaders read into the run's own note."""
        text = json.dumps(asdict(self)).encode()
        if len(text) > _NOTE_BYTES:
            raise ValueError(f"--model.init_from {self.init_from} is too long a path")
        return torch.frombuffer(bytearray(text.ljust(_NOTE_BYTES)), dtype=torch.uint8)

    @classmethod
    def decode(cls, stored: Tensor) -> AdapterNote:
        """Reads `encode`'s bytes.

        Raises:
            ValueError: If they are no note.
        """
        try:
            return cls(**json.loads(bytes(stored.cpu().tolist())))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's note on its adapters cannot be read: {error}") from error


def note_for(model: nn.Module, config: BackboneConfig, init_from: str | None) -> AdapterNote | None:
    """The note on the adapters that `model` is about to get; None if it gets none."""
    if config.adapters is None:
        return None
    return AdapterNote(
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        parts=sorted(config.lora.parts),
        targets=sorted(config.lora.targets),
        quantize=config.quantize,
        path=config.path,
        init_from=None if init_from is None else str(Path(init_from).resolve()),
        base=fingerprint(model),
    )


def fingerprint(model: nn.Module) -> str:
    """Tells models with different weights apart, whatever type they were loaded in, by some numbers of each tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()[:_SAMPLED].float()
        digest.update(name.encode() + numbers.numpy().tobytes())
    return digest.hexdigest()


def keep_adapters_alone(backbone: nn.Module, note: AdapterNote | None) -> None:
    """Makes `backbone.state_dict()` hold its adapters and `note`, and `load_state_dict` take the like.

    Args:
        backbone: With adapters if there is a note.
        note: On its adapters.
    """
    backbone.register_load_state_dict_pre_hook(_check(note))  # type: ignore[no-untyped-call]
    if note is None:
        return
    stored = note.encode()
    # Readers of state dicts look their keys up as attributes. A buffer would be broadcast and moved about.
    setattr(backbone, NOTE, stored)

    def reduce(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:  # noqa: ARG001
        for name in [name for name in state if name.startswith(prefix) and not is_adapter(name)]:
            del state[name]
        state[prefix + NOTE] = stored.clone()

    backbone.register_state_dict_post_hook(reduce)  # type: ignore[no-untyped-call]


def _check(note: AdapterNote | None) -> Callable[..., None]:
    def check(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Refuses what does not fit, takes the note out and puts the base, which is there already, in its place."""
        stored = state.pop(prefix + NOTE, None)
        if stored is None and note is None:
            return
        if stored is None:
            raise ValueError(
                "the checkpoint holds whole weights, and this run trains adapters: start from it with "
                "--model.init_from, or leave out --model.backbone.lora"
            )
        theirs = AdapterNote.decode(stored)
        if note is None:
            raise ValueError(
                f"the checkpoint holds adapters: give --model.backbone.lora.rank {theirs.rank} and "
                f"--model.backbone.lora.alpha {theirs.alpha:g}, or start from it with --model.init_from"
            )
        flags = [
            f"--model.backbone.{flag} {'null' if value is None else value}"
            for flag in ("lora.rank", "lora.alpha", "lora.parts", "lora.targets", "quantize")
            if (value := getattr(theirs, flag.removeprefix("lora."))) != getattr(note, flag.removeprefix("lora."))
        ]
        if theirs.base != note.base:
            flags += [f"--model.backbone.path {theirs.path}", f"--model.init_from {theirs.init_from or 'null'}"]
        if flags:
            raise ValueError(f"the checkpoint's adapters belong to other settings; give {', '.join(flags)}")
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not is_adapter(name):
                state[prefix + name] = parameter.detach()

    return check


def merge_stored(model: nn.Module, weights: dict[str, Tensor], note: AdapterNote) -> None:
    """Adds a checkpoint's adapters to the weights that they were trained beside.

    Args:
        model: A plain model with these weights; changed in place.
        weights: The adapters, by their names in the model.
        note: The checkpoint's note.

    Raises:
        ValueError: If an adapter belongs to no layer of the model.
    """
    own = dict(model.named_parameters())
    with torch.no_grad():
        if note.quantize is not None:
            for name in linear_layers(model, ("language",)):
                own[f"{name}.weight"].copy_(through_four_bits(own[f"{name}.weight"]))
        for name, down in weights.items():
            layer, found, rest = name.partition(".lora_A.")
            if not found:
                continue
            if f"{layer}.weight" not in own:
                raise ValueError(f"the model has no layer {layer}")
            weight = own[f"{layer}.weight"]
            up = weights[f"{layer}.lora_B.{rest}"]
            weight.copy_(plus_adapter(weight, down, up, note.alpha / note.rank))
