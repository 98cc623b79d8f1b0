"""The rollout engine: each image encoded once, each prompt read once a group, finished rows dropped as they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.generation.cache import RowCache, decode_step
from lit_vlaa.generation.protocol import RolloutKey
from lit_vlaa.generation.sampling import sample_tokens, uniforms
from lit_vlaa.sequences import assemble
from lit_vlaa.types import Completion, Prompt, SamplingParams

_KEEP_SHARE = 0.8
"""Rows are compacted when fewer than this share of them are unfinished."""

_SYNC_EVERY = 8
"""Steps between looks at which rows ended, on devices where a look waits for all queued work."""


class CachedGenerator:
    """Batched decoding over a key-value cache, with the policy's own weights (implements `Generator`)."""

    def __init__(self, *, max_rows: int = 256) -> None:
        """Sets the memory budget.

        Args:
            max_rows: Completions decoded at one time; more prompts wait for their turn. Memory grows with it.

        Raises:
            ValueError: If it is not positive.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows

    @torch.no_grad()
    def generate(
        self, backbone: Backbone, prompts: Sequence[Prompt], *, group_size: int, params: SamplingParams, key: RolloutKey
    ) -> list[list[Completion]]:
        """Samples `group_size` completions for each prompt (see `Generator`)."""
        order = sorted(range(len(prompts)), key=lambda index: prompts[index].input_ids.numel())
        per_pass = max(1, self.max_rows // group_size)
        results: list[list[Completion]] = [[] for _ in prompts]
        for start in range(0, len(order), per_pass):
            part = order[start : start + per_pass]
            completions = self._decode(backbone, [prompts[index] for index in part], group_size, params, key)
            for index, group in zip(part, completions, strict=True):
                results[index] = group
        return results

    def _decode(
        self, backbone: Backbone, prompts: list[Prompt], group_size: int, params: SamplingParams, key: RolloutKey
    ) -> list[list[Completion]]:
        device = backbone.device
        limit = params.max_new_tokens
        total = len(prompts) * group_size
        hidden, cache = _prefill(backbone, prompts, group_size, limit)
        noise = torch.stack(
            [uniforms(key, prompt.record.id, sample, limit) for prompt in prompts for sample in range(group_size)]
        ).to(device)
        positions = torch.tensor([prompt.next_position for prompt in prompts], device=device)
        positions = positions.repeat_interleave(group_size)
        stops = torch.tensor(backbone.processor.stop_token_ids, device=device)
        rows = torch.arange(total, device=device)
        tokens_out = torch.zeros(total, limit, dtype=torch.long, device=device)
        logprobs_out = torch.zeros(total, limit, device=device)
        counts = torch.full((total,), limit, device=device)
        ended = torch.zeros(total, dtype=torch.bool, device=device)
        look_every = 1 if device.type == "cpu" else _SYNC_EVERY
        for step in range(limit):
            tokens, logprobs = sample_tokens(
                backbone.lm_head(hidden), noise[rows, step], params, backbone.banned_token_ids
            )
            tokens_out[rows, step] = tokens
            logprobs_out[rows, step] = logprobs
            stop_now = torch.isin(tokens, stops) & ~ended[rows]
            counts[rows] = torch.where(stop_now, step + 1, counts[rows])
            ended[rows] |= stop_now
            if step + 1 == limit:
                break
            if (step + 1) % look_every == 0:
                going = (~ended[rows]).nonzero().squeeze(-1)
                if going.numel() == 0:
                    break
                if going.numel() < _KEEP_SHARE * rows.numel():
                    cache.keep(going)
                    rows, tokens, positions = rows[going], tokens[going], positions[going]
            hidden = decode_step(backbone.language_model, cache, tokens, positions)
            positions = positions + 1
        return _collect(tokens_out, logprobs_out, counts, ended, group_size)


def _prefill(backbone: Backbone, prompts: list[Prompt], copies: int, room: int) -> tuple[Tensor, RowCache]:
    empty = torch.empty(0, dtype=torch.long)
    pad = backbone.processor.pad_token_id
    inputs = assemble([(prompt, empty) for prompt in prompts], pad_token_id=pad, device=backbone.device)
    state: Any = DynamicCache()
    output = backbone.language_model(
        inputs_embeds=backbone.embed(inputs),
        position_ids=inputs.position_ids,
        past_key_values=state,
        use_cache=True,
    )
    lengths = torch.tensor([prompt.input_ids.numel() for prompt in prompts], device=backbone.device)
    last = output.last_hidden_state[torch.arange(len(prompts), device=backbone.device), lengths - 1]
    layers = [(layer.keys, layer.values) for layer in state.layers]
    return last.repeat_interleave(copies, dim=0), RowCache.from_prefill(layers, lengths, copies=copies, room=room)


def _collect(
    tokens: Tensor, logprobs: Tensor, counts: Tensor, ended: Tensor, group_size: int
) -> list[list[Completion]]:
    tokens, logprobs = tokens.cpu(), logprobs.cpu()
    flat = [
        Completion(
            token_ids=tokens[row, :count].clone(),
            logprobs=logprobs[row, :count].clone(),
            finish="stop" if stopped else "length",
        )
        for row, (count, stopped) in enumerate(zip(counts.tolist(), ended.tolist(), strict=True))
    ]
    return [flat[start : start + group_size] for start in range(0, len(flat), group_size)]
