"""One rollout: completions, their rewards and advantages, flattened into rows for the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_vlaa.advantages import group_advantages, zero_variance
from lit_vlaa.metrics import RankMeans
from lit_vlaa.types import Completion, Kind, Prompt, Record, RewardRequest, RewardResult, ScoredGroup

if TYPE_CHECKING:
    from PIL.Image import Image

OpenImages = Callable[[Record], "tuple[Image, ...]"]
"""Opens a record's images as RGB."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A rank's completions, not yet scored. Row i belongs to prompt i // G; B prompts with G completions each."""

    prompts: tuple[Prompt, ...]
    """`B` prompts."""
    completions: tuple[Completion, ...]
    """`B * G` completions, prompt by prompt."""
    texts: tuple[str, ...]
    """`B * G` decoded completions."""

    @property
    def group_size(self) -> int:
        """Completions a prompt."""
        return len(self.completions) // len(self.prompts)

    def row(self, index: int) -> tuple[Prompt, Tensor]:
        """Prompt and completion tokens of one row."""
        return self.prompts[index // self.group_size], self.completions[index].token_ids

    def length(self, index: int) -> int:
        """Tokens of one row, prompt and completion."""
        prompt, completion = self.row(index)
        return prompt.input_ids.numel() + completion.numel()


@dataclass(frozen=True, slots=True)
class Rollout(Sampled):
    """A rank's scored rollout."""

    results: tuple[RewardResult, ...]
    """`B * G` verdicts."""
    rewards: Tensor
    """`[B, G]` float32."""
    valid: Tensor
    """`[B, G]` bool, False where no verdict was reached."""
    advantages: Tensor
    """`[B, G]` float32."""

    def flat_groups(self) -> Tensor:
        """`[B]` bool: groups whose rewards are all equal."""
        return zero_variance(self.rewards, self.valid)

    def groups(self) -> tuple[ScoredGroup, ...]:
        """The rollout prompt by prompt, for people to read."""
        size = self.group_size
        return tuple(
            ScoredGroup(
                record=prompt.record,
                texts=self.texts[index * size : (index + 1) * size],
                results=self.results[index * size : (index + 1) * size],
                advantages=tuple(self.advantages[index].tolist()),
                lengths=tuple(c.token_ids.numel() for c in self.completions[index * size : (index + 1) * size]),
            )
            for index, prompt in enumerate(self.prompts)
        )


def flatten(
    prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], decode: Callable[[Tensor], str]
) -> Sampled:
    """Lays completions out as rows.

    Args:
        prompts: B prompts.
        groups: For each prompt its G completions.
        decode: Tokens to text.
    """
    completions = tuple(completion for group in groups for completion in group)
    return Sampled(tuple(prompts), completions, tuple(decode(completion.token_ids) for completion in completions))


def score(
    sampled: Sampled,
    reward: Callable[[Sequence[RewardRequest]], list[RewardResult]],
    open_images: OpenImages | None = None,
) -> Rollout:
    """Scores completions and turns the rewards into advantages.

    Args:
        sampled: The completions.
        reward: Scores a batch of responses.
        open_images: Opens a record's images, for scorers that look at them.
    """
    size = sampled.group_size
    requests = [
        request_for(sampled.prompts[index // size], text, open_images) for index, text in enumerate(sampled.texts)
    ]
    results = tuple(reward(requests))
    rewards = torch.tensor([result.value for result in results]).view(-1, size)
    valid = torch.tensor([result.judged for result in results]).view(-1, size)
    return Rollout(
        prompts=sampled.prompts,
        completions=sampled.completions,
        texts=sampled.texts,
        results=results,
        rewards=rewards,
        valid=valid,
        advantages=group_advantages(rewards, valid),
    )


def request_for(prompt: Prompt, response: str, open_images: OpenImages | None = None) -> RewardRequest:
    """What the reward needs to judge one response to `prompt`."""
    record = prompt.record
    return RewardRequest(
        response=response,
        kind=record.kind,
        truth=record.truth,
        question=record.question,
        source=record.source,
        box_space=prompt.box_space,
        image_size=prompt.image_sizes[0] if prompt.image_sizes else None,
        id=record.id,
        images=None if open_images is None or not record.images else partial(open_images, record),
    )


def rollout_means(rollout: Rollout, kinds: Sequence[Kind]) -> RankMeans:
    """Means of one rank's rollout: `reward/*` over completions with a verdict, `rollout/*` over all.

    Args:
        rollout: A scored rollout.
        kinds: Every kind that may occur, the same on every rank.
    """
    means = RankMeans(["reward/mean", *(f"reward/{kind}" for kind in kinds), "reward/failed", *_OVER_ALL])
    for completion, result in zip(rollout.completions, rollout.results, strict=True):
        if result.judged:
            means.add("reward/mean", result.value, 1)
            means.add(f"reward/{result.kind}", result.value, 1)
        means.add("reward/failed", not result.judged, 1)
        means.add("rollout/no_answer", result.status == "no_answer", 1)
        means.add("rollout/length", completion.token_ids.numel(), 1)
        means.add("rollout/truncated", completion.finish == "length", 1)
    flat = rollout.flat_groups()
    means.add("rollout/zero_variance", flat.sum(), flat.numel())
    return means


_OVER_ALL = ("rollout/length", "rollout/truncated", "rollout/no_answer", "rollout/zero_variance")
