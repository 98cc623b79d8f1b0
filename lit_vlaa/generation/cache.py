"""Where a rollout keeps its state: keys and values of prompts, once a group, and of completions, once a row.

Legend: R row slots, Q prompt slots, K key-value heads, Dh head size, P tokens of the longest prompt, C most new tokens,
G completions a prompt. Buffers have their full size from the start and never move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_vlaa.generation.weights import DecoderWeights

PROMPT_TOKENS_AT_ONCE = 8192
"""Padded tokens of the prompts that are read together (a longer one is read alone); bounds the memory it takes."""

_PROMPTS_A_GROUP = 3
"""Prompt slots for every G row slots. A group lives as long as its longest completion, 2.7 times the mean length for
eight of exponential length; with fewer slots rows would wait for prompts that a single completion still reads."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much of a rollout is held at one time."""

    rows: int
    """Completions that are decoded together."""
    prompts: int
    """Prompts whose keys and values are held."""

    def tokens(self, *, prompt_tokens: int, new_tokens: int) -> int:
        """Tokens that the cache has room for."""
        return self.rows * new_tokens + self.prompts * prompt_tokens


def capacity(prompts: int, group_size: int, max_rows: int) -> Capacity:
    """Slots for a rollout of `prompts` times `group_size` completions.

    Args:
        prompts: Prompts of the rollout.
        group_size: Completions a prompt.
        max_rows: Most completions to decode together.
    """
    rows = min(max_rows, prompts * group_size)
    return Capacity(rows, min(prompts, rows, _PROMPTS_A_GROUP * -(-rows // group_size)))


def capacity_within(
    size: int, *, prompts: int, group_size: int, max_rows: int, token_bytes: int, prompt_tokens: int, new_tokens: int
) -> Capacity:
    """The most slots, at most those for `max_rows`, whose keys and values take no more than `size` bytes.

    Args:
        size: Bytes for keys and values.
        prompts: Prompts of the rollout.
        group_size: Completions a prompt.
        max_rows: Most completions to decode together.
        token_bytes: Bytes of keys and values of one token.
        prompt_tokens: Tokens of the longest prompt.
        new_tokens: Most tokens of a completion.

    Raises:
        ValueError: If not even one row fits.
    """

    def need(rows: int) -> int:
        slots = capacity(prompts, group_size, rows)
        return token_bytes * slots.tokens(prompt_tokens=prompt_tokens, new_tokens=new_tokens)

    if need(1) > size:
        raise ValueError(
            f"--model.generator.memory_gb {size / 2**30:.3g}: one completion of {new_tokens} tokens after a prompt of "
            f"{prompt_tokens} takes {need(1) / 2**30:.3g}"
        )
    low, high = 1, max(1, min(max_rows, prompts * group_size))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(middle) <= size else (low, middle - 1)
    return capacity(prompts, group_size, low)


@dataclass(slots=True)
class Slots:
    """All tensors of a rollout but the weights. Row slots in use come first, and so do prompt slots."""

    keys: list[Tensor]
    """Per layer `[R, K, C, Dh]`, of completions."""
    values: list[Tensor]
    prompt_keys: list[Tensor]
    """Per layer `[Q, K, P, Dh]`."""
    prompt_values: list[Tensor]
    prompt_bias: Tensor
    """`[Q, P]` float32, 0 at a prompt's tokens and minus infinity behind them."""
    prompt_hidden: Tensor
    """`[Q, H]` final state of each prompt's last token."""
    hidden: Tensor
    """`[R, H]` final state of each row's last token."""
    token: Tensor
    """`[R]` last token of each row."""
    count: Tensor
    """`[R]` tokens drawn so far, 1 in a slot that was never used."""
    start: Tensor
    """`[R]` rotary position of the first new token."""
    done: Tensor
    """`[R]` bool."""
    noise: Tensor
    """`[R, C]` uniform numbers, one a token."""
    tokens: Tensor
    """`[R, C + 1]` tokens drawn; the last column takes what finished rows go on drawing."""
    logprobs: Tensor
    """`[R, C + 1]`"""
    members: Tensor
    """`[Q * G]` rows of each prompt slot, as many for each (a row of another stands where one has fewer)."""
    seat: Tensor
    """`[R]` place of each row in `members`."""

    @classmethod
    def empty(
        cls, size: Capacity, weights: DecoderWeights, *, group_size: int, prompt_tokens: int, new_tokens: int
    ) -> Slots:
        """Room for `size`; zeros, since what masks leave out still takes part in sums, times zero."""
        device, heads, head_size = weights.embedding.device, weights.key_value_heads, weights.head_size
        rows, prompts, layers = size.rows, size.prompts, range(len(weights.layers))

        def caches(count: int, width: int) -> list[Tensor]:
            shape = (count, heads, width, head_size)
            return [torch.zeros(shape, dtype=weights.dtype, device=device) for _ in layers]

        def zeros(*shape: int, dtype: Any = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        hidden = weights.embedding.dtype
        return cls(
            keys=caches(rows, new_tokens),
            values=caches(rows, new_tokens),
            prompt_keys=caches(prompts, prompt_tokens),
            prompt_values=caches(prompts, prompt_tokens),
            prompt_bias=zeros(prompts, prompt_tokens, dtype=torch.float32) - torch.inf,
            prompt_hidden=zeros(prompts, weights.embedding.shape[1], dtype=hidden),
            hidden=zeros(rows, weights.embedding.shape[1], dtype=hidden),
            token=zeros(rows),
            count=zeros(rows) + 1,
            start=zeros(rows),
            done=zeros(rows, dtype=torch.bool),
            noise=zeros(rows, new_tokens, dtype=torch.float32),
            tokens=zeros(rows, new_tokens + 1),
            logprobs=zeros(rows, new_tokens + 1, dtype=torch.float32),
            members=zeros(prompts * group_size),
            seat=zeros(rows),
        )

    def all(self) -> list[Tensor]:
        """Every buffer, in a fixed order."""
        rows = (self.hidden, self.token, self.count, self.start, self.done, self.noise, self.tokens, self.logprobs)
        caches = (*self.keys, *self.values, *self.prompt_keys, *self.prompt_values)
        return [*caches, self.prompt_bias, self.prompt_hidden, *rows, self.members, self.seat]

    def move_rows(self, moves: Sequence[tuple[int, int]], width: int) -> None:
        """Copies rows to other slots.

        Args:
            moves: Pairs of a slot and the free one that its row goes to.
            width: The most tokens of any of them.
        """
        if not moves:
            return
        source, target = self._pairs(moves)
        for cache in (*self.keys, *self.values):
            cache[target, :, :width] = cache[source, :, :width]
        for buffer in (self.hidden, self.token, self.count, self.start, self.done, self.noise):
            buffer[target] = buffer[source]
        for buffer in (self.tokens, self.logprobs):
            buffer[target, :width] = buffer[source, :width]

    def move_prompts(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copies prompts to other slots; pairs as in `move_rows`."""
        if not moves:
            return
        source, target = self._pairs(moves)
        for buffer in (*self.prompt_keys, *self.prompt_values, self.prompt_bias, self.prompt_hidden):
            buffer[target] = buffer[source]

    def _pairs(self, moves: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pairs = torch.tensor(moves, device=self.token.device).T
        return pairs[0], pairs[1]
