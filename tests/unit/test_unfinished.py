from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.samples import sample
from lit_vlaa.metrics import RankMeans
from lit_vlaa.rollout import Experience, Rollout, table
from lit_vlaa.types import Completion, Prompt, RewardResult
from lit_vlaa.unfinished import RolloutShape, UnfinishedRollout, take_up

SHAPE = RolloutShape(group_size=2, train_batch_size=2, num_iterations=1)
NAMES = ("policy/loss", "policy/kl")


def prompt(name: str) -> Prompt:
    return Prompt(sample(name, "?").record, torch.tensor([1]), torch.zeros(3, 1).long(), None, None, ())


def rollout(*names: str, reference: bool = True) -> UnfinishedRollout:
    """Two completions a prompt; row n of prompt `p` has n + 1 tokens, all numbers told by prompt and row."""
    rows = [(int(name), row) for name in names for row in range(2)]
    verdicts = [RewardResult(p / 10, "digit", None if row else str(p), "ok" if row else "timeout") for p, row in rows]
    rewards, valid = table(verdicts, 2)
    numbers = [torch.full((row + 1,), float(10 * p + row)) for p, row in rows]
    means = RankMeans(NAMES)
    means.add("policy/loss", sum(map(int, names)), len(names))
    return UnfinishedRollout(
        Experience(
            rollout=Rollout(
                prompts=tuple(map(prompt, names)),
                completions=tuple(
                    Completion(number.long(), -number, "stop" if row else "length")
                    for number, (_, row) in zip(numbers, rows, strict=True)
                ),
                texts=tuple(f"text {p} {row}" for p, row in rows),
                results=tuple(verdicts),
                rewards=rewards,
                valid=valid,
                advantages=torch.tensor([[float(p), -float(p)] for p in map(int, names)]),
            ),
            old=[-2 * number for number in numbers],
            reference=[-3 * number for number in numbers] if reference else None,
            resampled=0.25,
        ),
        means,
        {"generate": 1.5},
        [0.5, 0.25],
    )


def taken_up(state: dict[str, Any], rank: int, world_size: int, names: str) -> UnfinishedRollout:
    return take_up(state, list(map(prompt, names)), SHAPE, RankMeans(NAMES), (rank, world_size))


def assert_same(one: UnfinishedRollout, other: UnfinishedRollout) -> None:
    assert one.seconds == other.seconds
    assert one.norms == other.norms
    mine, theirs = one.experience, other.experience
    for name in ("old", "reference"):
        assert [row.tolist() for row in getattr(mine, name)] == [row.tolist() for row in getattr(theirs, name)]
    assert mine.resampled == theirs.resampled
    for field in dataclasses.fields(Rollout):
        left, right = getattr(mine.rollout, field.name), getattr(theirs.rollout, field.name)
        if field.name == "completions":
            assert [c.token_ids.tolist() for c in left] == [c.token_ids.tolist() for c in right]
            assert {c.token_ids.dtype for c in left} == {torch.int64}
            assert [c.logprobs.tolist() for c in left] == [c.logprobs.tolist() for c in right]
            assert [c.finish for c in left] == [c.finish for c in right]
        elif field.name == "prompts":
            assert [p.record for p in left] == [p.record for p in right]
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right


def test_one_rank_takes_up_what_it_left() -> None:
    work = rollout("0", "1", "2", "3")
    back = taken_up(work.state(SHAPE), 0, 1, "0123")
    assert_same(back, work)
    assert torch.equal(back.means.table(), work.means.table())


def test_two_ranks_share_what_one_left() -> None:
    state = rollout("0", "1", "2", "3").state(SHAPE)
    first, second = (taken_up(state, rank, 2, names) for rank, names in enumerate(("02", "13")))
    assert_same(first, rollout("0", "2"))
    assert_same(second, rollout("1", "3"))
    # 0 + 1 + 2 + 3 over four prompts, all of it on the first rank: only the sum over the ranks counts.
    assert first.means.table().tolist() == [[6.0, 4.0], [0.0, 0.0]]
    assert second.means.table().tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_one_rank_takes_up_what_two_left(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[list[Any]] = [[], []]
    for rank, names in enumerate(("02", "13")):
        monkeypatch.setattr("lit_vlaa.unfinished.gather_objects", lambda own, to=parts[rank]: to.append(own) or [own])
        rollout(*names).state(SHAPE)
    gathered = iter(zip(*parts, strict=True))
    monkeypatch.setattr("lit_vlaa.unfinished.gather_objects", lambda _: list(next(gathered)))
    state = rollout("0", "2").state(SHAPE)
    assert state["ids"] == ["0", "1", "2", "3"]
    assert_same(taken_up(state, 0, 1, "0123"), rollout("0", "1", "2", "3"))
    # Two ranks again: each has its own sums back.
    again = [taken_up(state, rank, 2, names).means.table().tolist() for rank, names in enumerate(("02", "13"))]
    assert again == [[[2.0, 2.0], [0.0, 0.0]], [[4.0, 2.0], [0.0, 0.0]]]


def test_without_a_reference() -> None:
    back = taken_up(rollout("0", "1", reference=False).state(SHAPE), 0, 1, "01")
    assert back.experience.reference is None
    assert back.experience.old is not None


def test_other_rows_are_refused() -> None:
    state = rollout("0", "1").state(SHAPE)
    with pytest.raises(ValueError, match="other rows than come next"):
        taken_up(state, 0, 1, "02")


def test_steps_take_whole_groups_in_the_datas_order() -> None:
    # 8 prompts in all, 4 a step: with two ranks each has 4 prompts of 3 completions and takes 2 prompts a step.
    shape = RolloutShape(group_size=3, train_batch_size=4, num_iterations=2)
    assert list(shape.chunks(range(12), 2)) == [range(6), range(6, 12), range(6), range(6, 12)]
