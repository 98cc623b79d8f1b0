"""How many bytes a forward and backward pass keeps, by the shape of the model: measured coefficients, pure arithmetic.

`LAYER` gives the bytes that a decoder layer keeps for each token by hidden width H, intermediate width I and key-value
width K, `BLOCK` those of a block of the vision tower for each patch by H and I. They were fitted over five shapes each
with a remainder under 0.5% (transformers 5.23, SDPA), and `tests/unit/test_memory.py` counts them again. Attention
keeps no square of the length, as flash and memory-efficient kernels do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig

from lit_vlaa.scores import GPU_NUMBERS

Kind = Literal["float32", "bfloat16", "mixed"]
"""Type of weights and computation; `mixed` is autocast to bfloat16 over float32 weights."""

Mode = Literal["frozen", "train", "lora"]
"""What of a decoder layer trains: nothing, though gradients pass through it, its weights, or its adapters."""

LAYER: dict[Kind, dict[Mode, tuple[int, int, int]]] = {
    "float32": {"frozen": (16, 12, 8), "train": (32, 16, 8), "lora": (24, 16, 8)},
    "bfloat16": {"frozen": (12, 6, 4), "train": (20, 8, 4), "lora": (36, 10, 4)},
    "mixed": {"frozen": (12, 6, 4), "train": (30, 8, 4), "lora": (25, 8, 4)},
}

BLOCK: dict[Kind, tuple[int, int]] = {"float32": (52, 16), "bfloat16": (30, 8), "mixed": (32, 8)}

STREAM: dict[Kind, int] = {"float32": 4, "bfloat16": 2, "mixed": 4}
"""Bytes of a number between layers."""

COMPUTE: dict[Kind, int] = {"float32": 4, "bfloat16": 2, "mixed": 2}
"""Bytes of a number within a layer."""

BACKWARD: dict[Mode, int] = {"frozen": 3, "train": 1, "lora": 3}
"""Tensors of the intermediate width that the backward pass of a layer adds to what it keeps; where weights train, their
inputs go as it proceeds."""

LOGITS_TRAINING, LOGITS_BLOCK, LOGITS_SAMPLING = 2, 2, 3
"""How often a chunk of logits is alive in training, which works on it a block of rows at a time, the block in float32,
and how often the logits that are sampled from."""


class Decoder(NamedTuple):
    """Shape of a language model."""

    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int


class Tower(NamedTuple):
    """Shape of a vision tower."""

    blocks: int
    hidden: int
    intermediate: int
    patch: int
    """Numbers of a patch's pixels."""


def decoder(config: PretrainedConfig) -> Decoder:
    """Shape of the language model."""
    text: Any = config.get_text_config()
    return Decoder(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        key_value=text.num_key_value_heads * text.hidden_size // text.num_attention_heads,
        vocabulary=text.vocab_size,
    )


def tower(config: PretrainedConfig) -> Tower:
    """Shape of the vision tower; Qwen2-VL and Qwen2.5-VL name its sizes differently."""
    vision: Any = config.vision_config
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
    return Tower(
        blocks=vision.depth,
        hidden=hidden,
        intermediate=getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio),
        patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )


def image_tokens(config: PretrainedConfig, max_pixels: int) -> int:
    """Tokens of the largest image."""
    vision: Any = config.vision_config
    return int(max_pixels // (vision.patch_size * vision.spatial_merge_size) ** 2)


def decoder_bytes(shape: Decoder, *, kind: Kind, mode: Mode, checkpointing: bool) -> int:
    """Bytes a token at the peak of the backward pass, without the logits.

    With gradient checkpointing one layer is kept whole, and of the others their input. `BACKWARD` is added for the
    layer that computes its gradients, and four tensors of the hidden width for what is before the first layer and after
    the last.
    """
    for_hidden, for_intermediate, for_keys = LAYER[kind][mode]
    layer = for_hidden * shape.hidden + for_intermediate * shape.intermediate + for_keys * shape.key_value
    inputs = STREAM[kind] * shape.hidden
    kept = layer + shape.layers * inputs if checkpointing else shape.layers * layer
    return kept + BACKWARD[mode] * COMPUTE[kind] * shape.intermediate + 4 * inputs


def tower_bytes(shape: Tower, *, kind: Kind, trains: bool, checkpointing: bool) -> int:
    """Bytes a patch; a tower that does not train keeps nothing beyond the block that computes."""
    for_hidden, for_intermediate = BLOCK[kind]
    block = for_hidden * shape.hidden + for_intermediate * shape.intermediate
    pixels = 2 * 4 * shape.patch
    if not trains:
        return pixels + block
    inputs = STREAM[kind] * shape.hidden
    return pixels + (block + shape.blocks * inputs if checkpointing else shape.blocks * block)


def logits_bytes(shape: Decoder, *, tokens: int, training: bool) -> int:
    """Bytes for a chunk of logits that is trained on, or for logits to sample from."""
    if not training:
        return LOGITS_SAMPLING * 4 * tokens * shape.vocabulary
    block = min(tokens * shape.vocabulary, GPU_NUMBERS)
    return 4 * (LOGITS_TRAINING * tokens * shape.vocabulary + LOGITS_BLOCK * block)


def cache_bytes(shape: Decoder, *, kind: Kind) -> int:
    """Bytes of the key-value cache for a token."""
    return 2 * shape.layers * shape.key_value * COMPUTE[kind]


def passing_bytes(shape: Decoder, *, kind: Kind) -> int:
    """Bytes a token of a pass without gradients: one layer's numbers, none of which are kept."""
    return (3 * shape.intermediate + 6 * shape.hidden) * COMPUTE[kind]
