"""A rollout between two of its optimiser steps: what is left to do, in a checkpoint and taken up again.

A checkpoint holds the rows of all ranks in the data's order, so that any number of ranks can go on. A row is a
completion, prompt by prompt; W ranks share the prompts out in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_vlaa.metrics import RankMeans
from lit_vlaa.parallel import gather_objects
from lit_vlaa.rollout import Experience, Rollout, table
from lit_vlaa.types import Completion, Prompt, RewardResult

_PER_TOKEN = ("sampler", "old", "reference")
_PER_ROW = ("texts", "finish", "results")


@dataclass(frozen=True, slots=True)
class RolloutShape:
    """Which rows an optimiser step takes; the run that takes up a rollout must have the same."""

    group_size: int
    """Completions a prompt."""
    train_batch_size: int
    """Prompts in one optimiser step over all ranks."""
    num_iterations: int
    """Passes over a rollout."""

    def chunks(self, rows: range, world_size: int) -> Iterator[range]:
        """A rank's rows of each optimiser step: whole groups, in the data's order, as often as there are iterations."""
        size = self.train_batch_size // world_size * self.group_size
        for _ in range(self.num_iterations):
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuses a rollout of another shape.

        Args:
            state: From the checkpoint (`UnfinishedRollout.state`).

        Raises:
            ValueError: If it is one; the message names the flag.
        """
        for name in RolloutShape.__slots__:
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was written in the midst of a rollout with --model.{name} {state[name]}, this run "
                    f"has {getattr(self, name)}; resume with the same, or from a checkpoint between two rollouts"
                )


@dataclass(slots=True)
class UnfinishedRollout:
    """One rank's rollout in the midst of its optimiser steps."""

    experience: Experience
    means: RankMeans
    """Of the steps taken."""
    seconds: dict[str, float]
    """By phase."""
    norms: list[float] = field(default_factory=list)
    """The gradient's norm at each step taken."""

    def state(self, shape: RolloutShape) -> dict[str, Any]:
        """The rollout of all ranks for a checkpoint, tensors and primitives; every rank must call it."""
        ranks = gather_objects(_rows(self.experience))
        size = shape.group_size
        prompts = len(ranks[0]["ids"])
        order = [(rank, place) for place in range(prompts) for rank in ranks]
        rows = [(rank, place * size + index) for rank, place in order for index in range(size)]
        return {
            **{name: getattr(shape, name) for name in RolloutShape.__slots__},
            "ids": [rank["ids"][place] for rank, place in order],
            "advantages": torch.stack([rank["advantages"][place] for rank, place in order]),
            "lengths": torch.tensor([len(rank["tokens"][row]) for rank, row in rows]),
            "tokens": torch.cat([rank["tokens"][row] for rank, row in rows]),
            **{
                name: None if ranks[0][name] is None else torch.cat([rank[name][row] for rank, row in rows])
                for name in _PER_TOKEN
            },
            **{name: [rank[name][row] for rank, row in rows] for name in _PER_ROW},
            "resampled": self.experience.resampled,
            "means": torch.stack(gather_objects(self.means.table())),
            "seconds": self.seconds,
            "norms": self.norms,
        }


def take_up(
    state: Mapping[str, Any],
    prompts: Sequence[Prompt],
    shape: RolloutShape,
    means: RankMeans,
    share: tuple[int, int],
) -> UnfinishedRollout:
    """This rank's share of a rollout that `UnfinishedRollout.state` gave, for the same or another number of ranks.

    Args:
        state: From the checkpoint.
        prompts: This rank's prompts of the rollout.
        shape: Of this run.
        means: With the same names, and nothing added yet.
        share: This rank, and the number of ranks.

    Raises:
        ValueError: If the prompts, or how they are shared out over steps, are not those of the interrupted run.
    """
    rank, world_size = share
    shape.check(state)
    if [prompt.record.id for prompt in prompts] != state["ids"][rank::world_size]:
        raise ValueError(
            "the checkpoint was written in the midst of a rollout of other rows than come next here; resume with the "
            "same data settings, and with a loader that keeps its place as datamodules.VLAAThinkingDataModule does"
        )
    size = shape.group_size
    rows = [place * size + index for place in range(rank, len(state["ids"]), world_size) for index in range(size)]
    lengths = state["lengths"].tolist()

    def split(name: str) -> list[Tensor] | None:
        if state[name] is None:
            return None
        parts = state[name].split(lengths)
        return [parts[row].clone() for row in rows]

    tokens, sampler = [ids.long() for ids in split("tokens") or []], split("sampler") or []
    finish = [state["finish"][row] for row in rows]
    results = tuple(RewardResult(*state["results"][row]) for row in rows)
    rewards, valid = table(results, size)
    shares = state["means"]
    # With another number of ranks the sums are one rank's; they are added up over the ranks in the end.
    if len(shares) != world_size:
        shares = torch.cat([shares.sum(0, keepdim=True), shares.new_zeros(world_size - 1, *shares.shape[1:])])
    means.take_up(shares[rank])
    return UnfinishedRollout(
        Experience(
            rollout=Rollout(
                prompts=tuple(prompts),
                completions=tuple(map(Completion, tokens, sampler, finish)),
                texts=tuple(state["texts"][row] for row in rows),
                results=results,
                rewards=rewards,
                valid=valid,
                advantages=state["advantages"][rank::world_size].clone(),
            ),
            old=split("old"),
            reference=split("reference"),
            resampled=state["resampled"],
        ),
        means,
        dict(state["seconds"]),
        list(state["norms"]),
    )


def _rows(experience: Experience) -> dict[str, Any]:
    """One rank's rows, on the CPU; values of all kinds but the advantages by row."""
    rollout = experience.rollout
    per_token = {
        "sampler": [completion.logprobs for completion in rollout.completions],
        "old": experience.old,
        "reference": experience.reference,
    }
    return {
        "ids": [prompt.record.id for prompt in rollout.prompts],
        "advantages": rollout.advantages.cpu(),
        "tokens": [completion.token_ids.cpu().int() for completion in rollout.completions],
        **{name: None if rows is None else [row.detach().cpu() for row in rows] for name, rows in per_token.items()},
        "texts": list(rollout.texts),
        "finish": [completion.finish for completion in rollout.completions],
        "results": [(r.value, r.kind, r.extracted, r.status) for r in rollout.results],
    }
