"""How much memory a rollout takes beside the weights, part by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lit_vlaa import activations
from lit_vlaa.activations import Decoder, Kind
from lit_vlaa.generation.cache import PROMPT_TOKENS_AT_ONCE, capacity, capacity_within
from lit_vlaa.parts import part_of

if TYPE_CHECKING:
    from lit_vlaa.memory import Run, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What generation keeps at one time."""

    rows: int
    """Most completions that are decoded together."""
    group_size: int
    """Completions a prompt; a prompt is read and kept once."""
    new_tokens: int
    """Most tokens of a completion."""
    prompts: int
    """Prompts of one process's rollout."""
    merge_adapters: bool = False
    """Whether adapters are added to copies of their weights."""
    dequantize: bool = False
    """Whether weights of 4 bits are dequantised for the whole rollout."""

    def within(self, size: int, run: Run, shape: Decoder) -> Rollouts:
        """With no more rows than `size` bytes of keys and values are enough for, in `run` with a decoder of `shape`."""
        slots = capacity_within(
            size,
            prompts=self.prompts,
            group_size=self.group_size,
            max_rows=self.rows,
            token_bytes=activations.cache_bytes(shape, kind=run.kind),
            prompt_tokens=run.prompt_tokens,
            new_tokens=self.new_tokens,
        )
        return replace(self, rows=slots.rows)


def rollout_bytes(
    rollouts: Rollouts, shape: Decoder, tensors: Iterable[Tensor], *, kind: Kind, prompt_tokens: int
) -> dict[str, int]:
    """Bytes of each part.

    Args:
        rollouts: What is kept.
        shape: Of the decoder.
        tensors: The model's parameters.
        kind: How it computes.
        prompt_tokens: Of a typical row.
    """
    slots = capacity(rollouts.prompts, rollouts.group_size, rollouts.rows)
    cached = slots.tokens(prompt_tokens=prompt_tokens, new_tokens=rollouts.new_tokens)
    read = min(slots.prompts * prompt_tokens, max(PROMPT_TOKENS_AT_ONCE, prompt_tokens))
    return {
        "key-value cache": cached * activations.cache_bytes(shape, kind=kind),
        "reading the prompts": read * activations.passing_bytes(shape, kind=kind),
        "logits of a step": activations.logits_bytes(shape, tokens=slots.rows, training=False),
        "dense copies of weights": sum(_copied(tensor, rollouts, kind) for tensor in tensors),
    }


def _copied(tensor: Tensor, rollouts: Rollouts, kind: Kind) -> int:
    """Bytes of a matrix's copy with its adapter or without its four bits; mixed precision copies the rest anyway."""
    adapted = tensor.name.endswith(".base_layer.weight") and part_of(tensor.name) == "language"
    merged = rollouts.merge_adapters and adapted
    copied = (merged or rollouts.dequantize) if tensor.four_bits else (merged and kind != "mixed")
    return copied * tensor.numbers * (4 if kind == "float32" else 2)
