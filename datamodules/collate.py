"""From encoded rows to the batches that the modules take. Nothing is padded here: rows meet in `lit_vlaa.sequences`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_vlaa.types import Prompt, PromptBatch, SFTBatch


def collate_prompts(rows: Sequence[Prompt]) -> PromptBatch:
    """Makes the batch of a rollout or an evaluation."""
    return PromptBatch(tuple(rows))


def collate_sft(rows: Sequence[tuple[Prompt, Tensor]]) -> SFTBatch:
    """Makes a batch of prompts with the tokens to learn."""
    prompts, responses = zip(*rows, strict=True)
    return SFTBatch(prompts, responses)
