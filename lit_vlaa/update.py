"""One optimiser step of GRPO: which rows of a rollout count, and the loss of a micro-batch of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lit_vlaa.algorithm import KLConfig, LossConfig
from lit_vlaa.metrics import RankMeans
from lit_vlaa.objective import Scored, Totals, grpo_objective
from lit_vlaa.rollout import Experience
from lit_vlaa.sequences import unflatten
from lit_vlaa.types import TokenScores

STEP_MEANS = ("policy/loss", "policy/kl", "policy/clipped", "policy/ratio", "policy/entropy", "policy/sampler_gap")
"""Names of a step's means."""


class UpdateStep:
    """The loss of one optimiser step, to be added up over micro-batches and ranks.

    Args:
        experience: The rollout with what policy and reference thought of it.
        rows: This rank's rows of the step.
        loss: The clipped surrogate and how its tokens are weighed.
        kl: The divergence from the reference.
        score: Gives the policy's scores of some rows' completions, row by row.
        coefficient: Of the divergence.
        limit: Most tokens of a completion.
        sum_over_ranks: Adds up a tensor over all ranks; every rank must come here.
    """

    def __init__(
        self,
        experience: Experience,
        rows: Sequence[int],
        loss: LossConfig,
        kl: KLConfig,
        *,
        score: Callable[[Sequence[int]], TokenScores],
        coefficient: float,
        limit: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        rollout = experience.rollout
        self.experience, self.rows = experience, rows
        self.loss, self.kl, self.coefficient, self.limit = loss, kl, coefficient, limit
        self.means = RankMeans(STEP_MEANS)
        self.sizes = [rollout.size(row) for row in rows]
        self._score = score
        completions = [rollout.completions[row] for row in rows]
        self._taken = rollout.valid.flatten()[list(rows)]
        if loss.mask_truncated:
            self._taken &= torch.tensor([completion.finish != "length" for completion in completions])
        self._lengths = torch.tensor([completion.token_ids.numel() for completion in completions])
        counts = torch.stack([self._taken.sum(), (self._taken * self._lengths).sum()])
        self.sequences, self.tokens = sum_over_ranks(counts.float()).tolist()
        """Completions that count and their tokens, over all ranks."""

    def loss_of(self, part: Sequence[int]) -> Tensor:
        """The loss of some of the rows, by their places in `rows`, divided by the counts of the whole step."""
        rollout, old, reference = self.experience.rollout, self.experience.old, self.experience.reference
        places, chosen = list(part), [self.rows[index] for index in part]
        scores = self._score(chosen)
        lengths = self._lengths[places]
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(scores.logprobs.device)

        def place(per_row: Iterable[Tensor]) -> Tensor:
            return unflatten(torch.cat(list(per_row)).to(mask.device), mask)

        logprobs = unflatten(scores.logprobs, mask)
        loss, stats = grpo_objective(
            Scored(
                logprobs=logprobs,
                old_logprobs=logprobs.detach() if old is None else place(old[row] for row in chosen),
                sampler_logprobs=place(rollout.completions[row].logprobs for row in chosen),
                ref_logprobs=None if reference is None else place(reference[row] for row in chosen),
                advantages=rollout.advantages.flatten()[chosen].to(mask.device),
                mask=mask & self._taken[places].to(mask.device)[:, None],
            ),
            self.loss,
            self.kl,
            coefficient=self.coefficient,
            totals=Totals(sequences=self.sequences, tokens=self.tokens),
            limit=self.limit,
        )
        self.means.add("policy/entropy", scores.entropy.sum(), scores.entropy.numel())
        for name, (total, weight) in stats.items():
            self.means.add(name, total, weight)
        return loss
