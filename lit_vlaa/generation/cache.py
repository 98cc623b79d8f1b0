"""Keys and values of unfinished completions, one row each, and one decoding step over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


@dataclass(slots=True)
class RowCache:
    """Cached attention state; slot s of a row holds the token at index s of that row, prompt first.

    Shapes use R rows, K key-value heads, S slots, Dh head size.
    """

    keys: list[Tensor]
    """Per layer `[R, K, S, Dh]`."""
    values: list[Tensor]
    """Per layer `[R, K, S, Dh]`."""
    lengths: Tensor
    """`[R]` int64, filled slots of each row."""
    longest: int
    """The largest of `lengths`, known on the host."""

    @classmethod
    def from_prefill(cls, layers: list[tuple[Tensor, Tensor]], lengths: Tensor, *, copies: int, room: int) -> RowCache:
        """Spreads the prompts' state over their completions.

        Args:
            layers: Per layer the prompts' keys and values, `[b, K, P, Dh]`.
            lengths: `[b]` true prompt lengths.
            copies: Completions a prompt.
            room: Slots to add for new tokens.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for key, value in layers:
            for target, source in ((keys, key), (values, value)):
                prompts, heads, width, size = source.shape
                # Under autocast rotation leaves keys in float32; attention would convert them at every step.
                buffer = value.new_zeros(prompts * copies, heads, width + room, size)
                buffer[:, :, :width] = source.repeat_interleave(copies, dim=0)
                target.append(buffer)
        return cls(keys, values, lengths.repeat_interleave(copies), layers[0][0].shape[2])

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but `rows` (`[r]` indices)."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
        self.lengths = self.lengths[rows]
        self.longest = int(self.lengths.max())


def decode_step(language_model: nn.Module, cache: RowCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """Feeds one token a row through the decoder and adds it to the cache.

    The layers' own projections and norms run; only attention over the cache is ours. All three rotary coordinates of a
    text token are equal, so decoding needs plain rotary embeddings, whatever the model's sections are.

    Args:
        language_model: Decoder of a Qwen2.5-VL or Qwen2-VL.
        cache: State of the rows, updated in place.
        tokens: `[R]` ids.
        positions: `[R]` rotary positions.

    Returns:
        `[R, H]` final hidden states.
    """
    model: Any = language_model
    hidden = model.embed_tokens(tokens)
    cos, sin = _rotary(model.rotary_emb, positions, hidden.dtype)
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    width = cache.longest + 1
    visible = (torch.arange(width, device=tokens.device) <= cache.lengths[:, None])[:, None, None, :]
    for index, layer in enumerate(model.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        shape = (tokens.shape[0], -1, attention.head_dim)
        query = _rotate(attention.q_proj(normed).view(shape), cos, sin)
        keys, values = cache.keys[index], cache.values[index]
        keys[rows, :, cache.lengths] = _rotate(attention.k_proj(normed).view(shape), cos, sin).to(keys.dtype)
        values[rows, :, cache.lengths] = attention.v_proj(normed).view(shape).to(values.dtype)
        # Query heads that share a key-value head stand as a short "sequence", so that nothing is repeated in memory.
        grouped = query.view(tokens.shape[0], keys.shape[1], -1, attention.head_dim).to(keys.dtype)
        mixed = scaled_dot_product_attention(
            grouped, keys[:, :, :width], values[:, :, :width], attn_mask=visible, scale=attention.scaling
        )
        hidden = hidden + attention.o_proj(mixed.reshape(tokens.shape[0], -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    cache.lengths = cache.lengths + 1
    cache.longest = width
    final: Tensor = model.norm(hidden)
    return final


def _rotary(module: Any, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = positions[:, None].float() * module.inv_freq.float()
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    scaling = module.attention_scaling
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
