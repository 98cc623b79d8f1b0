"""What a training batch asked of the model on this rank, noted pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PretrainedConfig

from lit_vlaa.backbone.config import BackboneConfig
from lit_vlaa.flops import Cost, Work
from lit_vlaa.types import Completion, Prompt

Row = tuple[Prompt, Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one rank did."""

    tokens: int = 0
    """Tokens that were trained on, without padding: of each row prompt and completion, at every pass."""
    rollout_tokens: int = 0
    """Tokens that were sampled."""
    flops: int = 0
    """Floating-point operations that this needed (`lit_vlaa.flops`). The frozen part of the vision tower is needed once
    for each image."""


class Meter:
    """Adds up a batch.

    Args:
        config: Of the whole model.
        backbone: What is frozen, and where adapters train.
    """

    def __init__(self, config: PretrainedConfig, backbone: BackboneConfig) -> None:
        self._config = config
        self._forward = Cost.forward(config, backbone)
        self._training = Cost.training(config, backbone)
        lora = backbone.adapters
        trained = set(lora.parts) if lora else {"vision", "merger", "language"} - set(backbone.freeze)
        self._tower_trains, self._merger_trains = "vision" in trained, bool(trained & {"vision", "merger"})
        self.clear()

    def clear(self) -> None:
        """Starts anew."""
        self._read = Reading()
        self._seen: set[int] = set()

    def read(self) -> Reading:
        """What was noted since `clear`."""
        return self._read

    def note_pass(self, rows: Sequence[Row], *, share_prompts: bool, training: bool) -> None:
        """A forward pass over whole rows.

        Args:
            rows: Prompts with their completion's tokens.
            share_prompts: Whether rows with the same prompt read it once.
            training: Whether a backward pass follows.
        """
        groups: dict[int, list[Row]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(id(row[0]) if share_prompts else number, []).append(row)
        work = Work()
        for group in groups.values():
            work += Work.of_branches(group[0][0].input_ids.numel(), [completion.numel() for _, completion in group])
        work += self._images([prompt for prompt, _ in rows])
        self._add(
            (self._training if training else self._forward).of(work),
            tokens=sum(prompt.input_ids.numel() + completion.numel() for prompt, completion in rows) if training else 0,
        )

    def note_rollout(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> None:
        """Completions that were sampled over a cache.

        Args:
            prompts: Each read once.
            groups: The completions of each.
        """
        work = self._images(prompts)
        sampled = 0
        for prompt, group in zip(prompts, groups, strict=True):
            length, counts = prompt.input_ids.numel(), [completion.token_ids.numel() for completion in group]
            work += Work.of_branches(length) + Work.of_decoding([length] * len(counts), counts)
            sampled += sum(counts)
        self._add(self._forward.of(work), rollout_tokens=sampled)

    def _add(self, flops: int, *, tokens: int = 0, rollout_tokens: int = 0) -> None:
        read = self._read
        self._read = Reading(read.tokens + tokens, read.rollout_tokens + rollout_tokens, read.flops + flops)

    def _images(self, prompts: Sequence[Prompt]) -> Work:
        total = Work()
        for prompt in {id(prompt): prompt for prompt in prompts}.values():
            if prompt.image_grid_thw is None:
                continue
            work = Work.of_images(self._config, prompt.image_grid_thw.tolist())
            if id(prompt) in self._seen:
                if not self._merger_trains:
                    continue
                if not self._tower_trains:
                    work = replace(work, patches=0, patch_pairs=0)
            self._seen.add(id(prompt))
            total += work
        return total
