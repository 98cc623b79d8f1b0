"""The decoder's layers as functions for one rollout, over the training weights themselves wherever they serve as is.

A copy is made only where a weight would otherwise be converted at every step: for the type of mixed precision, for
adapters that are added to their weights, for weights of 4 bits. Copies last as long as the rollout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from lit_vlaa.backbone.adapters import plus_adapter


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear layer, with or without an adapter beside it."""

    weight: Tensor | None
    """`[out, in]` in the type that it computes in; None where `packed` is."""
    bias: Tensor | None
    packed: Callable[[Tensor], Tensor] | None = None
    """A layer of 4 bits, which is dequantised at every step."""
    down: Tensor | None = None
    """`[rank, in]`, the adapter's first matrix; None without an adapter, or where it is added to the weight."""
    up: Tensor | None = None
    scale: float = 1.0

    def __call__(self, states: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        if self.weight is None:
            assert self.packed is not None  # noqa: S101  # one of the two is there
            result = self.packed(states)
        else:
            result = linear(states.to(self.weight.dtype), self.weight, self.bias)
        if self.down is None or self.up is None:
            return result
        adapted = linear(linear(states.to(self.down.dtype), self.down), self.up)
        return (result + adapted * self.scale).to(result.dtype)

    def tensors(self) -> Iterator[Tensor]:
        """What it reads."""
        yield from (t for t in (self.weight, self.bias, self.down, self.up) if t is not None)


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalisation."""

    weight: Tensor
    epsilon: float

    def __call__(self, states: Tensor) -> Tensor:
        """Normalises the last dimension."""
        shape = self.weight.shape
        if states.dtype == torch.float32:
            return rms_norm(states, shape, self.weight, self.epsilon)
        # Rounded before the weight is applied, as in training.
        return self.weight * rms_norm(states.float(), shape, None, self.epsilon).to(states.dtype)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    before_attention: Norm
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    before_mlp: Norm
    gate: Projection
    up: Projection
    down: Projection
    activation: Callable[[Tensor], Tensor]

    def mlp(self, states: Tensor) -> Tensor:
        """The feed-forward half, without its residual."""
        normed = self.before_mlp(states)
        return self.down(self.activation(self.gate(normed)) * self.up(normed))

    def projections(self) -> tuple[Projection, ...]:
        """Its linear layers."""
        return self.query, self.key, self.value, self.output, self.gate, self.up, self.down


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All that decoding reads, the head left out."""

    embedding: Tensor
    """`[V, H]`"""
    layers: tuple[Layer, ...]
    norm: Norm
    rotary: Any
    """The model's module of rotary embeddings."""
    heads: int
    key_value_heads: int
    head_size: int
    scaling: float
    """Of attention scores."""
    dtype: torch.dtype
    """Of queries, keys and values."""

    @property
    def packed(self) -> bool:
        """Whether layers of 4 bits are dequantised at every step."""
        return any(projection.weight is None for layer in self.layers for projection in layer.projections())

    def tensors(self) -> Iterator[Tensor]:
        """What it reads, in a fixed order."""
        yield self.embedding
        for layer in self.layers:
            yield layer.before_attention.weight
            yield layer.before_mlp.weight
            for projection in layer.projections():
                yield from projection.tensors()
        yield self.norm.weight


def decoder_weights(language_model: nn.Module, *, merge_adapters: bool, dequantize: bool) -> DecoderWeights:
    """Takes a decoder apart, under the precision that is in force.

    Args:
        language_model: Decoder of a Qwen2.5-VL or Qwen2-VL, its parameters whole.
        merge_adapters: Add adapters to copies of their weights.
        dequantize: Dequantise weights of 4 bits once.
    """
    model: Any = language_model
    device = model.embed_tokens.weight.device.type
    mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def project(module: Any) -> Projection:
        return _projection(module, mixed, merge=merge_adapters, dequantize=dequantize)

    layers = tuple(
        Layer(
            before_attention=_norm(layer.input_layernorm),
            query=project(layer.self_attn.q_proj),
            key=project(layer.self_attn.k_proj),
            value=project(layer.self_attn.v_proj),
            output=project(layer.self_attn.o_proj),
            before_mlp=_norm(layer.post_attention_layernorm),
            gate=project(layer.mlp.gate_proj),
            up=project(layer.mlp.up_proj),
            down=project(layer.mlp.down_proj),
            activation=layer.mlp.act_fn,
        )
        for layer in model.layers
    )
    attention = model.layers[0].self_attn
    value = layers[0].value
    computes = value.weight.dtype if value.weight is not None else mixed or model.embed_tokens.weight.dtype
    return DecoderWeights(
        embedding=model.embed_tokens.weight.detach(),
        layers=layers,
        norm=_norm(model.norm),
        rotary=model.rotary_emb,
        heads=attention.num_heads,
        key_value_heads=attention.num_key_value_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        dtype=computes,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _projection(module: Any, mixed: torch.dtype | None, *, merge: bool, dequantize: bool) -> Projection:
    down = up = None
    scale = 1.0
    if hasattr(module, "base_layer"):
        if not module.disable_adapters:
            (name,) = module.active_adapters
            down, up = (part[name].weight.detach() for part in (module.lora_A, module.lora_B))
            scale = module.scaling[name]
        module = module.base_layer
    bias = None if module.bias is None else module.bias.detach()
    weight: Tensor | None = module.weight.detach()
    state = getattr(module.weight, "quant_state", None)
    if state is not None:
        merges = merge and down is not None
        weight = _dequantized(module) if dequantize or merges else None
    if weight is not None and merge and down is not None and up is not None:
        weight, down, up = plus_adapter(weight, down, up, scale), None, None
    if mixed is not None:
        weight, bias, down, up = (t if t is None else t.to(mixed) for t in (weight, bias, down, up))
    elif weight is not None and state is not None and module.compute_dtype is not None:
        weight = weight.to(module.compute_dtype)
    packed = None if weight is not None else _under(module, mixed)
    return Projection(weight, bias, packed, down, up, scale)


def _dequantized(module: Any) -> Tensor:
    functional = importlib.import_module("bitsandbytes").functional
    result: Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return result


def _under(module: nn.Module, mixed: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """The layer as training runs it: decoding as a whole runs outside of autocast."""

    def call(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, dtype=mixed, enabled=mixed is not None):
            result: Tensor = module(states)
        return result

    return call
