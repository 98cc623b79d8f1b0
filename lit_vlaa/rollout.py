"""One rollout: completions, their rewards and advantages, flattened into rows for the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_vlaa.advantages import deviation, group_advantages, length_penalty, moments, zero_variance
from lit_vlaa.algorithm import AdvantageConfig
from lit_vlaa.metrics import RankMeans
from lit_vlaa.micro_batches import RowSize
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

    @property
    def group_size(self) -> int:
        """Completions a prompt."""
        return len(self.completions) // len(self.prompts)

    def row(self, index: int) -> tuple[Prompt, Tensor]:
        """Prompt and completion tokens of one row."""
        return self.prompts[index // self.group_size], self.completions[index].token_ids

    def size(self, index: int) -> RowSize:
        """Tokens of one row; rows of a prompt are a group."""
        prompt, completion = self.row(index)
        return RowSize(prompt.input_ids.numel(), completion.numel(), index // self.group_size)


@dataclass(frozen=True, slots=True)
class Judged(Sampled):
    """A rank's completions with their verdicts."""

    texts: tuple[str, ...]
    """`B * G` decoded completions."""
    results: tuple[RewardResult, ...]
    """`B * G` verdicts."""


@dataclass(frozen=True, slots=True)
class Rollout(Judged):
    """A rank's scored rollout."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A rollout with all that the update needs beside the policy itself."""

    rollout: Rollout
    old: list[Tensor] | None
    """Per row `[C]` log-probabilities that the ratio is taken against; None where the update's own are the same."""
    reference: list[Tensor] | None
    """Per row `[C]` log-probabilities under the reference policy; None without one."""
    resampled: float
    """Share of groups over all ranks that were drawn again."""


def flatten(prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> Sampled:
    """Lays completions out as rows.

    Args:
        prompts: B prompts.
        groups: For each prompt its G completions.
    """
    return Sampled(tuple(prompts), tuple(completion for group in groups for completion in group))


def judge(
    sampled: Sampled,
    decode: Callable[[Tensor], str],
    reward: Callable[[Sequence[RewardRequest]], list[RewardResult]],
    open_images: OpenImages | None = None,
) -> Judged:
    """Scores completions.

    Args:
        sampled: The completions.
        decode: Tokens to text.
        reward: Scores a batch of responses.
        open_images: Opens a record's images, for scorers that look at them.
    """
    texts = tuple(decode(completion.token_ids) for completion in sampled.completions)
    requests = [request_for(sampled.row(row)[0], text, open_images) for row, text in enumerate(texts)]
    results = tuple(reward(requests)) if requests else ()
    return Judged(sampled.prompts, sampled.completions, texts, results)


def table(results: Sequence[RewardResult], group_size: int) -> tuple[Tensor, Tensor]:
    """Rewards `[B, G]` float32 and, at the same places, whether a verdict was reached."""
    rewards = torch.tensor([result.value for result in results]).view(-1, group_size)
    return rewards, torch.tensor([result.judged for result in results]).view(-1, group_size)


def divergence(
    sampled: Sampled,
    old: Sequence[Tensor] | None,
    reference: Sequence[Tensor],
    estimate: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`[B * G]` the policy's divergence from the reference, summed over each completion's tokens.

    Args:
        sampled: The completions.
        old: Per row `[C]` log-probabilities under the policy; None takes the sampler's.
        reference: Per row `[C]` log-probabilities under the reference.
        estimate: Of policy and reference, by token.
    """
    policy = [completion.logprobs for completion in sampled.completions] if old is None else old
    return torch.stack([estimate(mine.cpu(), other.cpu()).sum() for mine, other in zip(policy, reference, strict=True)])


def with_advantages(
    judged: Judged,
    config: AdvantageConfig,
    *,
    limit: int,
    divergence: Tensor | None,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Rollout:
    """Turns verdicts into advantages.

    Args:
        judged: The completions and their verdicts.
        config: Scale, weights and length penalty.
        limit: Most tokens of a completion.
        divergence: `[B * G]` to subtract from the rewards (KL in the reward, with its coefficient); None for nothing.
        sum_over_ranks: Adds up a tensor over all ranks; every rank must come here.
    """
    size = judged.group_size
    rewards, valid = table(judged.results, size)
    lengths = torch.tensor([completion.token_ids.numel() for completion in judged.completions]).view(-1, size)
    shaped = rewards + length_penalty(lengths, limit=limit, buffer=config.length_buffer, weight=config.length_penalty)
    if divergence is not None:
        shaped = shaped - divergence.view(-1, size)
    spread = deviation(sum_over_ranks(moments(shaped, valid)).cpu()) if config.scale == "batch" else None
    advantages = group_advantages(shaped, valid, scale=config.scale, batch_deviation=spread)
    factors = [
        config.weights.get(prompt.record.kind, 1.0) * config.weights.get(prompt.record.source, 1.0)
        for prompt in judged.prompts
    ]
    return Rollout(
        prompts=judged.prompts,
        completions=judged.completions,
        texts=judged.texts,
        results=judged.results,
        rewards=rewards,
        valid=valid,
        advantages=advantages * torch.tensor(factors)[:, None],
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
