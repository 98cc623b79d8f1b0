"""The reference engine: transformers' own `generate`, slow and independent of ours.

It repeats prompt and image for every completion and pads on the left. Draws go through the same sampling rule with the
same random numbers, so that both engines give the same completions up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from lit_vlaa.backbone.model import Backbone
from lit_vlaa.generation.protocol import OnGroup, RolloutKey
from lit_vlaa.generation.sampling import sample_tokens, uniforms
from lit_vlaa.types import Completion, Prompt, SamplingParams


class TransformersGenerator:
    """Rollouts by `model.generate` (implements `Generator`)."""

    def __init__(self, *, streamer: BaseStreamer | None = None) -> None:
        """Sets who reads along.

        Args:
            streamer: Is told of every token of a single completion as soon as it is drawn.
        """
        self.streamer = streamer

    @torch.no_grad()
    def generate(
        self,
        backbone: Backbone,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        params: SamplingParams,
        key: RolloutKey,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        """Samples `group_size` completions for each prompt (see `Generator`)."""
        noise = torch.stack(
            [
                uniforms(key, prompt.record.id, sample, params.max_new_tokens)
                for prompt in prompts
                for sample in range(group_size)
            ]
        ).to(backbone.device)
        inputs = _left_padded([prompt for prompt in prompts for _ in range(group_size)], backbone)
        width = inputs["input_ids"].shape[1]
        draw = _Draw(width, noise, params, backbone.banned_token_ids)
        model: Any = backbone.model
        sequences = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=list(backbone.processor.stop_token_ids),
            pad_token_id=backbone.processor.pad_token_id,
            logits_processor=LogitsProcessorList([draw]),
            streamer=self.streamer,
        )
        # A training forward pass would otherwise take these offsets for its own.
        model.model.rope_deltas = None
        logprobs = torch.stack(draw.logprobs, dim=1).cpu()
        flat = [
            _cut(row, scores, backbone.processor.stop_token_ids)
            for row, scores in zip(sequences[:, width:].cpu(), logprobs, strict=True)
        ]
        groups = [flat[start : start + group_size] for start in range(0, len(flat), group_size)]
        if on_group is not None:  # `model.generate` hands nothing out before the last row has ended
            for index, group in enumerate(groups):
                on_group(index, group)
        return groups


class _Draw(LogitsProcessor):
    """Draws by our rule and leaves `generate` nothing but to take the drawn token."""

    def __init__(self, width: int, noise: Tensor, params: SamplingParams, banned: Tensor) -> None:
        self.width, self.noise, self.params, self.banned = width, noise, params, banned
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        tokens, logprobs = sample_tokens(scores, self.noise[:, step], self.params, self.banned)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


def _left_padded(prompts: list[Prompt], backbone: Backbone) -> dict[str, Tensor]:
    width = max(prompt.input_ids.numel() for prompt in prompts)
    ids = torch.full((len(prompts), width), backbone.processor.pad_token_id)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.input_ids.numel() :] = prompt.input_ids
        mask[row, width - prompt.input_ids.numel() :] = 1
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == backbone.processor.image_token_id).int(),
    }
    pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
    grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
    if pixels:
        inputs["pixel_values"], inputs["image_grid_thw"] = torch.cat(pixels), torch.cat(grids)
    return {name: value.to(backbone.device) for name, value in inputs.items()}


def _cut(tokens: Tensor, logprobs: Tensor, stops: tuple[int, ...]) -> Completion:
    ends = torch.isin(tokens, torch.tensor(stops)).nonzero()
    count = int(ends[0]) + 1 if ends.numel() else tokens.numel()
    return Completion(
        token_ids=tokens[:count].clone(),
        logprobs=logprobs[:count].clone(),
        finish="stop" if ends.numel() else "length",
    )
