"""The decoder's arithmetic: prompts read at once, completions token by token.

A prompt's keys and values exist once, however many completions follow it: the queries of all its rows meet them in one
product, then each row's scores of prompt and completion go through one softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from lit_vlaa.generation.cache import Slots
from lit_vlaa.generation.weights import DecoderWeights


class Extent(NamedTuple):
    """How much of the slots a step reads. What lies beyond a row's own tokens is masked, so more is never wrong."""

    rows: int
    prompts: int
    members: int
    """Rows a prompt."""
    prompt_tokens: int
    new_tokens: int


def read_prompts(
    weights: DecoderWeights, slots: Slots, embeds: Tensor, *, positions: Tensor, lengths: Tensor, where: Tensor
) -> None:
    """Reads prompts into prompt slots.

    Args:
        weights: The decoder.
        slots: Their keys, values and final states go here.
        embeds: `[b, T, H]`, padded on the right.
        positions: `[3, b, T]` rotary positions.
        lengths: `[b]` true lengths.
        where: `[b]` prompt slots.
    """
    with torch.autocast(embeds.device.type, enabled=False):
        cos, sin = (part[:, :, None] for part in weights.rotary(embeds, positions))
        sin = _signed(sin)
        batch, width, _ = embeds.shape
        shape = (batch, width, -1, weights.head_size)
        hidden = embeds
        for index, layer in enumerate(weights.layers):
            normed = layer.before_attention(hidden)
            query = _rotate(layer.query(normed).view(shape), cos, sin).to(weights.dtype).transpose(1, 2)
            key = _rotate(layer.key(normed).view(shape), cos, sin).to(weights.dtype).transpose(1, 2)
            value = layer.value(normed).view(shape).to(weights.dtype).transpose(1, 2)
            slots.prompt_keys[index][where, :, :width] = key
            slots.prompt_values[index][where, :, :width] = value
            mixed = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=weights.scaling, enable_gqa=True
            )
            hidden = hidden + layer.output(mixed.transpose(1, 2).reshape(batch, width, -1))
            hidden = hidden + layer.mlp(hidden)
        last = hidden[torch.arange(batch, device=hidden.device), lengths - 1]
        slots.prompt_hidden[where] = weights.norm(last)
        behind = torch.arange(slots.prompt_bias.shape[1], device=hidden.device) >= lengths[:, None]
        slots.prompt_bias[where] = torch.zeros_like(behind, dtype=torch.float32).masked_fill(behind, -torch.inf)


def decode_step(weights: DecoderWeights, slots: Slots, extent: Extent) -> None:
    """Feeds each row's last token to the decoder; leaves the final states in `slots.hidden`.

    All three rotary coordinates of a text token are equal, so that decoding needs plain rotary embeddings.

    Args:
        weights: The decoder.
        slots: State of the rows, updated in place; nothing else is written, so that the step can be replayed.
        extent: What to read.
    """
    with torch.autocast(slots.token.device.type, enabled=False):
        _decode_step(weights, slots, extent)


def _decode_step(weights: DecoderWeights, slots: Slots, extent: Extent) -> None:
    rows, prompts, members, prompt_tokens, new_tokens = extent
    heads, size = weights.key_value_heads, weights.head_size
    device = slots.token.device
    each = torch.arange(heads, device=device)
    count = slots.count[:rows]
    hidden = embedding(slots.token[:rows], weights.embedding)
    cos, sin = _rotary(weights, slots.start[:rows] + count - 1, hidden.dtype)
    # A query head group of a row is one unit: row * K + head.
    place = torch.arange(0, rows * heads, heads, device=device)[:, None] + each
    place = (place * slots.keys[0].shape[2] + (count - 1)[:, None]).flatten()
    seat = slots.seat[:rows, None]
    gather = (slots.members[: prompts * members].view(prompts, 1, members) * heads + each[:, None]).flatten()
    scatter = ((seat // members * heads + each) * members + seat % members).flatten()
    own_bias = torch.zeros(rows, new_tokens, device=device)
    own_bias.masked_fill_(torch.arange(new_tokens, device=device) >= count[:, None], -torch.inf)
    own_bias = own_bias.repeat_interleave(heads, dim=0)[:, None]
    prompt_bias = slots.prompt_bias[:prompts, :prompt_tokens].repeat_interleave(heads, dim=0)[:, None]
    for index, layer in enumerate(weights.layers):
        normed = layer.before_attention(hidden)
        both = torch.cat([layer.query(normed), layer.key(normed)], dim=-1).view(rows, -1, size)
        query, key = torch.split(_rotate(both, cos, sin).to(weights.dtype), [weights.heads, heads], dim=1)
        keys, values = slots.keys[index], slots.values[index]
        keys.view(-1, size).index_copy_(0, place, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, place, layer.value(normed).view(-1, size).to(weights.dtype))
        query = query.reshape(rows * heads, -1, size)
        own_keys, own_values = (cache[:rows, :, :new_tokens].flatten(0, 1) for cache in (keys, values))
        prompt_keys, prompt_values = (
            cache[index][:prompts, :, :prompt_tokens].flatten(0, 1)
            for cache in (slots.prompt_keys, slots.prompt_values)
        )
        grouped = query.index_select(0, gather).view(prompts * heads, -1, size)
        of_prompt = _scores(grouped, prompt_keys, prompt_bias, weights.scaling)
        of_prompt = of_prompt.view(gather.numel(), -1, prompt_tokens).index_select(0, scatter)
        scores = torch.cat([of_prompt, _scores(query, own_keys, own_bias, weights.scaling)], dim=-1)
        shares = scores.softmax(-1).to(weights.dtype)
        of_prompt = shares[..., :prompt_tokens].index_select(0, gather).view(prompts * heads, -1, prompt_tokens)
        mixed = torch.bmm(of_prompt, prompt_values).view(gather.numel(), -1, size).index_select(0, scatter)
        mixed = torch.baddbmm(mixed, shares[..., prompt_tokens:], own_values)
        hidden = hidden + layer.output(mixed.view(rows, -1))
        hidden = hidden + layer.mlp(hidden)
    slots.hidden[:rows] = weights.norm(hidden)


def _scores(query: Tensor, keys: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`[n, q, s]` float32 scaled products plus `bias` (`[n, 1, s]`), for queries `[n, q, Dh]` and keys `[n, s, Dh]`."""
    if query.dtype == torch.float32:
        return torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=scale)
    if query.device.type == "cuda":
        # Scores rounded to half precision would leave the sampler far from what training computes.
        return torch.bmm(query, keys.transpose(1, 2), out_dtype=torch.float32).mul_(scale).add_(bias)
    return torch.baddbmm(bias, query.float(), keys.float().transpose(1, 2), alpha=scale)


def _rotary(weights: DecoderWeights, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = positions[:, None].float() * weights.rotary.inv_freq.float()
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    scaling = weights.rotary.attention_scaling
    return (angles.cos() * scaling).to(dtype), _signed((angles.sin() * scaling).to(dtype))


def _signed(sin: Tensor) -> Tensor:
    first, second = sin.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)
