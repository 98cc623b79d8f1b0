"""The loss of an optimiser step over some rows of a rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from helpers.samples import sample
from lit_vlaa.algorithm import KLConfig, LossConfig
from lit_vlaa.rollout import Experience, Rollout, table
from lit_vlaa.types import Completion, Prompt, RewardResult, TokenScores
from lit_vlaa.update import UpdateStep


class ByPlace(tuple[Completion, ...]):
    """Completions that nobody may go through from end to end."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Completion]:
        raise AssertionError("a step of some rows looks at all rows of the rollout")


def experience(prompts: int) -> Experience:
    """Two completions a prompt; row n has n + 1 tokens; the last row is cut off, the one before has no verdict."""
    count = 2 * prompts
    record = sample("a", "?").record
    verdicts = [
        RewardResult(float(row % 2), "digit", None, "timeout" if row == count - 2 else "ok") for row in range(count)
    ]
    rewards, valid = table(verdicts, 2)
    rollout = Rollout(
        prompts=(Prompt(record, torch.tensor([1]), torch.zeros(3, 1).long(), None, None, ()),) * prompts,
        completions=ByPlace(
            [
                Completion(torch.zeros(row + 1).long(), torch.zeros(row + 1), "length" if row == count - 1 else "stop")
                for row in range(count)
            ]
        ),
        texts=("",) * count,
        results=tuple(verdicts),
        rewards=rewards,
        valid=valid,
        advantages=torch.arange(1.0, count + 1).view(-1, 2),
    )
    numbers = [torch.full((row + 1,), -float(row)) for row in range(count)]
    return Experience(rollout=rollout, old=numbers, reference=numbers, resampled=0.0)


def step_of(rows: Sequence[int], mask_truncated: bool) -> UpdateStep:
    work = experience(4)
    assert work.old is not None
    old = work.old

    def score(chosen: Sequence[int]) -> TokenScores:
        values = torch.cat([old[row] for row in chosen])
        return TokenScores(logprobs=values, entropy=values, correct=values.bool())

    return UpdateStep(
        work,
        rows,
        LossConfig(aggregation="token_mean", mask_truncated=mask_truncated),
        KLConfig(),
        score=score,
        coefficient=1.0,
        limit=8,
        sum_over_ranks=lambda counts: counts,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_looks_at_its_own_rows(masked: bool) -> None:
    step = step_of(range(4, 8), mask_truncated=masked)
    # Of rows 4 to 7, of 5 to 8 tokens, row 6 has no verdict, and row 7 is cut off.
    assert (step.sequences, step.tokens) == ((2, 11) if masked else (3, 19))
    # Policy, old policy and reference agree: the loss is minus the advantages (5, 6 and 8), by token.
    expected = -(5 * 5 + 6 * 6) / 11 if masked else -(5 * 5 + 6 * 6 + 8 * 8) / 19
    parts = [step.loss_of([0, 3]), step.loss_of([1, 2])]
    assert float(sum(parts)) == pytest.approx(expected)
    assert float(step.loss_of([3, 1, 0, 2])) == pytest.approx(expected)
